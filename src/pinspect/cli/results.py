"""`pinspect results`: the station's history, filtered, on standard output or in a file."""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pinspect.core.errors import ParamsError


def results(
    judgement: Annotated[str, typer.Option(help="Judgement of the model: passed or defective.")] = "",
    mode: Annotated[str, typer.Option(help="Defect mode of the model.")] = "",
    version: Annotated[str, typer.Option(help="Model version.")] = "",
    serial: Annotated[str, typer.Option(help="Serial number of the connector.")] = "",
    lot: Annotated[str, typer.Option(help="Lot of the connector.")] = "",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Received at this time or later: 2026-01-31 or 2026-01-31T06:00:00Z.")
    ] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Received before this time.")] = "",
    judged: Annotated[
        bool | None, typer.Option("--judged/--not-judged", help="Whether a person confirmed or corrected the result.")
    ] = None,
    text: Annotated[str, typer.Option(help="Part of the file name.")] = "",
    url: Annotated[
        str, typer.Option("--results", metavar="URL", help="SQLAlchemy URL of the table; by default station.results.")
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file, *.csv or *.parquet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line.")] = False,
) -> None:
    """Print or export the results of the station and of `pinspect watch`, the oldest first, as CSV by default."""
    from pinspect.station import export
    from pinspect.station.results import ResultsTable
    from pinspect.station.results_database import ResultsError, has_results
    from pinspect.station.settings import load_station_settings

    settings = load_station_settings(Path())
    settings = settings.model_copy(update={"results": url or settings.results})
    if not has_results(Path(), settings):
        raise ResultsError("no results yet: neither pinspect station nor pinspect watch has stored any in this project")
    with contextlib.closing(ResultsTable.of_project(Path(), settings)) as table:
        selected = table.each(
            judgement=judgement or None,
            mode=mode or None,
            version=version or None,
            serial=serial or None,
            lot=lot or None,
            since=_time(since, "--since"),
            until=_time(until, "--until"),
            corrected=judged,
            text=text or None,
        )
        if out:
            print(f"{export.write_file(selected, out)} results written to {out}")
        elif as_json:
            export.write_json(selected, sys.stdout)
        else:
            export.write_csv(selected, sys.stdout)


def _time(value: str, option: str) -> datetime | None:
    """Return a time in UTC: a time without a zone is taken as UTC."""
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ParamsError(
            f"{option}: expected a time such as 2026-01-31 or 2026-01-31T06:00:00Z, found {value!r}"
        ) from None
