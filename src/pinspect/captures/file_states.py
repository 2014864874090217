"""Hashes of files, with the size and times that a file had when it was read.

Like Git and DVC, a run reads a file only if its size or times have changed. The records may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Self

_SCHEMA = """
PRAGMA temp_store = FILE;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, state TEXT, sha256 TEXT) WITHOUT ROWID;
CREATE TEMPORARY TABLE checked (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_KEPT_AT_ONCE = 1024  # hashes that a kill may lose


class FileStates:
    """Hashes of files, kept from run to run in a database: many files need no more memory than a few.

    A context manager that closes the database. One process uses it at a time.

    Args:
        path: The database; it is made if there is none, and made again if it is damaged.
    """

    def __init__(self, path: Path):
        self._database = _opened(path)
        self._waiting = 0  # hashes that are not on the disk yet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def recorded(self, path: Path) -> str | None:
        """Return the SHA-256 of a file; None if its hash is unknown, or the file has changed since it was read."""
        return self._recorded(path, _state(path))

    def sha256(self, path: Path) -> str | None:
        """Return the SHA-256 of a file, None if there is no such file."""
        try:
            state = _state(path)  # before the file is read: a later change is then seen
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._recorded(path, state) or self._add(path, state, file_sha256(path))

    def add(self, path: Path, sha256: str) -> None:
        """Record the SHA-256 of a file that this run has moved into place."""
        self._add(path, _state(path), sha256)

    def _recorded(self, path: Path, state: str) -> str | None:
        key = os.fsencode(path)
        query = "SELECT sha256 FROM files WHERE path = ? AND state = ?"
        (sha256,) = self._database.execute(query, (key, state)).fetchone() or (None,)
        if sha256:
            self._database.execute("INSERT OR IGNORE INTO checked VALUES (?)", (key,))
        return sha256

    def _add(self, path: Path, state: str, sha256: str | None) -> str | None:
        key = os.fsencode(path)
        self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (key, state, sha256))
        self._database.execute("INSERT OR IGNORE INTO checked VALUES (?)", (key,))
        self._waiting += 1
        if self._waiting == _KEPT_AT_ONCE:
            self._database.commit()
            self._waiting = 0
        return sha256

    def save(self) -> None:
        """Keep the hashes of the files that this run has checked, and no others."""
        self._database.execute("DELETE FROM files WHERE path NOT IN (SELECT path FROM checked)")
        self._database.commit()


def _opened(path: Path) -> sqlite3.Connection:
    for _ in range(2):
        database = sqlite3.connect(path)
        try:
            if database.execute("PRAGMA quick_check").fetchone() == ("ok",):
                database.executescript(_SCHEMA)
                return database
        except sqlite3.DatabaseError:
            pass
        database.close()
        path.unlink()
    raise sqlite3.DatabaseError(f"{path}: a new database is damaged; check the disk")


def _state(path: Path) -> str:
    """Return what changes when a file is written or replaced; no program can set the last value back."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is no such file."""
    try:
        with path.open("rb") as file:  # an archive may be larger than the memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
