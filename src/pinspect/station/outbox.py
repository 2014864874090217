"""The results table as an outbox: how far each receiver of results has come.

There is no second queue. A receiver has a position, the sequence number of the latest result that it has confirmed;
everything stored after it is still to be delivered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from pinspect.station import results_tables as tables
from pinspect.station.results import Inspection, ResultsTable

_receivers = tables.receivers


@dataclass(frozen=True)
class ReceiverState:
    """How far a receiver has come.

    Attributes:
        name: Its name in `station.receivers`.
        position: Sequence number of the latest result that it confirmed.
        behind: Number of stored results that it has not confirmed.
        delivered_at: Time of its latest confirmation (UTC); None before the first one.
        error: Why the next result could not be delivered at the latest try; None if all is well.
    """

    name: str
    position: int
    behind: int
    delivered_at: datetime | None
    error: str | None


class Outbox:
    """The results that receivers have not confirmed.

    Every method raises ResultsError if the results table cannot be used.

    Args:
        results: The results table.
    """

    def __init__(self, results: ResultsTable):
        self._results = results

    def add(self, names: Iterable[str]) -> None:
        """Add receivers; a new one gets the results that are stored from now on, a known one continues."""
        with self._results.transaction() as connection:
            # A write comes first, so that no result is stored between the two questions below.
            connection.execute(tables.counter.update().values(last=tables.counter.c.last))
            last = connection.scalar(sa.select(tables.counter.c.last))
            known = set(connection.scalars(sa.select(_receivers.c.name)))
            if new := [{"name": name, "position": last} for name in names if name not in known]:
                connection.execute(_receivers.insert(), new)

    def next(self, name: str, limit: int) -> list[Inspection]:
        """Return up to `limit` results that a receiver has not confirmed, in order."""
        last = sa.select(tables.counter.c.last).scalar_subquery()
        query = sa.select(_receivers.c.position, last).where(_receivers.c.name == name)
        with self._results.transaction() as connection:
            position, last = connection.execute(query).one()
        return self._results.after(position, limit) if position < last else []  # mostly, nothing is new

    def confirm(self, name: str, sequence: int) -> None:
        """Move the position of a receiver to the result that it has confirmed."""
        values = {"position": sequence, "delivered_at": datetime.now(UTC), "error": None}
        # A position never moves back.
        row = (_receivers.c.name == name) & (_receivers.c.position < sequence)
        with self._results.transaction() as connection:
            connection.execute(_receivers.update().where(row).values(values))

    def fail(self, name: str, error: str) -> None:
        """Store why the next result could not be delivered."""
        with self._results.transaction() as connection:
            connection.execute(_receivers.update().where(_receivers.c.name == name).values(error=error))

    def states(self, names: Iterable[str]) -> list[ReceiverState]:
        """Return the states of receivers, in the order of `names`; one that was never added is left out."""
        waiting = (
            sa.select(sa.func.count())
            .select_from(tables.inspections)
            .where(tables.inspections.c.sequence > _receivers.c.position)
            .scalar_subquery()
        )
        names = [*names]
        query = sa.select(_receivers, waiting.label("behind")).where(_receivers.c.name.in_(names))
        with self._results.transaction() as connection:
            rows = {row["name"]: ReceiverState(**row) for row in connection.execute(query).mappings()}
        return [rows[name] for name in names if name in rows]
