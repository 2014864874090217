"""The database behind the results table: opened by its SQLAlchemy URL, its tables made and brought up to date.

Several processes can write at the same time, to PostgreSQL also from several machines. On SQLite, a transaction is on
the disk (write-ahead log, synchronous=FULL) when it ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from pinspect.core.errors import PinspectError
from pinspect.core.locks import only_process
from pinspect.core.postgres import CONNECT_SECONDS, INSTALL, lock_number, with_driver
from pinspect.station.settings import StationSettings

STATION_FOLDER = Path("data/station")
_DATABASE = "results.db"
_WRITER_SECONDS = 30
_BEGIN = {  # by driver: starts a transaction that creates or changes tables; other processes wait for its end
    "pysqlite": "BEGIN IMMEDIATE",  # sqlite3 itself begins no transaction for such statements
    "psycopg": f"SELECT pg_advisory_xact_lock({lock_number('pinspect results')})",
}


class ResultsError(PinspectError):
    """The results table cannot be opened, read or written, or lacks an inspection."""


class ResultsDatabase:
    """A database with the tables of `results_tables`. Threads can share an instance; each process opens its own.

    Every method raises ResultsError if the database cannot be used; its message has the URL without the password.

    Args:
        url: SQLAlchemy URL of a database in SQLite or PostgreSQL; missing tables are created, older ones brought up to
            date.

    Attributes:
        name: The URL without the password.
    """

    def __init__(self, url: str):
        self.name = "results table"
        with self._explained():
            address = make_url(with_driver(url))
            self.name = address.render_as_string(hide_password=True)
            if address.get_driver_name() not in _BEGIN:
                raise ResultsError(f"{self.name}: expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
            self._engine = _engine(address)
            self._bring_up_to_date(address)

    @classmethod
    def of_project(cls, root: Path, settings: StationSettings) -> Self:
        """Open the table at `settings.results`; if that is empty, SQLite in `data/station/` of the project."""
        return cls(settings.results or f"sqlite:///{(root / STATION_FOLDER / _DATABASE).resolve()}")

    def close(self) -> None:
        """Close all connections to the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; what it writes is stored at the end of the block, or not at all after an exception."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    def _bring_up_to_date(self, address: URL) -> None:
        from pinspect.station import migrations  # imports Alembic

        try:
            with _alone(address), self._engine.begin() as connection:
                if not migrations.is_current(connection):
                    connection.exec_driver_sql(_BEGIN[address.get_driver_name()])
                    migrations.upgrade(connection)
        except migrations.UnknownSchemaError as error:
            raise ResultsError(
                f"{self.name}: {error}; update pinspect, or set station.results to another database"
            ) from None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError:
            raise ResultsError(f"{self.name}: the database driver is not installed; run {INSTALL}") from None
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ResultsError(f"{self.name}: cannot be used as results table: {reason}") from error


def has_results(root: Path, settings: StationSettings) -> bool:
    """Return whether a project has a results table: named in the settings, or made by its station."""
    return bool(settings.results) or (root / STATION_FOLDER / _DATABASE).is_file()


@contextlib.contextmanager
def _alone(address: URL) -> Iterator[None]:
    """Open a database in a file alone: SQLite refuses one of two processes that switch to the write-ahead log."""
    file = address.database if address.get_backend_name() == "sqlite" else ""
    if not file:
        yield
        return
    with only_process(Path(f"{file}.lock"), f"{file}: waiting for another process that opens it"):
        yield


def _engine(address: URL) -> Engine:
    if address.get_driver_name() == "psycopg":
        return sa.create_engine(address, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_SECONDS})
    engine = sa.create_engine(address, connect_args={"timeout": _WRITER_SECONDS})

    @event.listens_for(engine, "connect")
    def _set_up(connection, _) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
