"""Lists the files that wait in an inbox, and decides when a run takes them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from pinspect.captures.labels import images_folder
from pinspect.captures.table import LABELS
from pinspect.core.images import IMAGE_SUFFIXES

File = tuple[str, int, int]  # name, time of the last change (ns), size (bytes)


def waiting_files(inbox: Path) -> frozenset[File]:
    """Return the images in an inbox; an empty set if there is no such folder."""
    images = images_folder(inbox).glob("[!.]*")
    return _states(path for path in images if path.suffix.lower() in IMAGE_SUFFIXES)


class Arrivals:
    """Decides when a run takes the files of an inbox: when new ones have come, are complete, and no run works.

    Args:
        inbox: The inbox; it may be missing.
    """

    def __init__(self, inbox: Path):
        self._inbox = inbox
        self._last: frozenset[File] = frozenset()
        self._known: frozenset[File] = frozenset()  # announced, or written by a run

    def look(self, *, busy: bool) -> int:
        """Look at the inbox once.

        Args:
            busy: Whether a run works in the checkout. New images then wait for its end. It can rewrite labels.csv.

        Returns:
            The number of images if a run is due, else 0. A file is complete if it is as it was at the last look.
        """
        images, labels = waiting_files(self._inbox), _states([self._inbox / LABELS])
        files = images | labels
        self._known &= files  # a file that has gone and comes again is new
        if busy:
            self._known |= labels
        complete, self._last = files == self._last, files
        return len(images) if complete and not busy and files - self._known else 0

    def announced(self) -> None:
        """Note that the server knows of all files that the last look saw."""
        self._known = self._last


def _states(paths: Iterable[Path]) -> frozenset[File]:
    files = set()
    for path in paths:
        with suppress(OSError):  # it has just gone
            status = path.stat()
            if S_ISREG(status.st_mode):
                files.add((path.name, status.st_mtime_ns, status.st_size))
    return frozenset(files)
