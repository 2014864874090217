"""A whole project for tests, made by the product's own stages: a small camera line, a base that was never trained, an
adapter of two steps, and its evaluation. Its answers are poor, and everything about them is real."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import yaml

from pinspect.core.params import load_params
from pinspect.core.yaml_file import SETTINGS_FILE
from pinspect.pretraining.base import new_base, save_base
from tests.support.sample import ROOT, drop, line, set_values

STAGES = ("raw", "dst", "composite", "chat", "check", "train", "answer", "evaluate")


def make_project(root: Path) -> Path:
    """Run all stages up to evaluate in `root`."""
    write_params(root)
    drop(root / "data/captures", line(seed=8, train=10, references=5))
    model, processor, known = new_base(load_params(root / "params.yaml").layout.layout(), seed=0)
    save_base(model, processor, known, root / "models/base")
    for stage in STAGES:
        run_stage(stage, root)
    return root


def run_stage(stage: str, root: Path) -> None:
    """Run `python -m stages.<stage>` in this process."""
    importlib.import_module(f"stages.{stage}").main(root)


def write_params(root: Path, **train: object) -> None:
    """Write the shipped parameters and settings, made small; `train` changes its section."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["raw"] |= {"test_share": 0.4, "validation_share": 0.1}
    content["raw"]["virtual"] |= {"train": 0, "validation": 0, "test": 0}
    content["chat"]["kinds"] = {"two_image": 1}
    content["check"]["minimum_rows"] = 1
    # In float32 the same photograph has the same probabilities, up to the last digits, whatever is asked beside it.
    content["model"] |= {"checkpoint": str(root / "models/base"), "threads": 1, "precision": "float32"}
    content["train"] |= {"maximum_steps": 2, "batch_size": 4} | train
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    shutil.copy(ROOT / SETTINGS_FILE, root)
    set_values(root, "report", bootstrap_samples=100)
