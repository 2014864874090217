"""Read the products of the stages raw, dst and composite: files of their own, or members of archives (shards).

With `raw.shards: 0` a product such as `images/ab/abcd….jpg` is a file. With 16, 256 or 4096 shards it is the member
`ab/abcd….jpg` of the archive `images/a.zip`, `images/ab.zip` or `images/abc.zip`, named after the first digits of the
hash in its name. Its path stays the same, and so does the code that reads it. An archive is a zip file without
compression, whose bytes depend on the products alone.
"""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

DIGITS = {0: 0, 16: 1, 256: 2, 4096: 3}  # by number of shards
_PRODUCT = re.compile(r"images/[0-9a-f]{2}/([0-9a-f]{20})[^/]*")
_FOLDER = "images/"
ARCHIVE = ".zip"
_OPEN_ARCHIVES = 32
_DATE = (1980, 1, 1, 0, 0, 0)
_UNIX, _MODE = 3, 0o644 << 16


def shard_of(file: str, shards: int) -> str:
    """Return the shard of a product: the first digits of its hash; empty if it lies in none.

    Args:
        file: Path of the product relative to its stage's folder, such as `images/ab/abcd….jpg`.
        shards: Number of shards, a key of `DIGITS`.
    """
    product = _PRODUCT.fullmatch(file) if shards else None
    return product[1][: DIGITS[shards]] if product else ""


def archive_of(shard: str) -> str:
    """Return the path of a shard's archive relative to its stage's folder."""
    return f"{_FOLDER}{shard}{ARCHIVE}"


def all_shards(shards: int) -> list[str]:
    """Return the names of all shards; one empty name if there are none."""
    digits = DIGITS[shards]
    return [f"{number:0{digits}x}" for number in range(shards)] if shards else [""]


def read_product(path: Path) -> bytes:
    """Return the content of a product, or of any other file.

    Args:
        path: Path of the file, also where the product lies in an archive instead.

    Raises:
        OSError: There is neither such a file nor a member of an archive, or the archive is damaged.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        found = _find(path)
        if found is None:
            raise
    return _read_member(*found)


def has_product(path: Path) -> bool:
    """Return whether there is such a file, or the archive that would hold it.

    The archive is not opened: it holds what its stage's manifest lists, and opening it takes some milliseconds.
    """
    return path.is_file() or any(archive.is_file() for archive in _archives(path))


def write_archive(target: Path | BinaryIO, members: Mapping[str, bytes | Path]) -> None:
    """Write an archive of products; equal products give equal bytes.

    Args:
        target: The archive.
        members: Product relative to its stage's folder -> its content, or the file or archive that holds it.

    Raises:
        OSError: An archive that a product comes from is damaged.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(members):
            source = members[file]
            info = zipfile.ZipInfo(member_of(file), _DATE)
            info.create_system, info.external_attr = _UNIX, _MODE
            archive.writestr(info, _content(source, file) if isinstance(source, Path) else source)


def member_of(file: str) -> str:
    """Return the name in its archive of a product."""
    return file.removeprefix(_FOLDER)


def products_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the products in an archive, relative to the stage's folder."""
    return [f"{_FOLDER}{name}" for name in archive.namelist()]


def _find(path: Path) -> tuple[zipfile.ZipFile, str] | None:
    """Return the open archive that has a product, and the name of the member."""
    member = f"{path.parent.name}/{path.name}"
    for archive in _archives(path):
        try:
            opened = _open(archive)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if member in opened.NameToInfo:
            return opened, member
    return None


def _archives(path: Path) -> list[Path]:
    """Return the archives that may hold a product, one for each number of shards."""
    return [path.parent.parent / f"{path.name[:digits]}{ARCHIVE}" for digits in DIGITS.values() if digits]


def _content(source: Path, file: str) -> bytes:
    """Return a product's content from a file of its own, or from an archive."""
    return _read_member(_open(source), member_of(file)) if source.suffix == ARCHIVE else source.read_bytes()


def _read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(Path(str(archive.filename)), error) from None


def _open(archive: Path) -> zipfile.ZipFile:
    """Return an open archive. Raises OSError if there is none, or a damaged one."""
    state = archive.stat()
    return _opened(archive, (os.getpid(), state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=_OPEN_ARCHIVES)
def _opened(archive: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    """Open an archive once for each state of it, and in each process: forked processes would share a position."""
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: Exception) -> OSError:
    return OSError(errno.EIO, f"the archive is damaged ({error}); run dvc repro -f, which makes it again", str(archive))
