"""What a run shows in Prefect: the stages with their times, the scores beside the champion's, the report."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from pinspect.core.errors import PinspectError

REPORT = Path("reports/eval/report.html")
METRICS = Path("reports/eval/metrics.json")
_PICTURE = re.compile(r"<svg[^>]*xmlns=.*?</svg>", re.DOTALL)
_SHOTS = {"zero_shot": "zero-shot", "one_shot": "one-shot"}


def publish(root: Path, outcomes: Sequence[Any]) -> None:
    """Create the artifacts `stages`, `scores`, `report` and `headline` of the run; what is not there is left out.

    outcomes: of each stage its name, `result` and `seconds`.
    """
    rows = [{"stage": one.stage, "result": one.result, "seconds": one.seconds} for one in outcomes]
    create_table_artifact(key="stages", table=rows, description="What each stage came to")
    if (root / METRICS).is_file():
        metrics = json.loads((root / METRICS).read_text(encoding="utf-8"))
        champion, tags = _champion(root)
        create_table_artifact(key="scores", table=score_table(metrics, champion, tags), description=str(METRICS))
    if (root / REPORT).is_file():
        create_link_artifact(key="report", link=(root / REPORT).as_uri(), link_text="Evaluation report")
        if picture := _PICTURE.search((root / REPORT).read_text(encoding="utf-8")):
            data = base64.b64encode(picture[0].encode()).decode()
            create_image_artifact(
                key="headline", image_url=f"data:image/svg+xml;base64,{data}", description=str(REPORT)
            )


def score_table(
    metrics: Mapping[str, Mapping[str, Any]], champion: str, tags: Mapping[str, str]
) -> list[dict[str, str]]:
    """One row a score of both shots: its value in this run and, from the champion version's tags, there; else blank."""
    column = f"champion, version {champion}" if champion else "champion"
    return [
        {"score": f"{label} {name}", "this run": f"{value:g}", column: tags.get(f"{shot}.{name}", "")}
        for shot, label in _SHOTS.items()
        for name, value in metrics.get(shot, {}).items()
        if isinstance(value, int | float)
    ]


def _champion(root: Path) -> tuple[str, Mapping[str, str]]:
    """Version and tags of the champion; blanks where there is none yet, or no registry that answers."""
    from mlflow.exceptions import MlflowException

    from pinspect.registry.connection import open_registry
    from pinspect.registry.settings import load_register_settings
    from pinspect.registry.versions import CHAMPION

    try:
        settings = load_register_settings(root)
        with open_registry(root, settings) as client:
            try:
                found = client.get_model_version_by_alias(settings.model_name, CHAMPION)
            except MlflowException:
                return "", {}
            return str(found.version), found.tags
    except PinspectError as error:
        get_run_logger().warning("The champion's scores are left out: %s", error)
        return "", {}
