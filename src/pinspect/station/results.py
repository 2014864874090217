"""The results table: every inspection once, and the verdicts of people.

It works with SQLite, the default, and with PostgreSQL. Several processes can write at the same time: the id of an
inspection is its primary key, so the database decides which writer was first. On SQLite, a result is on the disk
(write-ahead log, synchronous=FULL) when `record` returns.

Tables: `station_inspections`, one row per inspection, numbered by `sequence` in the order in which results were stored;
`station_corrections`, one row per verdict of a person, of which the latest counts; `station_receivers`, how far each
receiver of results has come (`outbox`); `station_counter`, the latest number. `migrations` makes them. Times are UTC.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Literal, Unpack

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import IntegrityError

from pinspect.inspection.records import PIN_VALUES, Record, with_lists
from pinspect.station import results_tables as tables
from pinspect.station.results_database import ResultsDatabase, ResultsError
from pinspect.station.results_query import Filters, conditions

STATION = "station"
WATCH = "watch"
_IDS_PER_QUERY = 500  # older SQLite takes 999 values per statement
_ROWS_PER_QUERY = 500
_BUCKETS = {"hour": len("2026-01-31T23"), "day": len("2026-01-31"), "month": len("2026-01")}
_OURS = ("id", "sequence", "received", "hour", "source")
_RECORDED = [column.name for column in tables.inspections.c if column.name not in _OURS]
_NO_VERDICTS = {"judged": 0, "judged_defective": 0, "escapes": 0, "overkill": 0}


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
        sequence: Number of the result in the order in which results were stored, from 1; None if an earlier pinspect
            stored the result.
        received: Time at which the capture came in (UTC, aware).
        source: `station` or `watch`.
        sha256: Hash of the image file, in hex.
        serial: Serial number of the connector; None if unknown.
        lot: Lot of the connector; None if unknown.
        seconds: Duration of the forward pass that the capture shared.
        error: Why the capture could not be inspected; its answer and scores are then None. Else None.
        correction: Latest verdict of a person; None if there is none.
    """

    id: str
    sequence: int | None
    received: datetime
    source: str
    file: str
    sha256: str
    serial: str | None
    lot: str | None
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


@dataclass(frozen=True)
class NewResult:
    """A result to store; see `ResultsTable.record`."""

    record: Mapping
    id: str
    sha256: str
    source: str
    received: datetime

    def row(self) -> dict:
        """Return the row of the table, without its sequence number."""
        row = {name: self.record.get(name) for name in _RECORDED} | {"sha256": self.sha256, "id": self.id}
        return row | {"source": self.source, "received": self.received, "hour": _hour(self.received)}


class ResultsTable(ResultsDatabase):
    """The results table of a project. Threads can share an instance; each process opens its own."""

    def record(self, record: Mapping, *, id: str, sha256: str, source: str, received: datetime) -> bool:
        """Store a record of `PhotographInspector.inspect`.

        Args:
            record: The record, with `model_version`, `seconds`, `serial` and `lot` if known.
            id: Unique id, at most 255 characters.
            sha256: Hash of the image file, in hex.
            source: `station` or `watch`.
            received: Time at which the capture came in.

        Returns:
            Whether the record is new. If the id is in the table already, nothing changes.
        """
        result = NewResult(record, id, sha256, source, received)
        return self.record_all([result])[0] is not None

    def record_all(self, results: Sequence[NewResult]) -> list[Inspection | None]:
        """Store several results in one transaction.

        Args:
            results: The results.

        Returns:
            Each inspection as it is stored; None if its id is in the table already, in which nothing changes.
        """
        rows = [result.row() for result in results]
        with self._explained():
            try:
                with self._engine.begin() as connection:
                    # A write comes first, so that nobody else takes these numbers.
                    connection.execute(tables.counter.update().values(last=tables.counter.c.last + len(rows)))
                    last = connection.scalar(sa.select(tables.counter.c.last)) or 0
                    for sequence, row in enumerate(rows, start=last - len(rows) + 1):
                        row["sequence"] = sequence
                    connection.execute(tables.inspections.insert(), rows)
                    query = sa.select(tables.inspections).where(tables.inspections.c.sequence > last - len(rows))
                    stored = connection.execute(query.order_by(tables.inspections.c.sequence)).mappings().all()
            except IntegrityError:
                if len(results) > 1:  # the others are stored one by one
                    return [inspection for result in results for inspection in self.record_all([result])]
                if results[0].id in self.known([results[0].id]):
                    return [None]
                raise
        return [_inspection(row) for row in stored]

    def get(self, id: str) -> Inspection | None:
        """Return the inspection with this id; None if there is none."""
        inspections = self._read(_query().where(tables.inspections.c.id == id))
        return inspections[0] if inspections else None

    def list(self, *, limit: int = 50, before: str | None = None, **filters: Unpack[Filters]) -> list[Inspection]:
        """List inspections, the newest first.

        Args:
            limit: Most inspections to return.
            before: Id of the last inspection of the previous page; an unknown id returns nothing.
            **filters: Conditions that the inspections meet.
        """
        table = tables.inspections.c
        query = _query().where(*conditions(filters)).order_by(table.received.desc(), table.id.desc()).limit(limit)
        if before is not None:
            last = sa.select(table.received).where(table.id == before).scalar_subquery()
            # The first condition is sufficient; the second one lets the database use the index.
            earlier = sa.or_(table.received < last, sa.and_(table.received == last, table.id < before))
            query = query.where(earlier, table.received <= last)
        return self._read(query)

    def each(self, **filters: Unpack[Filters]) -> Iterator[Inspection]:
        """Yield inspections, the oldest first; they are read in parts, so that any number fits into memory."""
        table = tables.inspections.c
        query = _query().where(*conditions(filters)).order_by(table.received, table.id).limit(_ROWS_PER_QUERY)
        part = self._read(query)
        while part:
            yield from part
            last = part[-1]
            later = sa.or_(table.received > last.received, sa.and_(table.received == last.received, table.id > last.id))
            part = self._read(query.where(later, table.received >= last.received))

    def after(self, sequence: int, limit: int) -> list[Inspection]:
        """Return up to `limit` inspections that were stored after the one with this sequence number, in order."""
        table = tables.inspections.c
        return self._read(_query().where(table.sequence > sequence).order_by(table.sequence).limit(limit))

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
                raise ResultsError(f"{self.name}: no inspection {id!r}") from None

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


def watch_id(file: str, sha256: str) -> str:
    """Return the id of a watched capture; equal bytes under the same name have the same id.

    Args:
        file: Path of the file, relative to its inbox.
        sha256: Hash of the file, in hex.
    """
    name = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{WATCH}-{sha256}-{name[:16]}"


def _hour(received: datetime) -> str:
    return f"{received if received.tzinfo is None else received.astimezone(UTC):%Y-%m-%dT%H}"


def _query() -> sa.Select:
    correction = [tables.LATEST.c[field.name].label(f"correction_{field.name}") for field in fields(Correction)]
    return sa.select(tables.inspections, *correction).select_from(tables.JUDGED)


def _inspection(row: RowMapping) -> Inspection:
    values = {field.name: row[field.name] for field in fields(Inspection) if field.name != "correction"}
    values |= {name: tuple(values[name]) for name in PIN_VALUES if values[name] is not None}
    if row.get("correction_judgement") is None:
        return Inspection(**values, correction=None)
    verdict = {field.name: row[f"correction_{field.name}"] for field in fields(Correction)}
    return Inspection(**values, correction=Correction(**verdict))
