"""Run a command in such a way that nothing of it outlives whoever started it.

    python flows/session.py COMMAND [ARGUMENT...]

The starter gives this process a session of its own and, as stdin, a pipe whose other end nobody else holds. When the
starter dies, be it by kill -9, the kernel closes the pipe, and the whole group is killed: the command, and all that the
command has started. Otherwise this process ends with the command and passes its exit code on. Standard library only:
it starts in some hundredths of a second (`python -I -S`).
"""

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> int:
    """Run `command` to its end. Returns its exit code, 128 + n where it fell to signal n."""
    for number in (signal.SIGTERM, signal.SIGINT):  # they go to the whole group: the command decides when it ends
        signal.signal(number, lambda *_: None)  # a handler, since the command would inherit SIG_IGN
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    code = process.wait()
    return code if code >= 0 else 128 - code


def _end_with_the_starter() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
