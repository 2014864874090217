"""The localizer, the pin map, serial number and lot; the order of results, and how far each receiver has come."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add columns, of which earlier results have no values, and tables."""
    for column in (
        sa.Column("sequence", sa.BigInteger),
        sa.Column("serial", sa.String(255)),
        sa.Column("lot", sa.String(255)),
        sa.Column("localizer_position", sa.String(64)),
        sa.Column("localizer_disagrees", sa.Boolean),
        sa.Column("pin_map", sa.JSON),
    ):
        op.add_column("station_inspections", column)
    op.create_index("station_inspections_sequence", "station_inspections", ["sequence"], unique=True)
    op.create_index("station_inspections_serial", "station_inspections", ["serial"])
    op.create_index("station_inspections_lot", "station_inspections", ["lot", "received"])
    counter = op.create_table(
        "station_counter",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("last", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counter, [{"id": 1, "last": 0}])
    op.create_table(
        "station_receivers",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("delivered_at", sa.DateTime),
        sa.Column("error", sa.Text),
    )
