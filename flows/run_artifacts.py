"""Publishes what a run shows in Prefect: stages with their times, scores next to the champion's, the report."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)

from flows.report_page import REPORT, report_page
from pinspect.core.errors import PinspectError

METRICS = Path("reports/eval/metrics.json")
_FIGURE = re.compile(r"<svg[^>]*xmlns=.*?</svg>", re.DOTALL)
_SHOTS = {"zero_shot": "zero-shot", "one_shot": "one-shot"}


def publish(root: Path, outcomes: Sequence[Any]) -> None:
    """Create the artifacts `stages`, `scores`, `report` and `headline` of a run, as far as their files exist.

    Args:
        root: The project's folder.
        outcomes: The `StageOutcome` of each stage.
    """
    rows = [{"stage": outcome.stage, "result": outcome.result, "seconds": outcome.seconds} for outcome in outcomes]
    create_table_artifact(key="stages", table=rows, description="Result and duration of each stage")
    if (root / METRICS).is_file():
        metrics = json.loads((root / METRICS).read_text(encoding="utf-8"))
        champion, tags = _champion(root)
        create_table_artifact(key="scores", table=score_table(metrics, champion, tags), description=str(METRICS))
    if (root / REPORT).is_file():
        _publish_link(root)
        if figure := _FIGURE.search((root / REPORT).read_text(encoding="utf-8")):
            data = base64.b64encode(figure[0].encode()).decode()
            create_image_artifact(
                key="headline", image_url=f"data:image/svg+xml;base64,{data}", description=str(REPORT)
            )


def score_table(
    metrics: Mapping[str, Mapping[str, Any]], champion: str, tags: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return one row per score of both shots, with the value of this run and the champion's.

    Args:
        metrics: The content of metrics.json.
        champion: The number of the champion; empty if there is none.
        tags: The tags of the champion.

    Returns:
        Rows with the columns `score`, `this run` and the champion; blank if the champion has no such score.
    """
    column = f"champion, version {champion}" if champion else "champion"
    return [
        {"score": f"{label} {name}", "this run": f"{value:g}", column: tags.get(f"{shot}.{name}", "")}
        for shot, label in _SHOTS.items()
        for name, value in metrics.get(shot, {}).items()
        if isinstance(value, int | float)
    ]


def _publish_link(root: Path) -> None:
    """Link to the report on an MLflow server; without one, show the report's path."""
    try:
        page = report_page(root)
    except PinspectError as error:
        get_run_logger().warning("The report has no link: %s", error)
        page = ""
    if page:
        create_link_artifact(key="report", link=page, link_text="Evaluation report", description=str(root / REPORT))
    else:
        create_markdown_artifact(key="report", markdown=f"Evaluation report: `{root / REPORT}`")


def _champion(root: Path) -> tuple[str, Mapping[str, str]]:
    """Return number and tags of the champion; blanks if there is none yet, or no registry answers."""
    from pinspect.registry.connection import open_registry
    from pinspect.registry.settings import load_register_settings
    from pinspect.registry.versions import CHAMPION, number_of, version_of

    try:
        settings = load_register_settings(root)
        with open_registry(root, settings) as client:
            champion = version_of(client, settings.model_name, CHAMPION)
    except PinspectError as error:
        get_run_logger().warning("The champion's scores are left out: %s", error)
        return "", {}
    return (number_of(champion), champion.tags) if champion else ("", {})
