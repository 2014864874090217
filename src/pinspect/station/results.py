"""The results table: every inspection once, and what people said about it.

Any SQLAlchemy URL will do; sqlite is the default. Several processes may write at the same time: an inspection's id is
its primary key, so that the database itself decides who was first. On sqlite a result that `record` took is on the disk
(write-ahead log, synchronous=FULL), whatever happens to the process then.

Tables: `station_inspections`, a row an inspection; `station_corrections`, a row each time that a person judged one, of
which the latest counts; `station_schema`, the version of the two. Times are UTC.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, RowMapping, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.errors import PinspectError
from pinspect.station.settings import StationSettings

STATION = "station"
WATCH = "watch"
SCHEMA = 1
STATION_FOLDER = Path("data/station")
_IDS_A_QUERY = 500  # older sqlite takes 999 values a statement
_SECONDS_TO_WAIT_FOR_A_WRITER = 30
_TRIES_TO_CREATE = 5
_BUCKETS = {"hour": len("2026-01-31T23"), "day": len("2026-01-31"), "month": len("2026-01")}


class ResultsError(PinspectError):
    """The results table cannot be opened, read or written, or does not hold what was asked for."""


@dataclass(frozen=True)
class Correction:
    """What a person said about an inspection, confirming it or not. capture: its name among the captures, if any."""

    judgement: str
    defect_mode: str
    defect_position: str
    by: str
    at: datetime
    capture: str | None


@dataclass(frozen=True)
class Inspection:
    """One inspected capture.

    received: UTC, aware. source: `station` or `watch`. seconds: how long it took, of the whole batch that it was in.
    error: None, or why it could not be inspected; the answer and its scores are then None. All else: see
    `serving.inspection.CaptureInspector.inspect`.
    """

    id: str
    received: datetime
    source: str
    file: str
    sha256: str
    image_type: str | None
    number_of_pins: str | None
    judgement: str | None
    defect_mode: str | None
    defect_position: str | None
    answer: str | None
    p_defective: float | None
    threshold: float | None
    address_entropy: float | None
    address_probabilities: tuple[float, ...] | None
    brightness: float | None
    dst_background: float | None
    model_version: str | None
    seconds: float | None
    error: str | None
    correction: Correction | None

    def to_dict(self) -> dict:
        """Everything as JSON has it: times in ISO 8601, tuples as lists."""
        told = asdict(self) | {"received": self.received.isoformat()}
        if self.address_probabilities is not None:
            told["address_probabilities"] = list(self.address_probabilities)
        if self.correction is not None:
            told["correction"]["at"] = self.correction.at.isoformat()
        return told


class _Utc(sa.TypeDecorator):
    """A time in UTC, for databases that know no time zones; one without a zone is taken for UTC."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect) -> datetime | None:
        return value if value is None or value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


