"""What Alembic runs: the revisions, on the connection and in the transaction of the caller."""

from alembic import context

from pinspect.station.migrations import VERSION_TABLE
from pinspect.station.results_tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
