"""Measure what a training saves that starts from the adapter of another line, or of an earlier training.

    python benchmarks/start.py PROJECT ADAPTER [STEPS ...]

For each number of steps (40, 80 and 130 by default), an adapter learns production's question from all captures of
PROJECT, a folder with a chat dataset, once from the base and once from ADAPTER, and answers the camera's test captures.
Writes benchmarks/results/start.json. About ten minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from pinspect.cli.curve import learning_curve
from pinspect.core import environment
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.core.start import ORIGIN, START
from pinspect.registry.settings import load_registry_settings

OUT = Path(__file__).parent / "results/start.json"
STEPS = (40, 80, 130)
SCORES = ("exact_match", "balanced_accuracy", "escape_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("steps", type=int, nargs="*", default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("data", "params.yaml", "settings.yaml", "models/base"):
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).symlink_to((arguments.project / name).resolve())
        shutil.copytree(arguments.adapter, root / START)
        (root / START / ORIGIN).write_text(json.dumps({"reference": "other"}))
        figures = {
            start or "base": [measure(root, steps, start) for steps in arguments.steps] for start in ("", "other")
        }
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(OUT.read_text())


def measure(root: Path, steps: int, start: str) -> dict:
    """Train with all captures, and return the scores."""
    params = load_params(root / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update={"start": start})})
    (row,) = learning_curve(root, params, load_registry_settings(root).report, [10**6], steps).to_dict("records")
    return {"steps": steps, "test_captures": row["test_captures"]} | {name: round(row[name], 4) for name in SCORES}


if __name__ == "__main__":
    environment.apply()
    run(main)
