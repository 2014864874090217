"""The results table: every inspection once, and the verdicts of people.

It works with any SQLAlchemy URL; SQLite is the default. Several processes can write at the same time: the id of an
inspection is its primary key, so the database decides which writer was first. On SQLite, a result is on the disk
(write-ahead log, synchronous=FULL) when `record` returns.

Tables: `station_inspections`, one row per inspection; `station_corrections`, one row per verdict of a person, of which
the latest counts; `station_schema`, the version of the two. Times are UTC.
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
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, RowMapping, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from pinspect.core.errors import PinspectError
from pinspect.inspection.records import PIN_VALUES, Record, with_lists
from pinspect.station import results_tables as tables
from pinspect.station.settings import StationSettings

STATION = "station"
WATCH = "watch"
SCHEMA = 3
STATION_FOLDER = Path("data/station")
_DATABASE = "results.db"
_IDS_PER_QUERY = 500  # older SQLite takes 999 values per statement
_WRITER_SECONDS = 30
_TRIES_TO_CREATE = 5
_BUCKETS = {"hour": len("2026-01-31T23"), "day": len("2026-01-31"), "month": len("2026-01")}
_RECORDED = [column.name for column in tables.inspections.c if column.name not in ("id", "received", "hour", "source")]
_NO_VERDICTS = {"judged": 0, "judged_defective": 0, "escapes": 0, "overkill": 0}


class ResultsError(PinspectError):
    """The results table cannot be opened, read or written, or lacks an inspection."""


@dataclass(frozen=True)
class Correction:
    """Verdict of a person on an inspection; a confirmation repeats the model's verdict.

    Attributes:
        judgement: `passed` or `defective`.
        defect_mode: Defect mode, or `passed`.
        defect_position: Address of the pin, or `passed`.
        by: Name of the person.
        at: Time of the verdict (UTC).
        capture: File name of the capture made from the correction; None if there is none.
    """

    judgement: str
    defect_mode: str
    defect_position: str
    by: str
    at: datetime
    capture: str | None


@dataclass(frozen=True)
class Inspection:
    """An inspected capture. Fields not listed here are those of `PhotographInspector.inspect`.

    Attributes:
        id: Unique id.
        received: Time at which the capture came in (UTC, aware).
        source: `station` or `watch`.
        sha256: Hash of the image file, in hex.
        seconds: Duration of the forward pass that the capture shared.
        error: Why the capture could not be inspected; its answer and scores are then None. Else None.
        correction: Latest verdict of a person; None if there is none.
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
    localizer_position: str | None
    localizer_disagrees: bool | None
    pin_map: tuple[float, ...] | None
    brightness: float | None
    dst_background: float | None
    model_version: str | None
    seconds: float | None
    error: str | None
    correction: Correction | None

    def to_dict(self) -> dict:
        """Return the inspection for JSON: times in ISO 8601, tuples as lists."""
        record: Record = with_lists(asdict(self)) | {"received": self.received.isoformat()}
        if self.correction is not None:
            record["correction"]["at"] = self.correction.at.isoformat()
        return record


