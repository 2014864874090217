"""The pictures behind the results: the bytes that were inspected, under their own hash, as long as they are kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from datetime import datetime, timedelta
from pathlib import Path

from pinspect.core.files import atomic_path
from pinspect.station.results import STATION_FOLDER, ResultsError

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PictureStore:
    """Pictures in `data/station/pictures/` of a project; threads and processes may share it.

    root: the project's folder. keep_days: how long a picture is kept after it was last put.
    """

    def __init__(self, root: Path, keep_days: int):
        self._folder = root / STATION_FOLDER / "pictures"
        self._keep = timedelta(days=keep_days)

    def put(self, content: bytes, suffix: str) -> str:
        """Keep the bytes of an image file; they are on the disk when this returns. Returns their SHA-256.

        suffix: of the file, such as `.jpg`. The same bytes are kept once. Raises ValueError for a suffix that is none,
        and ResultsError where the bytes cannot be written.
        """
        if not _SUFFIX.fullmatch(suffix := suffix.lower()):
            raise ValueError(f"expected a suffix such as .jpg, found {suffix!r}")
        sha256 = hashlib.sha256(content).hexdigest()
        try:
            if not self._kept_on(sha256):
                self._write(content, self._folder / sha256[:2] / f"{sha256}{suffix}")
        except OSError as error:
            raise ResultsError(f"{self._folder}: cannot keep a picture: {error.strerror}") from None
        return sha256

    def path(self, sha256: str) -> Path | None:
        """Where the picture with this hash lies; None where there is none, or where that is no hash."""
        if not _SHA256.fullmatch(sha256):
            return None
        return next((self._folder / sha256[:2]).glob(f"{sha256}.*"), None)

    def prune(self, now: datetime) -> int:
        """Delete what is older than it is kept, and what killed processes left half-written. Returns how many."""
        oldest, pruned = (now - self._keep).timestamp(), 0
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # another process prunes, too
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    pruned += 1
        return pruned

    def _kept_on(self, sha256: str) -> bool:
        """Whether the picture is there; it is kept from now on."""
        there = self.path(sha256)
        with contextlib.suppress(FileNotFoundError):  # another process pruned it at this moment
            if there:
                os.utime(there)
                return True
        return False

    @staticmethod
    def _write(content: bytes, path: Path) -> None:
        with atomic_path(path, sync=True) as partial:
            partial.touch(mode=0o600)
            partial.write_bytes(content)
