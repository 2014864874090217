"""Which results a reader of the results table wants."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TypedDict

import sqlalchemy as sa

from pinspect.station import results_tables as tables


class Filters(TypedDict, total=False):
    """Conditions that a result must meet; a condition that is missing or None selects all results.

    Attributes:
        judgement: Judgement of the model.
        mode: Defect mode of the model.
        version: Model version.
        serial: Serial number of the connector.
        lot: Lot of the connector.
        since: Received at this time or later.
        until: Received before this time.
        corrected: Whether a person gave a verdict, confirming or not.
        text: Part of the file name, in upper or lower case.
    """

    judgement: str | None
    mode: str | None
    version: str | None
    serial: str | None
    lot: str | None
    since: datetime | None
    until: datetime | None
    corrected: bool | None
    text: str | None


_EQUAL = {
    "judgement": tables.inspections.c.judgement,
    "mode": tables.inspections.c.defect_mode,
    "version": tables.inspections.c.model_version,
    "serial": tables.inspections.c.serial,
    "lot": tables.inspections.c.lot,
}


def conditions(filters: Filters) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the SQL conditions of `filters`, for a query on `results_tables.JUDGED`."""
    for name, column in _EQUAL.items():
        if (value := filters.get(name)) is not None:
            yield column == value
    if (since := filters.get("since")) is not None:
        yield tables.inspections.c.received >= since
    if (until := filters.get("until")) is not None:
        yield tables.inspections.c.received < until
    if (corrected := filters.get("corrected")) is not None:
        number = tables.LATEST.c.number
        yield number.is_not(None) if corrected else number.is_(None)
    if text := filters.get("text"):
        yield tables.inspections.c.file.icontains(text, autoescape=True)
