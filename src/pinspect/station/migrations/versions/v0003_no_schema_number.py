"""Alembic's own table has the revision; the number of the schema goes."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Drop the table with the number."""
    op.drop_table("station_schema")
