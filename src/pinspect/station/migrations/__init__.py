"""The schema of the results tables: Alembic's revisions in `versions/`, one file a change.

A change of `results_tables` needs a further file there; a test compares the tables with what the revisions make.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

VERSION_TABLE = "station_alembic_version"  # MLflow and Prefect have tables named alembic_version
_REVISIONS = {1: "0001", 4: "0002"}  # of the numbers in the table station_schema, which came before revisions


class UnknownSchemaError(Exception):
    """The tables have a schema that no revision describes."""


def is_current(connection: Connection) -> bool:
    """Return whether the tables have the schema of this pinspect.

    Raises:
        UnknownSchemaError: A newer pinspect has made the tables, or one that was never released.
    """
    return _revision(connection) == _scripts().get_current_head()


def upgrade(connection: Connection) -> None:
    """Create the tables, or bring them up to date, alone and in the transaction of the caller.

    Raises:
        UnknownSchemaError: As in `is_current`; nothing has changed.
    """
    config = _config()
    config.attributes["connection"] = connection
    if _revision(connection) is None and (schema := _schema(connection)):
        if schema not in _REVISIONS:
            raise UnknownSchemaError(f"schema {schema} of a pinspect that was never released")
        command.stamp(config, _REVISIONS[schema])
    command.upgrade(config, "head")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "pinspect.station:migrations")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(Path(__file__).parent))


def _revision(connection: Connection) -> str | None:
    """Return the revision of the tables; None if they have none."""
    revision = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise UnknownSchemaError(f"revision {revision} of a newer pinspect, this one reads up to {max(known)}")
    return revision


def _schema(connection: Connection) -> int | None:
    """Return the number that pinspect gave its schema before it had revisions; None if there are no tables."""
    if not sa.inspect(connection).has_table("station_schema"):
        return None
    return connection.scalar(sa.text("SELECT max(version) FROM station_schema"))
