"""PostgreSQL: the driver of its URLs, and the numbers of its advisory locks."""

from __future__ import annotations

import hashlib

INSTALL = "pip install 'pinspect[postgres]'"
CONNECT_SECONDS = 10  # a server that is down often gives no answer at all
_DRIVER = "postgresql+psycopg://"


def with_driver(url: str) -> str:
    """Return the URL of a PostgreSQL database with psycopg as its driver; any other URL stays as it is.

    SQLAlchemy takes psycopg2 for a URL without a driver, which pinspect does not install.
    """
    scheme, separator, address = url.partition("://")
    return f"{_DRIVER}{address}" if separator and scheme in {"postgresql", "postgres"} else url


def is_postgres(url: str) -> bool:
    """Return whether a URL is that of a PostgreSQL database."""
    return with_driver(url).startswith("postgresql")


def lock_number(name: str) -> int:
    """Return the number of the advisory lock with this name: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
