"""A process that holds a lock, for tests of those who wait for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def holder_killed_at_first_message(code: str, caplog: pytest.LogCaptureFixture, *arguments: str) -> Iterator[None]:
    """Run a program during the context, and kill it when the first message is logged.

    Args:
        code: Takes the lock, prints `held`, and reads standard input until it is killed.
        caplog: What this process logs.
        arguments: Arguments of the program.
    """
    holder = subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=-1, stdout=-1, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"

    def kill(record) -> bool:
        holder.kill()
        return True

    caplog.handler.addFilter(kill)
    try:
        yield
    finally:
        caplog.handler.removeFilter(kill)
        holder.communicate()
