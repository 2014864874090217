"""Locks between processes, which the kernel frees when their holder dies."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger(__name__)
_SILENT_SECONDS = 3.0


@contextmanager
def only_process(path: Path, who_waits: str) -> Generator[None]:
    """Hold a lock during the context; wait for it, and say so after three seconds, while another process holds it.

    Args:
        path: The file of the lock; its folder is made if it is missing.
        who_waits: What to log while waiting, such as `data/captures: waiting for another process that adds captures`.

    Yields:
        Nothing, once this thread holds the lock.

    Raises:
        OSError: The lock cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_SILENT_SECONDS)
    except Timeout:
        _log.warning(who_waits)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
