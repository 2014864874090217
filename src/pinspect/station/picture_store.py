"""Stored pictures: the inspected bytes, named by their hash, kept for a number of days up to a number of bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from datetime import datetime, timedelta
from pathlib import Path

from pinspect.core.files import atomic_path
from pinspect.station.results_database import STATION_FOLDER, ResultsError

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PictureStore:
    """Pictures in `data/station/pictures/` of a project. Threads and processes can share the folder.

    Args:
        root: Folder of the project.
        keep_days: Days to keep a picture after it was last put.
        keep_bytes: Most bytes of all pictures; pruning deletes the oldest beyond.
    """

    def __init__(self, root: Path, keep_days: int, keep_bytes: int):
        self._folder = root / STATION_FOLDER / "pictures"
        self._keep, self._keep_bytes = timedelta(days=keep_days), keep_bytes

    def put(self, content: bytes, suffix: str) -> str:
        """Store an image file; the bytes are on the disk when this method returns. Equal bytes are stored once.

        Args:
            content: Bytes of the file.
            suffix: Suffix of the file, such as `.jpg`.

        Returns:
            SHA-256 of the bytes, in hex.

        Raises:
            ValueError: `suffix` is not a file suffix.
            ResultsError: The bytes cannot be written.
        """
        if not _SUFFIX.fullmatch(suffix := suffix.lower()):
            raise ValueError(f"expected a suffix such as .jpg, got {suffix!r}")
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            if not self._renew(sha256):
                self._write(content, self._folder / sha256[:2] / f"{sha256}{suffix}")
        except OSError as error:
            raise ResultsError(f"{self._folder}: cannot write a picture: {error.strerror}") from None
        return sha256

    def path(self, sha256: str) -> Path | None:
        """Return the path of the picture with this hash; None if there is none or `sha256` is not a hash."""
        if not _SHA256.fullmatch(sha256):
            return None
        return next((self._folder / sha256[:2]).glob(f"{sha256}.*"), None)

    def prune(self, now: datetime) -> int:
        """Delete expired pictures, those beyond the bytes to keep, and partial files of killed processes.

        Args:
            now: The time.

        Returns:
            The number of deleted files.
        """
        files: list[tuple[float, int, Path]] = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process may prune, too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        oldest, kept, pruned = (now - self._keep).timestamp(), 0, 0
        for time, size, path in sorted(files, reverse=True):  # the newest first
            kept += size
            if time < oldest or kept > self._keep_bytes:
                path.unlink(missing_ok=True)
                pruned += 1
        return pruned

    def _renew(self, sha256: str) -> bool:
        """Restart the time to keep a stored picture; False if it is not stored."""
        path = self.path(sha256)
        with contextlib.suppress(FileNotFoundError):  # another process may have pruned it just now
            if path:
                os.utime(path)
                return True
        return False

    @staticmethod
    def _write(content: bytes, path: Path) -> None:
        with atomic_path(path, sync=True) as partial:
            partial.touch(mode=0o600)
            partial.write_bytes(content)
