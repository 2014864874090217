"""The database behind the results table: opened by its SQLAlchemy URL, its tables made and brought up to date.

Several processes can write at the same time. On SQLite, a transaction is on the disk (write-ahead log,
synchronous=FULL) when it ends.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from pinspect.core.errors import PinspectError
from pinspect.station import results_tables as tables
from pinspect.station.settings import StationSettings

SCHEMA = 4
STATION_FOLDER = Path("data/station")
_DATABASE = "results.db"
_WRITER_SECONDS = 30
_TRIES_TO_CREATE = 5


class ResultsError(PinspectError):
    """The results table cannot be opened, read or written, or lacks an inspection."""


class ResultsDatabase:
    """A database with the tables of `results_tables`. Threads can share an instance; each process opens its own.

    Every method raises ResultsError if the database cannot be used; its message has the URL without the password.

    Args:
        url: SQLAlchemy URL; missing tables are created.

    Attributes:
        name: The URL without the password.
    """

    def __init__(self, url: str):
        self.name = "results table"
        with self._explained():
            address = make_url(url)
            self.name = address.render_as_string(hide_password=True)
            self._engine = _engine(address)
            self._create()

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

    def _create(self) -> None:
        """Create missing tables. Two processes can do so at the same moment: the slower one tries again."""
        for tries_left in reversed(range(_TRIES_TO_CREATE)):
            try:
                self._try_to_create()
            except SQLAlchemyError:
                if not tries_left:
                    raise
                time.sleep(0.1)
            else:
                return

    def _try_to_create(self) -> None:
        with self._engine.begin() as connection:
            self._check_schema(connection)
            tables.metadata.create_all(connection)
            for table, first in ((tables.schema, {"version": SCHEMA}), (tables.counter, {"id": 1, "last": 0})):
                if connection.scalar(sa.select(sa.func.count()).select_from(table)) == 0:
                    connection.execute(table.insert().values(first))

    def _check_schema(self, connection: Connection) -> None:
        if not sa.inspect(connection).has_table(tables.schema.name):
            return
        version = connection.scalar(sa.select(sa.func.max(tables.schema.c.version))) or SCHEMA
        if version > SCHEMA:
            raise ResultsError(
                f"{self.name}: written by a newer pinspect (schema {version}, this one reads up to {SCHEMA}); "
                "update pinspect, or set station.results to another database"
            )
        if version < SCHEMA:
            self._add_columns(connection)

    def _add_columns(self, connection: Connection) -> None:
        """Bring the tables of an older pinspect up to date; their rows have no value in the new columns."""
        table = tables.inspections
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.c:
            if column.name not in known:
                kind = column.type.compile(connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
        for index in table.indexes:
            index.create(connection, checkfirst=True)
        connection.execute(tables.schema.update().values(version=SCHEMA))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise ResultsError(
                f"{self.name}: the database driver is not installed; run pip install {error.name}"
            ) from None
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ResultsError(f"{self.name}: cannot be used as results table: {reason}") from error


def has_results(root: Path, settings: StationSettings) -> bool:
    """Return whether a project has a results table: named in the settings, or made by its station."""
    return bool(settings.results) or (root / STATION_FOLDER / _DATABASE).is_file()


def _engine(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return sa.create_engine(address, pool_pre_ping=True)
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(address, connect_args={"timeout": _WRITER_SECONDS})

    @event.listens_for(engine, "connect")
    def _set_up(connection, _) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
