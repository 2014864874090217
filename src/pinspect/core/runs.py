"""Facts about the latest run of a stage on this machine: times, device, library versions, commit.

Such facts differ from run to run, so DVC must not track them. They go to `build/runs/<stage>.json`, which git and DVC
ignore; the registry logs them to MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pinspect.core.files import write_file

RUNS = Path("build/runs")


def write_run_facts(root: Path, stage: str, facts: Mapping[str, object]) -> None:
    """Write `facts` to `build/runs/<stage>.json`, replacing the facts of an earlier run at once.

    Args:
        root: Folder of the project.
        stage: Name of the stage, such as `train`.
        facts: Name -> value that JSON can hold.
    """
    write_file(root / RUNS / f"{stage}.json", json.dumps(dict(facts), indent=2, ensure_ascii=False) + "\n")


def read_run_facts(root: Path, stage: str) -> dict[str, object]:
    """Return the facts of the latest run of `stage`, or {} where none are recorded or the file is not readable.

    Args:
        root: Folder of the project.
        stage: Name of the stage, such as `train`.
    """
    try:
        facts = json.loads((root / RUNS / f"{stage}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return cast(dict[str, object], facts) if isinstance(facts, dict) else {}
