"""The hashes that `FileStates` keeps, read and changed as no run does it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path


def read_hashes(states: Path) -> dict[Path, str]:
    """Return the recorded hash of each file."""
    with closing(sqlite3.connect(states)) as database:
        return {Path(os.fsdecode(path)): sha256 for path, sha256 in database.execute("SELECT path, sha256 FROM files")}


def write_hash(states: Path, file: Path, sha256: str) -> None:
    """Replace the recorded hash of a file, which looks unchanged."""
    with closing(sqlite3.connect(states)) as database, database:
        changed = database.execute("UPDATE files SET sha256 = ? WHERE path = ?", (sha256, os.fsencode(file))).rowcount
        assert changed == 1
