"""Runs a command so that no process of it outlives the command, or the starter.

    python flows/session.py COMMAND [ARGUMENT...]

The starter gives this process its own session and, as stdin, a pipe whose other end only the starter holds. The command
runs in a process group. This process kills that group when the command ends, and when the starter ends, by kill -9 too,
because the kernel then closes the pipe. Standard library only, so that it starts in a few hundredths of a second
(`python -I -S`).
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(command: list[str]) -> int:
    """Run a command to its end; pass SIGTERM and SIGINT on to it and to everything that it has started.

    Args:
        command: The program and its arguments.

    Returns:
        The command's exit code; 128 + n if signal n ended it.
    """
    process = None

    def pass_on(number: int, _frame: object) -> None:
        if process is None:
            sys.exit(128 + number)
        _signal_group(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    threading.Thread(target=_kill_after_starter, args=(process.pid,), daemon=True).start()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # as a zombie, it keeps the id of the group
    # Here, not in the starter: a starter that dies at this moment would leave the command's children running.
    _signal_group(process.pid, signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _kill_after_starter(group: int) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
