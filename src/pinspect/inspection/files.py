"""Finds image files by paths, folders and globs, and reads them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.inspection.records import Photograph

ANNOTATED = ".annotated"  # before the suffix of a picture that `AnnotatedPictures` wrote
_BYTES_PER_PIXEL = 8  # of a 16-bit RGBA picture, the largest kind that is read
_HEADERS = 1_000_000


def find_images(patterns: Sequence[str]) -> Iterator[Path]:
    """Find image files, each pattern's files in alphabetical order.

    A named file is yielded whatever its suffix, and even if it does not exist; so is a folder or glob without an image,
    so that reading it reports the problem. Hidden files and annotated pictures in folders and globs are left out.

    Args:
        patterns: Files, folders (with everything below them) and globs.

    Returns:
        The paths.

    Raises:
        CaptureError: No pattern yields an image.
    """
    walks = [(pattern, _walk(pattern)) for pattern in patterns]
    firsts = [next(walk, None) for _, walk in walks]
    if all(first is None for first in firsts):
        raise CaptureError(f"{', '.join(patterns)}: no image found; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    return chain.from_iterable(
        [Path(pattern)] if first is None else chain([first], walk)
        for (pattern, walk), first in zip(walks, firsts, strict=True)
    )


def read_photograph(path: Path, max_pixels: int, name: str = "") -> Photograph:
    """Read the bytes of an image file without decoding them.

    Args:
        path: The file.
        max_pixels: The largest photograph that is accepted, in px.
        name: The name for records and errors; the path by default.

    Returns:
        The photograph.

    Raises:
        ImageError: The file cannot be read, or is larger than any picture of `max_pixels`.
    """
    name = name or printable(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name}: a folder without an image, or a folder that cannot be read")
        if not path.is_file():
            problem = "a device or a pipe, not a file" if path.exists() else "not found"
            raise ImageError(f"{name}: {problem}")
        if (size := path.stat().st_size) > max_pixels * _BYTES_PER_PIXEL + _HEADERS:
            raise ImageError(f"{name}: {size} bytes are more than raw.max_pixels allows; crop the image")
        return Photograph(name, path.read_bytes())
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror}") from None


def printable(path: Path) -> str:
    """Return a path as text that can be printed and stored, even if its bytes are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_image_name(name: str) -> bool:
    """Return whether a file name is that of a capture: an image suffix, not hidden, not an annotated picture."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and not path.stem.endswith(ANNOTATED)


def _walk(pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except OSError:  # reading the file reports the problem
        exists, is_folder = True, False
    if is_folder:
        yield from _below(path)
    elif exists or not glob.has_magic(pattern):
        yield path
    else:
        # Path.glob takes no absolute patterns, and its ** yields folders only.
        for match in map(Path, sorted(glob.iglob(pattern, recursive=True))):  # noqa: PTH207
            if match.is_dir():
                yield from _below(match) if "**" not in pattern else ()
            elif is_image_name(match.name):
                yield match


def _below(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    except OSError:
        yield folder  # reading the folder reports the problem
        return
    for name, is_folder in entries:
        if is_folder and not name.startswith("."):
            yield from _below(folder / name)
        elif not is_folder and is_image_name(name):
            yield folder / name
