"""Measure what each choice of the default adds: train the default again, each time with another choice changed.

    python benchmarks/ablations.py [--steps N] [NAME ...]

Needs the data of a finished `dvc repro`. Every variant trains the same number of steps (`train.maximum_steps`) on the
same base and answers the same camera test rows (two-image, both views, both shots) and controls; no choice is made by
these results. They go to benchmarks/results/ablations.csv. A variant with a result for this number of steps is not run
again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
import yaml

from pinspect.core import environment, predictions
from pinspect.core.errors import StageInputError, run
from pinspect.core.params import load_params
from pinspect.core.prompts import SHOTS, ZERO_SHOT
from pinspect.core.question import CAMERA, Question
from pinspect.core.rows import read_chat
from pinspect.evaluation import metrics
from pinspect.examination.controls import run_controls
from pinspect.model.adapter import train_adapter
from pinspect.model.families import checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import load_inspector

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks/results/ablations.csv"
WORK = ROOT / "build/ablations"
VIEWS = ("RAW", "DST")

Row = dict


@dataclass(frozen=True)
class Variant:
    """The default with one choice changed.

    Attributes:
        name: Its name in the table.
        differs: The difference from the default, in words.
        params: Changes in params.yaml.
        keeps: Whether a training row is kept.
        redraws: Whether the composites and the chat dataset have to be made again.
    """

    name: str
    differs: str = ""
    params: dict = field(default_factory=dict)
    keeps: Callable[[Row], bool] = lambda _: True
    redraws: bool = False


NO_COUNTEREXAMPLES = dict.fromkeys(
    ("RAW", "DST"), dict.fromkeys(("swapped", "blank", "other_shape", "shuffled_letters"), 0.0)
)
VARIANTS = (
    Variant("full", "the default"),
    Variant(
        "no token grid",
        "60 px a pin, so that no pin fills a visual token",
        {"composite": {"cell": 60, "token_aligned": False}},
        redraws=True,
    ),
    Variant("RAW only", "no row of distance images", keeps=lambda row: row["view"] == "RAW"),
    Variant("DST only", "no row of photographs", keeps=lambda row: row["view"] == "DST"),
    Variant("zero-shot only", "no one-shot row", keeps=lambda row: row["shot"] == ZERO_SHOT),
    Variant("LoRA on vision", "the vision tower is adapted, too", {"train": {"vision": True}}),
    Variant("no virtual line", "camera captures alone", keeps=lambda row: row["source"] == CAMERA),
    Variant("no mirror images", "rows as they are, light jitter kept", {"train": {"mirror": False}}),
    Variant("no counterexamples", "no swapped, blank, ... rows", {"train": {"counterexamples": NO_COUNTEREXAMPLES}}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=load_params(ROOT / "params.yaml").train.maximum_steps)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(variant.name for variant in VARIANTS))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {variant.name for variant in VARIANTS}
    if unknown:
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if not (ROOT / "data/chat/train.jsonl").is_file():
        raise StageInputError(f"{ROOT / 'data/chat'}: no chat dataset; run `dvc repro` first")
    for variant in VARIANTS:
        if not arguments.names or variant.name in arguments.names:
            print(f"--- {variant.name}: {variant.differs}", flush=True)
            _keep(measure(variant, arguments.steps))
    print(pd.read_csv(OUT).to_string(index=False))


def measure(variant: Variant, steps: int) -> dict:
    """Return one row of the table; a finished result is read from its folder in build/ablations."""
    root = WORK / f"{variant.name.replace(' ', '-')}-{steps}"
    result = root / "result.json"
    if not result.is_file():
        _make_project(variant, steps, root)
        result.write_text(json.dumps(_train_and_score(variant, root), indent=2) + "\n")
    return json.loads(result.read_text())


def _make_project(variant: Variant, steps: int, root: Path) -> None:
    """Create a project that shares all data with this project except what the variant changes."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"]["maximum_steps"] = steps
    for section, changes in variant.params.items():
        params[section] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for name in ("models", *(f"data/{stage}" for stage in ("raw", "dst", "composited"))):
        link = root / name
        if name == "models" or not (variant.redraws and name.endswith("composited")):
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / name)
    if variant.redraws:
        for stage in ("composite", "chat"):
            importlib.import_module(f"stages.{stage}").main(root)
    else:
        shutil.copytree(ROOT / "data/chat", root / "data/chat", dirs_exist_ok=True)
    train = root / "data/chat/train.jsonl"
    kept = [line for line in train.read_text(encoding="utf-8").splitlines() if variant.keeps(json.loads(line))]
    train.unlink()  # may be a link into DVC's cache
    train.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _train_and_score(variant: Variant, root: Path) -> dict:
    params = load_params(root / "params.yaml")
    base, contract, images = checkpoint_of(params.model, root), params.contract(), root / "data/composited"
    facts = train_adapter(params, base, root / "data/chat", images, root / "adapter", root / "work")
    inspector = load_inspector(base, root / "adapter")

    def answer(rows: list[Row], folder: Path) -> list:
        return answer_rows(inspector, rows, folder, contract, batch_size=params.evaluate.batch_size)

    rows = [
        row
        for row in read_chat(root / "data/chat/test.jsonl")
        if row["source"] == CAMERA and row["kind"] == params.evaluate.kind
    ]
    answers = answer(rows, images)
    table = predictions.table(
        [
            predictions.from_generated(row, answer_of_row, contract, model=variant.name, decoding="constrained")
            for row, answer_of_row in zip(rows, answers, strict=True)
        ]
    )
    controls = run_controls(
        rows,
        images,
        contract,
        lambda changed, folder: [generated.text for generated in answer(changed, folder)],
        dict(zip(table["id"], table["answer"], strict=True)),
        Question.of(params.evaluate),
    )
    return {
        "name": variant.name,
        "differs": variant.differs,
        "parameters": facts.trainable,
        "steps": facts.steps,
        "captures": table["file"].nunique(),
        "date": f"{date.today():%Y-%m-%d}",
        **{
            f"{metric} {shot} {view}": _score(table, metric, shot, view)
            for metric, shot, view in (
                *(("exact_match", shot, view) for view in VIEWS for shot in SHOTS),
                ("address_on_defective", ZERO_SHOT, params.evaluate.view),
                ("mode_on_defective", ZERO_SHOT, params.evaluate.view),
            )
        },
        "controls held": f"{sum(control.held is True for control in controls)} of {len(controls)}",
    }


def _score(table: pd.DataFrame, metric: str, shot: str, view: str) -> float:
    selected = table[(table["shot"] == shot) & (table["view"] == view)]
    return round(float(metrics.score(selected)[metric].value), 4)


def _keep(row: dict) -> None:
    """Write the row to the table, in the order of VARIANTS."""
    rows = pd.read_csv(OUT, dtype={"controls held": str}).to_dict("records") if OUT.is_file() else []
    by_name = {other["name"]: other for other in rows} | {row["name"]: row}
    ordered = [by_name[variant.name] for variant in VARIANTS if variant.name in by_name]
    columns = pd.DataFrame(ordered).dropna(axis="columns", how="all")  # earlier rows may have scores of another view
    columns.to_csv(OUT, index=False)


if __name__ == "__main__":
    environment.apply()
    run(main)
