"""Tables on the disk: a stage that keeps its rows there needs no more memory for a million captures than for a few."""

from __future__ import annotations

import sqlite3


def temporary_database(schema: str) -> sqlite3.Connection:
    """Return an empty database that is gone when it is closed, or when its process ends.

    SQLite holds two MB of it in memory, and the rest in a file of the system's temporary folder (`SQLITE_TMPDIR`,
    `TMPDIR`, `/var/tmp`).

    Args:
        schema: SQL statements that create the tables.
    """
    database = sqlite3.connect("")  # SQLite's name of a temporary file
    database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA temp_store = FILE; {schema}")
    return database
