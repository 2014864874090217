"""The SQLAlchemy tables behind `results.ResultsTable`, and the parts of its queries that never change."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from pinspect.core.answers import DEFECTIVE, PASSED

LONGEST_TRACE = 255  # characters of a serial number or a lot


class Utc(sa.TypeDecorator):
    """A time in UTC, for databases without time zones; a time without a zone is taken as UTC."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert to UTC without a zone."""
        return value if value is None or value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Add the zone UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


class Text(sa.TypeDecorator):
    """Text that every database accepts: file names can hold bytes that are not UTF-8, answers any character."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Escape bytes that are not UTF-8, and null characters."""
        return None if value is None else value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


metadata = sa.MetaData()
# The number of the latest result. A writer holds the row until its result is committed, so that results become visible
# in the order of their numbers; a database's own sequence would not guarantee it.
counter = sa.Table(
    "station_counter",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
inspections = sa.Table(
    "station_inspections",
    metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("received", Utc, nullable=False),
    sa.Column("hour", sa.String(13), nullable=False),  # of `received`; every database truncates times differently
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("file", Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("serial", sa.String(LONGEST_TRACE)),
    sa.Column("lot", sa.String(LONGEST_TRACE)),
    sa.Column("image_type", sa.String(64)),
    sa.Column("number_of_pins", sa.String(64)),
    sa.Column("judgement", sa.String(16)),
    sa.Column("defect_mode", sa.String(64)),
    sa.Column("defect_position", sa.String(64)),
    sa.Column("answer", Text),
    sa.Column("p_defective", sa.Double),
    sa.Column("threshold", sa.Double),
    sa.Column("address_entropy", sa.Double),
    sa.Column("address_probabilities", sa.JSON(none_as_null=True)),
    sa.Column("localizer_position", sa.String(64)),
    sa.Column("localizer_disagrees", sa.Boolean),
    sa.Column("pin_map", sa.JSON(none_as_null=True)),
    sa.Column("brightness", sa.Double),
    sa.Column("dst_background", sa.Double),
    sa.Column("model_version", sa.String(64)),
    sa.Column("seconds", sa.Double),
    sa.Column("error", Text),
    sa.Index("station_inspections_received", "received", "id"),
    sa.Index("station_inspections_judgement", "judgement", "received"),
    sa.Index("station_inspections_sha256", "sha256"),
    sa.Index("station_inspections_sequence", "sequence", unique=True),
    sa.Index("station_inspections_serial", "serial"),
    sa.Index("station_inspections_lot", "lot", "received"),
)
corrections = sa.Table(
    "station_corrections",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("inspection", sa.ForeignKey(inspections.c.id), nullable=False, index=True),
    sa.Column("judgement", sa.String(16), nullable=False),
    sa.Column("defect_mode", sa.String(64), nullable=False),
    sa.Column("defect_position", sa.String(64), nullable=False),
    sa.Column("by", Text, nullable=False),
    sa.Column("at", Utc, nullable=False),
    sa.Column("capture", Text),
)
receivers = sa.Table(
    "station_receivers",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),  # sequence of the latest result that the receiver confirmed
    sa.Column("delivered_at", Utc),
    sa.Column("error", Text),
)
LATEST = (
    sa.select(corrections)
    .where(corrections.c.number.in_(sa.select(sa.func.max(corrections.c.number)).group_by(corrections.c.inspection)))
    .subquery("latest")
)
JUDGED = inspections.outerjoin(LATEST, LATEST.c.inspection == inspections.c.id)


def _sums(rows: sa.FromClause, **counted: sa.ColumnElement[bool]) -> sa.Select:
    """Query that counts the rows of inspected captures that meet each named condition."""
    columns = [sa.func.count(sa.case((condition, 1))).label(name) for name, condition in counted.items()]
    return sa.select(*columns).select_from(rows).where(inspections.c.error.is_(None))


# Two queries: there are far fewer verdicts of people than inspections, and an index leads to them.
BY_MODEL = _sums(inspections, inspected=sa.true(), defective=inspections.c.judgement == DEFECTIVE)
BY_PERSON = _sums(
    LATEST.join(inspections, LATEST.c.inspection == inspections.c.id),
    judged=sa.true(),
    judged_defective=LATEST.c.judgement == DEFECTIVE,
    escapes=sa.and_(inspections.c.judgement == PASSED, LATEST.c.judgement == DEFECTIVE),
    overkill=sa.and_(inspections.c.judgement == DEFECTIVE, LATEST.c.judgement == PASSED),
)
