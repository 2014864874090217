"""Run a command while other processes keep the processor busy.

    python tools/under_load.py --busy 4 --times 2 -- make test

Prints the exit code and the seconds of each run; its own exit code is the first one that is not 0. Shows whether tests
hold on a slow machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack

BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> int:
    """Start the busy processes, run the command, stop them again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=4, help="busy processes beside the command")
    parser.add_argument("--times", type=int, default=2, help="runs, one after the other")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command, after --")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command; example: python tools/under_load.py -- make test")
    codes = []
    with ExitStack() as stack:
        for _ in range(options.busy):
            stack.callback(subprocess.Popen(BUSY).kill)
        for run in range(1, options.times + 1):
            start = time.monotonic()
            codes.append(subprocess.run(command, check=False).returncode)
            print(f"run {run}: exit code {codes[-1]}, {time.monotonic() - start:.0f} s", flush=True)
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
