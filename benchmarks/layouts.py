"""Measure the shipped base on virtual lines of other layouts, without `make base`.

    python benchmarks/layouts.py [--steps N] [ROWSxCOLUMNS ...]

Each line is virtual: 10 references a shape, 500 captures to train on, and 200 test captures. An adapter learns
production's question, and is asked it. Writes benchmarks/results/layouts.json. About three minutes each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import string
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml

from pinspect.cli.curve import score_adapter
from pinspect.core import environment
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.core.question import Question
from pinspect.core.rows import read_chat
from pinspect.evaluation import metrics
from pinspect.model.adapter import train_adapter
from pinspect.model.families import checkpoint_of
from pinspect.registry.settings import load_registry_settings

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/layouts.json"
WORK = ROOT / "build/layouts"
LAYOUTS = ("2x10", "4x6")
STAGES = ("raw", "dst", "composite", "chat", "check")
SCORES = ("exact_match", "balanced_accuracy", "address_on_defective", "escape_rate", "overkill_rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    parser.add_argument("layouts", nargs="*", metavar="ROWSxCOLUMNS", default=LAYOUTS)
    arguments = parser.parse_args()
    for layout in arguments.layouts:
        rows, columns = map(int, layout.split("x"))
        root = make_line(WORK / layout, rows, columns, arguments.steps)
        results = json.loads(OUT.read_text()) if OUT.exists() else {}
        OUT.write_text(json.dumps(results | {layout: measure(root)}, indent=2) + "\n")
    print(OUT.read_text())


def make_line(root: Path, rows: int, columns: int, steps: int) -> Path:
    """Make the project folder of a virtual line, up to its chat dataset."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "data/captures/images").mkdir(parents=True)
    (root / "models").mkdir()
    (root / "models/base").symlink_to(ROOT / "models/base")
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["layout"] = {"rows": list(string.ascii_uppercase[:rows]), "columns": columns}
    content["raw"]["virtual"] |= {"train": 500, "validation": 50, "test": 200}
    content["train"]["maximum_steps"] = steps
    content["chat"] |= {"views": [content["evaluate"]["view"]], "kinds": {content["evaluate"]["kind"]: 3}}
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for stage in STAGES:
        importlib.import_module(f"stages.{stage}").main(root)
    return root


def measure(root: Path) -> dict:
    """Train an adapter, and return its scores and the seconds of the training."""
    params = load_params(root / "params.yaml")
    torch.set_num_threads(params.model.threads)
    base, begun = checkpoint_of(params.model, root), time.monotonic()
    train_adapter(params, base, root / "data/chat", root / "data/composited", root / "models/adapter", root / "work")
    seconds = round(time.monotonic() - begun)
    rows = Question.of(params.evaluate).rows(read_chat(root / "data/chat/test.jsonl"))
    estimates = score_adapter(root, params, load_registry_settings(ROOT).report, root / "models/adapter", rows)
    values = {name: [round(value, 4) for value in _interval(estimates[name])] for name in SCORES}
    return {"steps": params.train.maximum_steps, "training_seconds": seconds, "captures": len(rows)} | values


def _interval(estimate: metrics.Estimate) -> list[float]:
    return [value for value in (estimate.value, estimate.low, estimate.high) if value is not None]


if __name__ == "__main__":
    environment.apply()
    run(main)
