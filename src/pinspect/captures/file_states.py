"""Hashes of files, with the size and times that a file had when it was read.

Like Git and DVC, a run reads a file only if its size or times have changed. The records may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.progress import track

from pinspect.captures.lookups import places_of
from pinspect.core.files import atomic_path, write_file


class FileStates:
    """Hashes of the files of an output folder, kept from run to run."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._old = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # a first run, or a write that a kill has cut off
            self._old = {}
        self._checked: dict[str, list] = {}

    def sha256(self, path: Path) -> str | None:
        """Return the SHA-256 of a file, None if there is no such file."""
        try:
            state = _state(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        old = self._old.get(str(path))
        sha256 = old[1] if old and old[0] == state else file_sha256(path)
        self._checked[str(path)] = [state, sha256]
        return sha256

    def add(self, path: Path, sha256: str) -> None:
        """Record the SHA-256 of a file that this run has moved into place."""
        self._checked[str(path)] = [_state(path), sha256]

    def save(self) -> None:
        """Record the files of this run, and no others."""
        write_file(self._path, json.dumps(self._checked, sort_keys=True))


def hash_files(folder: Path, files: pd.Series, record: Path) -> pd.Series:
    """Return the SHA-256 of many files, in hex; holds a few numbers for each.

    Args:
        folder: The folder of the files.
        files: Their names.
        record: A Parquet file with the states and hashes of the last call's files. It is written again if a file was
            read.

    Returns:
        str (files,), with the index of `files`.

    Raises:
        OSError: A file is missing or cannot be read.
    """

    def key(name: str) -> int:
        """Return a number for a name, size and times; such a number never comes twice by chance."""
        text = f"{name}\0{_state(folder / name)}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())

    keys = np.fromiter(map(key, files), np.uint64, len(files))
    try:
        known = pd.read_parquet(record, columns=["state", "sha256"])
    except (FileNotFoundError, ValueError):  # a first run, or a file that is damaged
        known = pd.DataFrame({"state": keys[:0], "sha256": pd.Series(dtype=str)})
    places = places_of(pa.array(keys), pa.array(known["state"], pa.uint64()))
    hashes = pd.Series(known["sha256"].array.take(places, allow_fill=True), files.index)
    waiting = np.flatnonzero(places < 0)
    if len(waiting):
        shown = track(waiting, "captures to read", console=Console(stderr=True))
        read = np.fromiter(((file_sha256(folder / files.iloc[number]) or "").encode() for number in shown), "S64")
        hashes.iloc[waiting] = pa.array(read).cast(pa.string()).to_pandas().array
        with atomic_path(record) as partial:
            pd.DataFrame({"state": keys, "sha256": hashes.array}).to_parquet(partial, index=False)
    return hashes


def _state(path: Path) -> list[int]:
    """Return what changes when a file is written or replaced; no program can set the last value back."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is no such file."""
    try:
        with path.open("rb") as file:  # an archive may be larger than the memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
