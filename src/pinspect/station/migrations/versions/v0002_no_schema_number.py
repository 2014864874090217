"""Alembic's own table has the revision; the number of the schema goes."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Drop the table with the number."""
    op.drop_table("station_schema")
