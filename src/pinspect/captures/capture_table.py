"""The captures of a run of the raw stage, as a table on the disk."""

from __future__ import annotations

import sqlite3

from pinspect.captures.table import COLUMNS
from pinspect.core.temporary_database import temporary_database


def new_capture_table() -> sqlite3.Connection:
    """Return a database with two empty tables, both of text.

    captures   a row per capture: `number`, its place in the order of age; the columns of `labels.csv`; `sha256`,
               `shard`, `perceptual_hash` and `split`
    decided    sha256 and split of the captures whose split was decided by an earlier run
    """
    return temporary_database(f"""
        CREATE TABLE captures (number INTEGER PRIMARY KEY, {", ".join(COLUMNS)}, sha256, shard, perceptual_hash, split);
        CREATE INDEX contents ON captures (sha256);
        CREATE INDEX files ON captures (file);
        CREATE INDEX shards ON captures (shard);
        CREATE TABLE decided (sha256 PRIMARY KEY, split) WITHOUT ROWID;
    """)
