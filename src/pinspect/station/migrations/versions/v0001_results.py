"""The tables of pinspect 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table("station_schema", sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
    op.create_table(
        "station_inspections",
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("received", sa.DateTime, nullable=False),
        sa.Column("hour", sa.String(13), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("image_type", sa.String(64)),
        sa.Column("number_of_pins", sa.String(64)),
        sa.Column("judgement", sa.String(16)),
        sa.Column("defect_mode", sa.String(64)),
        sa.Column("defect_position", sa.String(64)),
        sa.Column("answer", sa.Text),
        sa.Column("p_defective", sa.Double),
        sa.Column("threshold", sa.Double),
        sa.Column("address_entropy", sa.Double),
        sa.Column("address_probabilities", sa.JSON),
        sa.Column("brightness", sa.Double),
        sa.Column("dst_background", sa.Double),
        sa.Column("model_version", sa.String(64)),
        sa.Column("seconds", sa.Double),
        sa.Column("error", sa.Text),
    )
    for columns in (["received", "id"], ["judgement", "received"], ["sha256"]):
        op.create_index(f"station_inspections_{columns[0]}", "station_inspections", columns)
    op.create_table(
        "station_corrections",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("inspection", sa.String(255), sa.ForeignKey("station_inspections.id"), nullable=False, index=True),
        sa.Column("judgement", sa.String(16), nullable=False),
        sa.Column("defect_mode", sa.String(64), nullable=False),
        sa.Column("defect_position", sa.String(64), nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("capture", sa.Text),
    )
