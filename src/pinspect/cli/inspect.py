"""The output of `pinspect inspect`: records as JSON lines or as tables, and a progress bar."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_PAGE = 48  # rows of one table
_COLUMNS = {
    "file": "file",
    "judgement": "judgement",
    "defect_mode": "mode",
    "defect_position": "position",
    "p_defective": "P(defective)",
    "localizer_position": "localizer, if it disagrees",
    "error": "error",
}


def print_records(
    records: Iterable[dict[str, Any]], *, as_json: bool, total: int | None = None
) -> Iterator[dict[str, Any]]:
    """Print records as they come and pass them on.

    Args:
        records: The records of an inspection.
        as_json: Whether to print JSON, one object a line; otherwise tables of `_PAGE` rows.
        total: Number of records, for the progress bar on standard error if that is a terminal.

    Yields:
        The records.
    """
    page: list[dict[str, Any]] = []
    with _progress(total) if not (as_json and sys.stdout.isatty()) else contextlib.nullcontext() as bar:
        for record in records:
            if bar:
                bar.advance(bar.task_ids[0])
            if as_json:
                print(json.dumps(record, ensure_ascii=False), flush=True)
            elif len(page := [*page, record]) == _PAGE:
                _print_page(page, bar)
                page = []
            yield record
        if page:
            _print_page(page, bar)


def shows_progress() -> bool:
    """Return whether a progress bar would be visible."""
    return sys.stderr.isatty()


def _progress(total: int | None) -> contextlib.AbstractContextManager[Progress | None]:
    if not shows_progress():
        return contextlib.nullcontext()
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), *Progress.get_default_columns()[1:2]
    # Standard output must not pass through the bar, which would print it on standard error.
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, redirect_stdout=False)
    bar.add_task("inspected", total=total)
    return bar


def _print_page(records: Sequence[Mapping[str, Any]], bar: Progress | None) -> None:
    table = Table()
    for label in _COLUMNS.values():
        table.add_column(label, overflow="fold")
    for record in records:
        differs = record["localizer_position"] if record["localizer_disagrees"] else None
        shown = {**record, "localizer_position": differs}
        table.add_row(*(_text(shown[name]) for name in _COLUMNS))
    if bar:
        bar.stop()  # otherwise the bar would be drawn over the table
    Console(markup=False, emoji=False).print(table)
    if bar:
        bar.start()


def _text(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
