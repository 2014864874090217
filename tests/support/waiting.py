"""Waits for a state, with a limit that suits a slow and busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

SECONDS = 1800

T = TypeVar("T")


def until(state: Callable[[], T], name: str, seconds: float = SECONDS, longest: float = 1.0) -> T:
    """Call `state` until its result is true, and return that result; fail with `name` after `seconds`.

    The pause between two calls grows up to `longest` seconds: what asks a server often keeps others from working.
    """
    end, pause = time.monotonic() + seconds, 0.02
    while time.monotonic() < end:
        if result := state():
            return result
        time.sleep(pause)
        pause = min(longest, 1.3 * pause)
    raise AssertionError(f"waited {seconds:g} s in vain for {name}")


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
