"""Compare whole runs of the pipeline with an earlier commit: `python -m benchmarks.pipeline --before COMMIT FOLDER`.

Both commits get a clone in FOLDER, where `dvc repro` runs from the captures to a registered version. At the present
commit it runs again after ten captures were added (copies of captures, darker and with noise), with a training that
goes on from the version before (docs/operations.md). Nothing is installed. FOLDER keeps what is done, so a stopped run
is resumed. Takes 20 minutes on two cores, and nothing should run beside it.

Writes benchmarks/results/pipeline.json: seconds of the runs and of their stages, the memory of the training (its first
process, sampled), the shares of right answers to two images without an example, and the ratios to the earlier commit.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from benchmarks.scale import Memory, run_command
from pinspect.captures.labels import INSPECTED, images_folder, read_captures
from pinspect.captures.table import COLUMNS
from pinspect.core.params import load_params
from pinspect.core.runs import read_run_facts

ROOT = Path(__file__).parents[1]
STAGES = ("raw", "dst", "composite", "chat", "check", "train", "answer", "evaluate", "register")
ADDED = 10
DARKER, NOISE = 0.96, 2.0  # factor, and standard deviation in gray levels


@dataclass(frozen=True)
class Run:
    """A run of the pipeline.

    Attributes:
        clone: Name of its clone; a run that continues another one takes that one's clone, with ten captures more.
        train: Changed parameters of the section `train`.
    """

    clone: str
    train: dict[str, Any] = field(default_factory=dict)


RUNS = {
    "before": Run("before"),
    "clean": Run("now"),
    "ten more, continued": Run("now", {"start": "challenger", "maximum_steps": 120, "learning_rate": 0.0001}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/pipeline.json")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    record = folder / "measured.json"
    measured = json.loads(record.read_text()) if record.exists() else {}
    for name, run in RUNS.items():
        root = folder / run.clone
        if name not in measured:
            if "start" in run.train:
                add_captures(root)
            else:
                clone(arguments.before if name == "before" else "HEAD", root)
            change_training(root, run.train)
            measured[name] = repro(root)
            record.write_text(json.dumps(measured, indent=2))
    before = measured["before"]
    ratios = {
        name: {key: round(value / before[key], 3) for key, value in measured[name].items() if key in before}
        for name in RUNS
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}"
    commits = {each: git(folder / each, "rev-parse", "--short", "HEAD") for each in ("before", "now")}
    text = json.dumps({"machine": machine, "commits": commits, **measured, "ratios": ratios}, indent=2)
    arguments.out.write_text(f"{text}\n")
    print(text)


def clone(commit: str, root: Path) -> None:
    """Make a clone of this repository at a commit, without data of earlier runs."""
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    resolved = git(ROOT, "rev-parse", commit)
    git(ROOT, "clone", "--quiet", str(ROOT), str(root))
    git(root, "checkout", "--quiet", "--detach", resolved)


def code_of(root: Path) -> dict[str, str]:
    """Return the environment variables by which a command runs the code of a clone."""
    return {"PYTHONPATH": str(root / "src")}


def add_captures(root: Path) -> None:
    """Add captures that look like some that are there."""
    captures = root / "data/captures"
    inspected = [
        each
        for each in read_captures(captures, load_params(ROOT / "params.yaml").contract()).captures
        if each.role == INSPECTED
    ]
    new = root.with_name(f"{root.name}-new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    with (new / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number, capture in enumerate(inspected[:: len(inspected) // ADDED][:ADDED]):
            picture = cv2.imread(str(images_folder(captures) / capture.file))
            noise = np.random.default_rng(number).normal(0, NOISE, picture.shape)
            name = f"more_{number}.jpg"
            cv2.imwrite(str(new / name), (picture * DARKER + noise).clip(0, 255).astype(np.uint8))
            writer.writerow(capture.row() | {"file": name})
    run_command(("pinspect", "add", str(new)), root, variables=code_of(root))


def change_training(root: Path, changes: dict[str, Any]) -> None:
    """Change parameters of the next training, and fetch what it starts from."""
    if not changes:
        return
    path = root / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["train"] |= changes
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    if "start" in changes:
        run_command(("pinspect", "start"), root, variables=code_of(root))


def repro(root: Path) -> dict[str, float]:
    """Run the pipeline; return seconds of the whole and of each stage, MB of the training, and right answers."""
    memory = Memory("train")
    seconds = run_command(("dvc", "repro"), root, memory, code_of(root))
    stages = {stage: float(str(read_run_facts(root, stage)["stage_seconds"])) for stage in STAGES}
    from_train = round(sum(stages[stage] for stage in STAGES[STAGES.index("train") :]), 1)
    facts = {"seconds": round(seconds, 1), "from_train": from_train, "train_mb": memory.stage}
    return facts | stages | right_answers(root)


def right_answers(root: Path) -> dict[str, float]:
    """Return the shares of the adapter's right answers, by view, split and source, 0..1."""
    asked = {"model": "adapter", "decoding": "constrained", "kind": "two_image", "shot": "zero_shot"}
    shares = {}
    for split in ("validation", "test"):
        table = pd.read_csv(root / f"reports/predictions/{split}.csv", keep_default_na=False)
        table = table[(table[list(asked)] == list(asked.values())).all(axis=1)]
        for view, source in sorted(set(zip(table["view"], table["source"], strict=True))):
            rows = table[(table["view"] == view) & (table["source"] == source)]
            shares[f"right, {view}, {split}, {source}"] = round(float((rows["answer"] == rows["expected"]).mean()), 4)
    return shares


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints."""
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
