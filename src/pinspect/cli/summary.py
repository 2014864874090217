"""Shows the last run at a glance: scores, registered version and the place of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pinspect.core.errors import StageInputError
from pinspect.core.runs import read_run_facts
from pinspect.evaluation.score_names import SCORE_NAMES

BLOCKS = {
    "zero_shot": "zero-shot",
    "one_shot": "one-shot",
    "baseline": "per-pin baseline",
    "localizer": "NSOARTC localizer",
}


def score_rows(metrics: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return one row per headline score.

    Args:
        metrics: The content of `reports/eval/metrics.json`: block -> score -> value.

    Returns:
        The name of the score, then its value in each block of BLOCKS, or a blank.
    """
    return [
        [label, *(f"{metrics[block][name]:.3f}" if name in metrics.get(block, {}) else "" for block in BLOCKS)]
        for name, label in SCORE_NAMES.items()
        if any(name in metrics.get(block, {}) for block in BLOCKS)
    ]


def print_summary(folder: Path) -> None:
    """Print scores, registered version and the place of the report.

    Args:
        folder: The project's folder.

    Raises:
        StageInputError: The stages `evaluate` and `register` have not run.
    """
    metrics = _read(folder / "reports/eval/metrics.json")
    registration, place = _read(folder / "reports/registration.json"), read_run_facts(folder, "register")
    captures = metrics.get("captures", 0)
    table = Table(title=f"test split of the line, {captures} captures", title_justify="left")
    table.add_column("")
    for label in BLOCKS.values():
        table.add_column(label, justify="right")
    for row in score_rows(metrics):
        table.add_row(*row)
    console = Console(soft_wrap=True)
    console.print(table)
    if "experiment" in registration:
        console.print(f"registered: not, this is experiment {registration['experiment']}", highlight=False)
    elif "model_uri" in place:
        console.print(f"registered: {place['model_uri']} in {place['registry']}", highlight=False)
    else:
        console.print("registered: on another machine; here: dvc repro --force --single-item register", highlight=False)
    console.print(f"report:     {(folder / 'reports/eval/report.html').resolve()}", highlight=False)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro` first") from None