class ResultsTable:
    """The results table of a project. Threads can share an instance; each process opens its own.

    Every method raises ResultsError if the database cannot be used; its message has the URL without the password.

    Args:
        url: SQLAlchemy URL; missing tables are created. Tested on SQLite only.
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
        """Open the table at `settings.results`; if that is empty, SQLite in `data/station/` of the project."""
        return cls(settings.results or f"sqlite:///{(root / STATION_FOLDER / _DATABASE).resolve()}")

    def close(self) -> None:
        """Close all connections to the database."""
        self._engine.dispose()

    def record(self, record: Mapping, *, id: str, sha256: str, source: str, received: datetime) -> bool:
        """Store a record of `PhotographInspector.inspect`.

        Args:
            record: The record, with `model_version` and `seconds` if known.
            id: Unique id, at most 255 characters.
            sha256: Hash of the image file, in hex.
            source: `station` or `watch`.
            received: Time at which the capture came in.

        Returns:
            Whether the record is new. If the id is in the table already, nothing changes.
        """
        values = {name: record.get(name) for name in _RECORDED} | {"sha256": sha256}
        values |= {"id": id, "source": source, "received": received, "hour": _hour(received)}
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(tables.inspections.insert().values(values))
            except IntegrityError:
                if id in self.known([id]):
                    return False
                raise
        return True

    def get(self, id: str) -> Inspection | None:
        """Return the inspection with this id; None if there is none."""
        inspections = self._read(_query().where(tables.inspections.c.id == id))
        return inspections[0] if inspections else None

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
        """List inspections, the newest first.

        Args:
            limit: Most inspections to return.
            before: Id of the last inspection of the previous page; an unknown id returns nothing.
            judgement: Judgement of the model.
            mode: Defect mode of the model.
            version: Model version.
            since: Received at this time or later.
            until: Received before this time.
            corrected: Whether a person gave a verdict, confirming or not.
            text: Part of the file name, in upper or lower case.
        """
        table = tables.inspections.c
        query = _query().order_by(table.received.desc(), table.id.desc()).limit(limit)
        for column, value in ((table.judgement, judgement), (table.defect_mode, mode), (table.model_version, version)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(table.received >= since)
        if until is not None:
            query = query.where(table.received < until)
        if corrected is not None:
            query = query.where(tables.LATEST.c.number.is_not(None) if corrected else tables.LATEST.c.number.is_(None))
        if text:
            query = query.where(table.file.icontains(text, autoescape=True))
        if before is not None:
            last = sa.select(table.received).where(table.id == before).scalar_subquery()
            # The first condition is sufficient; the second one lets the database use the index.
            earlier = sa.or_(table.received < last, sa.and_(table.received == last, table.id < before))
            query = query.where(earlier, table.received <= last)
        return self._read(query)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Return the ids that are in the table."""
        ids = [*ids]
        known: set[str] = set()
        with self._explained(), self._engine.connect() as connection:
            for start in range(0, len(ids), _IDS_PER_QUERY):
                chunk = tables.inspections.c.id.in_(ids[start : start + _IDS_PER_QUERY])
                known.update(connection.scalars(sa.select(tables.inspections.c.id).where(chunk)))
        return known

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
        """Store a person's verdict on an inspection. The latest verdict counts; earlier ones are kept.

        Args:
            id: Id of the inspection.
            judgement: `passed` or `defective`.
            defect_mode: Defect mode, or `passed`.
            defect_position: Address of the pin, or `passed`.
            by: Name of the person.
            at: Time of the verdict.
            capture: File name of the capture made from the correction, if any.

        Raises:
            ResultsError: There is no inspection with this id.
        """
        values = {"judgement": judgement, "defect_mode": defect_mode, "defect_position": defect_position}
        values |= {"inspection": id, "by": by, "at": at, "capture": capture}
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    connection.execute(tables.corrections.insert().values(values))
            except IntegrityError:
                if id in self.known([id]):
                    raise
                raise ResultsError(f"{self._name}: no inspection {id!r}") from None

    def outcomes(self, *, bucket: Literal["hour", "day", "month"] = "day", since: datetime | None = None) -> list[dict]:
        """Count outcomes per hour, day or month (UTC), the oldest first.

        Args:
            bucket: Length of a period.
            since: Start of the first period; None for all.

        Returns:
            One dict per period with inspections. `bucket`: start of the period in ISO 8601. `inspected`: captures that
            could be inspected. `defective`: judged defective by the model. `yield`: share judged passed by the model.
            `judged`: with a person's verdict. `judged_defective`: judged defective by a person. `escapes`: passed by
            the model, defective by a person. `overkill`: defective by the model, passed by a person.
        """
        if bucket not in _BUCKETS:
            raise ValueError(f"expected one of {list(_BUCKETS)}, got {bucket!r}")
        when = sa.func.substr(tables.inspections.c.hour, 1, sa.literal_column(str(_BUCKETS[bucket]))).label("bucket")
        queries = [
            sums.add_columns(when).group_by("bucket").order_by("bucket") for sums in (tables.BY_MODEL, tables.BY_PERSON)
        ]
        if since is not None:
            queries = [sums.where(tables.inspections.c.received >= since) for sums in queries]
        with self._explained(), self._engine.connect() as connection:
            by_model, by_person = ([dict(row) for row in connection.execute(sums).mappings()] for sums in queries)
        judged = {row["bucket"]: row for row in by_person}
        return [
            {**row, "yield": 1 - row["defective"] / row["inspected"], **_NO_VERDICTS, **judged.get(row["bucket"], {})}
            for row in by_model
        ]

    def latest(self, n: int, columns: Sequence[str]) -> pd.DataFrame:
        """Return `columns` of the latest `n` captures, the newest first.

        Captures that could not be inspected are included only if `columns` has `error`.
        """
        query = sa.select(*(tables.inspections.c[name] for name in columns))
        if "error" not in columns:
            query = query.where(tables.inspections.c.error.is_(None))
        query = query.order_by(tables.inspections.c.received.desc(), tables.inspections.c.id.desc()).limit(n)
        with self._explained(), self._engine.connect() as connection:
            return pd.DataFrame(connection.execute(query).all(), columns=list(columns))

    def counts(self) -> dict[str, int]:
        """Count all inspections: the counts of `outcomes`, and `errors`, captures that could not be inspected."""
        errors = (
            sa.select(sa.func.count()).select_from(tables.inspections).where(tables.inspections.c.error.is_not(None))
        )
        with self._explained(), self._engine.connect() as connection:
            by_model, by_person = (
                connection.execute(sums).mappings().one() for sums in (tables.BY_MODEL, tables.BY_PERSON)
            )
            return {**by_model, **by_person, "errors": connection.scalar(errors) or 0}

    def prune(self, before: datetime, *, dry_run: bool = False) -> int:
        """Delete the inspections that came in before a time, with their verdicts.

        A file that `pinspect watch` still finds in its folder is inspected again when its result is gone.

        Args:
            before: The time.
            dry_run: Delete nothing.

        Returns:
            How many inspections were deleted, or would be.
        """
        old = tables.inspections.c.received < before
        with self._explained(), self._engine.begin() as connection:
            count = connection.scalar(sa.select(sa.func.count()).select_from(tables.inspections).where(old)) or 0
            if count and not dry_run:
                ids = sa.select(tables.inspections.c.id).where(old)
                connection.execute(tables.corrections.delete().where(tables.corrections.c.inspection.in_(ids)))
                connection.execute(tables.inspections.delete().where(old))
        return count

    def _read(self, query: sa.Select) -> list[Inspection]:
        with self._explained(), self._engine.connect() as connection:
            return [_inspection(row) for row in connection.execute(query).mappings()]

    def _create(self) -> None:
        """Create missing tables. Two processes can do so at the same moment: the slower one tries again."""
        for tries_left in reversed(range(_TRIES_TO_CREATE)):
            try:
                self._try_to_create()
            except SQLAlchemyError:
                if not tries_left:
                    raise
                time.sleep(0.1)
            else:
                return

    def _try_to_create(self) -> None:
        with self._engine.begin() as connection:
            self._check_schema(connection)
            tables.metadata.create_all(connection)
            if connection.scalar(sa.select(sa.func.count()).select_from(tables.schema)) == 0:
                connection.execute(tables.schema.insert().values(version=SCHEMA))

    def _check_schema(self, connection: Connection) -> None:
        if not sa.inspect(connection).has_table(tables.schema.name):
            return
        version = connection.scalar(sa.select(sa.func.max(tables.schema.c.version))) or SCHEMA
        if version > SCHEMA:
            raise ResultsError(
                f"{self._name}: written by a newer pinspect (schema {version}, this one reads up to {SCHEMA}); "
                "update pinspect, or set station.results to another database"
            )
        if version < SCHEMA:
            self._add_columns(connection)

    def _add_columns(self, connection: Connection) -> None:
        """Bring the tables of an older pinspect up to date; their rows have no value in the new columns."""
        table = tables.inspections
        known = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
        for column in table.c:
            if column.name not in known:
                kind = column.type.compile(connection.dialect)
                connection.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}"))
        connection.execute(tables.schema.update().values(version=SCHEMA))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            raise ResultsError(
                f"{self._name}: the database driver is not installed; run pip install {error.name}"
            ) from None
        except (SQLAlchemyError, OSError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ResultsError(f"{self._name}: cannot be used as results table: {reason}") from error


def has_results(root: Path, settings: StationSettings) -> bool:
    """Return whether a project has a results table: named in the settings, or made by its station."""
    return bool(settings.results) or (root / STATION_FOLDER / _DATABASE).is_file()


def watch_id(file: str, sha256: str) -> str:
    """Return the id of a watched capture; equal bytes under the same name have the same id.

    Args:
        file: Path of the file, relative to its inbox.
        sha256: Hash of the file, in hex.
    """
    name = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{WATCH}-{sha256}-{name[:16]}"


def _engine(address: URL) -> Engine:
    if address.get_backend_name() != "sqlite":
        return sa.create_engine(address, pool_pre_ping=True)
    if address.database:
        Path(address.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(address, connect_args={"timeout": _WRITER_SECONDS})

    @event.listens_for(engine, "connect")
    def _set_up(connection, _) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _hour(received: datetime) -> str:
    return f"{received if received.tzinfo is None else received.astimezone(UTC):%Y-%m-%dT%H}"


def _query() -> sa.Select:
    correction = [tables.LATEST.c[field.name].label(f"correction_{field.name}") for field in fields(Correction)]
    return sa.select(tables.inspections, *correction).select_from(tables.JUDGED)


def _inspection(row: RowMapping) -> Inspection:
    values = {field.name: row[field.name] for field in fields(Inspection) if field.name != "correction"}
    values |= {name: tuple(values[name]) for name in PIN_VALUES if values[name] is not None}
    verdict = {field.name: row[f"correction_{field.name}"] for field in fields(Correction)}
    return Inspection(**values, correction=None if verdict["judgement"] is None else Correction(**verdict))
