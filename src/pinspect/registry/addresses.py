"""Keep the addresses in a registry in a file beside it, wherever its folder was moved or copied to.

MLflow stores absolute addresses of artifacts in its database. Without this step a renamed project finds no version, and
a copied project reads from the original and writes into it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

STORE = "mlruns"
LOCKED = "database is locked"  # SQLite's words
_ARTIFACTS = "artifacts"
_COLUMNS = {  # columns of MLflow's database that hold addresses; the experiments' addresses start all others
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
    "experiments": "artifact_location",
}
_BUSY_SECONDS = 10


def artifact_folder(database: Path) -> Path:
    """Return the folder of the artifacts that a database in a file knows: `artifacts/` beside it."""
    return database.parent / _ARTIFACTS


def bring_home(database: Path, *, shared: bool = False) -> None:
    """Let every address of a project's store in a database of MLflow lie beside the database.

    An address `.../mlruns/NAME` of another place becomes `NAME` beside the database; all change in one transaction. A
    database that MLflow has not set up, or cannot read, stays as it is.

    Args:
        database: The sqlite file; it may be missing. The caller holds the registry's lock.
        shared: Whether the database is not the project's own. Then an address changes only if a folder of the same name
            lies beside the database, and if nothing is left at the address, or another database lies beside what is
            left: this one is a copy.

    Raises:
        sqlite3.OperationalError: Another program keeps the database locked.
    """
    if not database.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
            _move(connection, database.resolve(), shared)
    except sqlite3.DatabaseError as error:
        if LOCKED in str(error):
            raise


def _move(connection: sqlite3.Connection, database: Path, shared: bool) -> None:
    store = database.parent
    for (old,) in connection.execute("SELECT artifact_location FROM experiments").fetchall():
        path = local_path(old)
        if path is None or path.parent == store:
            continue
        home = store / path.name
        if not (_left(path, home, database) if shared else path.parent.name in (STORE, store.name)):
            continue
        new = home.as_uri() if old.startswith("file:") else str(home)
        for table, column in _COLUMNS.items():
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
            )


def _left(path: Path, home: Path, database: Path) -> bool:
    """Return whether a shared registry has left the folder `path` for the folder `home` beside its database."""
    return home.is_dir() and (not path.exists() or (path.parent / database.name).is_file())


def local_path(location: str) -> Path | None:
    """Return the path of a local address; None for an address of a server."""
    parts = urlsplit(location)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None
