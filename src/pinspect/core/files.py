"""Write files atomically: a reader sees the old file or the complete new file, never a part of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Generator[Path]:
    """Yield a path beside `path` to write to, and rename it to `path` at the end of the block.

    After an exception `path` is as it was, and the half-written file is removed. After a kill the half-written file
    stays; its name begins with a dot and contains `.partial`.

    Args:
        path: The file to write. Missing parent folders are created.
        sync: Flush the content to the disk before the rename, so that it survives a power failure.

    Yields:
        A path in the same folder with the same suffix, which no other thread or process writes to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.partial{path.suffix}")
    try:
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` atomically, text as UTF-8 with line ends as they are.

    Args:
        path: The file to write. Missing parent folders are created.
        content: The new content.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
