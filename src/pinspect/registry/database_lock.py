"""A lock between machines: an advisory lock of the PostgreSQL database that they share."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from pinspect.core.errors import RegistryError, RegistryUnreachableError
from pinspect.core.postgres import CONNECT_SECONDS, INSTALL, lock_number, with_driver

_SILENT_SECONDS = 3
_MISTAKE = re.compile("authentication failed|does not exist|pg_hba|no password")
# The server frees the lock of a machine that has lost its power or its network after about a minute.
_KEEPALIVES = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def database_lock(url: str, name: str) -> Iterator[Callable[[], None]]:
    """Hold an advisory lock during the context; wait for it while another process of any machine holds it.

    The server frees the lock when the connection of its holder ends.

    Args:
        url: URL of the PostgreSQL database.
        name: Name of the lock in this database.

    Yields:
        A function that raises RegistryError if the lock is lost, because the connection broke.

    Raises:
        RegistryUnreachableError: No server answers.
        RegistryError: The server refuses the connection, or the driver is missing.
    """
    shown, number = url, lock_number(name)
    try:
        address = sa.make_url(with_driver(url))
        shown = address.render_as_string(hide_password=True)
        engine = sa.create_engine(
            address,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": CONNECT_SECONDS},
        )
        connection = engine.connect()
    except ModuleNotFoundError:
        raise RegistryError(f"{shown}: the database driver is not installed; run {INSTALL}") from None
    except SQLAlchemyError as error:
        raise _refused(shown, error) from error
    with contextlib.closing(connection):
        _acquire(connection, number, f"{shown}: waiting for another process that registers or promotes")
        yield lambda: _check(connection, shown)


def _acquire(connection: Connection, number: int, who_waits: str) -> None:
    connection.exec_driver_sql(_KEEPALIVES)
    lock = f"SELECT pg_advisory_lock({number})"
    connection.exec_driver_sql(f"SET lock_timeout = '{_SILENT_SECONDS}s'")
    try:
        connection.exec_driver_sql(lock)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":  # lock_not_available
            raise
        _log.warning(who_waits)
        connection.exec_driver_sql("SET lock_timeout = 0")
        connection.exec_driver_sql(lock)


def _check(connection: Connection, shown: str) -> None:
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        raise RegistryUnreachableError(
            f"{shown}: the connection that held the lock has ended, so another machine may have it; nothing was moved, "
            "try again"
        ) from None


def _refused(shown: str, error: SQLAlchemyError) -> RegistryError:
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    if _MISTAKE.search(reason):
        return RegistryError(
            f"{shown}: PostgreSQL refuses the connection ({reason}); correct user, password or database"
        )
    return RegistryUnreachableError(f"{shown}: no PostgreSQL server answers ({reason}); start it, then try again")