class _Text(sa.TypeDecorator):
    """Text that every database takes: a file's name may hold bytes that are no UTF-8, an answer anything."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect) -> str | None:
        return None if value is None else value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


_metadata = sa.MetaData()
_schema = sa.Table("station_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
_inspections = sa.Table(
    "station_inspections",
    _metadata,
    sa.Column("id", sa.String(255), primary_key=True),
    sa.Column("received", _Utc, nullable=False),
    sa.Column("hour", sa.String(13), nullable=False),  # of `received`: databases cut times in ways of their own
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("file", _Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("image_type", sa.String(64)),
    sa.Column("number_of_pins", sa.String(64)),
    sa.Column("judgement", sa.String(16)),
    sa.Column("defect_mode", sa.String(64)),
    sa.Column("defect_position", sa.String(64)),
    sa.Column("answer", _Text),
    sa.Column("p_defective", sa.Double),
    sa.Column("threshold", sa.Double),
    sa.Column("address_entropy", sa.Double),
    sa.Column("address_probabilities", sa.JSON(none_as_null=True)),
    sa.Column("brightness", sa.Double),
    sa.Column("dst_background", sa.Double),
    sa.Column("model_version", sa.String(64)),
    sa.Column("seconds", sa.Double),
    sa.Column("error", _Text),
    sa.Index("station_inspections_received", "received", "id"),
    sa.Index("station_inspections_judgement", "judgement", "received"),
    sa.Index("station_inspections_sha256", "sha256"),
)
_corrections = sa.Table(
    "station_corrections",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("inspection", sa.ForeignKey(_inspections.c.id), nullable=False, index=True),
    sa.Column("judgement", sa.String(16), nullable=False),
    sa.Column("defect_mode", sa.String(64), nullable=False),
    sa.Column("defect_position", sa.String(64), nullable=False),
    sa.Column("by", _Text, nullable=False),
    sa.Column("at", _Utc, nullable=False),
    sa.Column("capture", _Text),
)
_RECORDED = [column.name for column in _inspections.c if column.name not in ("id", "received", "hour", "source")]
_LATEST = (
    sa.select(_corrections)
    .where(_corrections.c.number.in_(sa.select(sa.func.max(_corrections.c.number)).group_by(_corrections.c.inspection)))
    .subquery("latest")
)
_JUDGED = _inspections.outerjoin(_LATEST, _LATEST.c.inspection == _inspections.c.id)


def _sums(rows: sa.FromClause, **counted: sa.ColumnElement[bool]) -> sa.Select:
    """How many `rows` of inspected captures are what each name says."""
    columns = [sa.func.count(sa.case((what, 1))).label(name) for name, what in counted.items()]
    return sa.select(*columns).select_from(rows).where(_inspections.c.error.is_(None))


# Two questions: what people judged is little beside what was inspected, and is found by itself.
_BY_MODEL = _sums(_inspections, inspected=sa.true(), defective=_inspections.c.judgement == DEFECTIVE)
_BY_PERSON = _sums(
    _LATEST.join(_inspections, _LATEST.c.inspection == _inspections.c.id),
    judged=sa.true(),
    judged_defective=_LATEST.c.judgement == DEFECTIVE,
    escapes=sa.and_(_inspections.c.judgement == PASSED, _LATEST.c.judgement == DEFECTIVE),
    overkill=sa.and_(_inspections.c.judgement == DEFECTIVE, _LATEST.c.judgement == PASSED),
)
_NOBODY = {"judged": 0, "judged_defective": 0, "escapes": 0, "overkill": 0}


class ResultsTable:
    """The results table of a project. Threads may share one; processes open their own.

    url: any SQLAlchemy URL; its tables are made if they are not there. Tried on sqlite only. Everything here
    raises ResultsError, which names the database without its password, when that cannot be used.
    """

    def __init__(self, url: str):
        self._name = "results table"
        with self._explained():
            address = make_url(url)
            self._name = address.render_as_string(hide_password=True)
            self._engine = _engine(address)
            self._create()

    @classmethod
    def of_project(cls, root: Path, settings: StationSettings) -> ResultsTable:
        """The table that `settings.results` names; where it is empty, sqlite in `data/station/` of the project."""
        return cls(settings.results or f"sqlite:///{(root / STATION_FOLDER / 'results.db').resolve()}")

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def record(self, record: Mapping, *, id: str, sha256: str, source: str, received: datetime) -> bool:
        """Keep a record of `CaptureInspector.inspect` with its model_version and seconds, as far as it has them.

        id: what must never be there twice, 255 characters at most. False when it is there already; nothing changes
        then, whoever else is writing at the same moment.
        """
        values = {name: record.get(name) for name in _RECORDED} | {"sha256": sha256}
        values |= {"id": id, "source": source, "received": received, "hour": _hour(received)}
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(_inspections.insert().values(values))
            except IntegrityError:
                if id in self.known([id]):
                    return False
                raise
        return True

    def get(self, id: str) -> Inspection | None:
        """The inspection with this id; None where there is none."""
        found = self._read(_told().where(_inspections.c.id == id))
        return found[0] if found else None

    def list(
        self,
        *,
        limit: int = 50,
        before: str | None = None,
        judgement: str | None = None,
        mode: str | None = None,
        version: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        corrected: bool | None = None,
        text: str | None = None,
    ) -> list[Inspection]:
        """Inspections, the newest first.

        before: the id of the last one of the page before; an id that is not there gives none. judgement, mode,
        version: what the model said, and which one. since (included), until (not): when they were received. corrected:
        whether a person judged it, confirming or not. text: occurs in the file's name, in either case.
        """
        table = _inspections.c
        asked = _told().order_by(table.received.desc(), table.id.desc()).limit(limit)
        for column, value in ((table.judgement, judgement), (table.defect_mode, mode), (table.model_version, version)):
            if value is not None:
                asked = asked.where(column == value)
        if since is not None:
            asked = asked.where(table.received >= since)
        if until is not None:
            asked = asked.where(table.received < until)
        if corrected is not None:
            asked = asked.where(_LATEST.c.number.is_not(None) if corrected else _LATEST.c.number.is_(None))
        if text:
            asked = asked.where(table.file.icontains(text, autoescape=True))
        if before is not None:
            last = sa.select(table.received).where(table.id == before).scalar_subquery()
            # The first condition alone would do; the database finds its place in the index by the second one.
            earlier = sa.or_(table.received < last, sa.and_(table.received == last, table.id < before))
            asked = asked.where(earlier, table.received <= last)
        return self._read(asked)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are in the table."""
        ids = [*ids]
        found: set[str] = set()
        with self._explained(), self._engine.connect() as connection:
            for start in range(0, len(ids), _IDS_A_QUERY):
                some = _inspections.c.id.in_(ids[start : start + _IDS_A_QUERY])
                found.update(connection.scalars(sa.select(_inspections.c.id).where(some)))
        return found

    def correct(
        self,
        id: str,
        *,
        judgement: str,
        defect_mode: str,
        defect_position: str,
        by: str,
        at: datetime,
        capture: str | None,
    ) -> None:
        """Keep what a person says about an inspection; to confirm is to say the same. The latest counts, all are kept.

        Raises ResultsError when there is no inspection with this id.
        """
        values = {"judgement": judgement, "defect_mode": defect_mode, "defect_position": defect_position}
        values |= {"inspection": id, "by": by, "at": at, "capture": capture}
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(_corrections.insert().values(values))
            except IntegrityError:
                if id in self.known([id]):
                    raise
                raise ResultsError(f"{self._name}: no inspection {id!r}") from None

    def outcomes(self, *, bucket: Literal["hour", "day", "month"] = "day", since: datetime | None = None) -> list[dict]:
        """What came out over time, the oldest first: a dict for each hour, day or month (UTC) with inspections.

        bucket: its beginning in ISO 8601. inspected: how many could be. defective: how many of those the model called
        so. yield: the share of the others. judged: by a person. judged_defective: those that the person called so.
        escapes: judged defective, called passed. overkill: judged passed, called defective.
        """
        if bucket not in _BUCKETS:
            raise ValueError(f"expected one of {list(_BUCKETS)}, found {bucket!r}")
        when = sa.func.substr(_inspections.c.hour, 1, sa.literal_column(str(_BUCKETS[bucket]))).label("bucket")
        asked = [sums.add_columns(when).group_by("bucket").order_by("bucket") for sums in (_BY_MODEL, _BY_PERSON)]
        if since is not None:
            asked = [sums.where(_inspections.c.received >= since) for sums in asked]
        with self._explained(), self._engine.connect() as connection:
            told, judged = ([dict(row) for row in connection.execute(sums).mappings()] for sums in asked)
        said = {row["bucket"]: row for row in judged}
        return [
            {**row, "yield": 1 - row["defective"] / row["inspected"], **_NOBODY, **said.get(row["bucket"], {})}
            for row in told
        ]

    def latest(self, n: int, columns: Sequence[str]) -> pd.DataFrame:
        """`columns` of the latest `n` captures, the newest first; those that could not be inspected only where `error`
        is asked for."""
        asked = sa.select(*(_inspections.c[name] for name in columns))
        if "error" not in columns:
            asked = asked.where(_inspections.c.error.is_(None))
        asked = asked.order_by(_inspections.c.received.desc(), _inspections.c.id.desc()).limit(n)
        with self._explained(), self._engine.connect() as connection:
            return pd.DataFrame(connection.execute(asked).all(), columns=list(columns))

    def counts(self) -> dict[str, int]:
        """How many there are in all: inspected, defective, judged, judged_defective, escapes, overkill (see
        `outcomes`), and errors: those that could not be inspected."""
        errors = sa.select(sa.func.count()).select_from(_inspections).where(_inspections.c.error.is_not(None))
        with self._explained(), self._engine.connect() as connection:
            told, judged = (connection.execute(sums).mappings().one() for sums in (_BY_MODEL, _BY_PERSON))
            return {**told, **judged, "errors": connection.scalar(errors)}

    def _read(self, asked: sa.Select) -> list[Inspection]:
        with self._explained(), self._engine.connect() as connection:
            return [_inspection(row) for row in connection.execute(asked).mappings()]

    def _create(self) -> None:
        """Make what is missing. Two processes may begin at the same moment: the slower one looks again."""
        for left in reversed(range(_TRIES_TO_CREATE)):
            try:
                with self._engine.begin() as connection:
                    self._check_schema(connection)
                    _metadata.create_all(connection)
                    if connection.scalar(sa.select(sa.func.count()).select_from(_schema)) == 0:
                        connection.execute(_schema.insert().values(version=SCHEMA))
                return
            except SQLAlchemyError:
                if not left:
                    raise
                time.sleep(0.1)

    def _check_schema(self, connection: Connection) -> None:
        if not sa.inspect(connection).has_table(_schema.name):
            return
        found = connection.scalar(sa.select(sa.func.max(_schema.c.version))) or SCHEMA
        if found > SCHEMA:
            raise ResultsError(
                f"{self._name}: written by a newer pinspect (schema {found}, this one knows {SCHEMA}); "
                "update pinspect, or name another database in station.results"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise ResultsError(f"{self._name}: its driver is not installed: pip install {error.name}") from None
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ResultsError(f"{self._name}: not usable as results table: {reason}") from error


def watch_id(file: str, sha256: str) -> str:
    """The id of a watched capture: the same for the same bytes under the same name. file: relative to its inbox."""
    name = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{WATCH}-{sha256}-{name[:16]}"


def _engine(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return sa.create_engine(address, pool_pre_ping=True)
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(address, connect_args={"timeout": _SECONDS_TO_WAIT_FOR_A_WRITER})

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection, _) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _hour(received: datetime) -> str:
    return f"{received if received.tzinfo is None else received.astimezone(UTC):%Y-%m-%dT%H}"


def _told() -> sa.Select:
    correction = [_LATEST.c[field.name].label(f"correction_{field.name}") for field in fields(Correction)]
    return sa.select(_inspections, *correction).select_from(_JUDGED)


def _inspection(row: RowMapping) -> Inspection:
    values = {field.name: row[field.name] for field in fields(Inspection) if field.name != "correction"}
    if values["address_probabilities"] is not None:
        values["address_probabilities"] = tuple(values["address_probabilities"])
    said = {field.name: row[f"correction_{field.name}"] for field in fields(Correction)}
    return Inspection(**values, correction=None if said["judgement"] is None else Correction(**said))
