"""Deletes what the station need not keep any longer: old results, expired pictures."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pinspect.station.picture_store import PictureStore
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import has_results
from pinspect.station.settings import load_station_settings


def prune_station(root: Path, results_days: int, *, dry_run: bool = False) -> dict[str, int]:
    """Delete a station's old results, and the pictures that it would delete itself.

    Args:
        root: The project's folder.
        results_days: Days for which results stay.
        dry_run: Delete nothing, and count no pictures.

    Returns:
        The numbers of deleted `results` and `pictures`.

    Raises:
        ResultsError: The results table cannot be used.
    """
    settings, now, results = load_station_settings(root), datetime.now(UTC), 0
    if has_results(root, settings):
        with contextlib.closing(ResultsTable.of_project(root, settings)) as table:
            results = table.prune(now - timedelta(days=results_days), dry_run=dry_run)
    pictures = 0 if dry_run else PictureStore(root, settings.keep_days, settings.keep_bytes).prune(now)
    return {"results": results, "pictures": pictures}
