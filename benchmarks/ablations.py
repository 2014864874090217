"""What each choice of the default adds: the default's training again, each time without one of them.

    python benchmarks/ablations.py [--steps N] [NAME ...]

Wants the data of a finished `dvc repro`. Every variant trains as many steps on the same base and answers the same
camera test rows (two-image, both views, both shots) and controls; nothing is chosen by what comes out. Results go to
benchmarks/results/ablations.csv, which the report shows; a variant that is there for as many steps is not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

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
STEPS = 60
VIEWS = ("RAW", "DST")

Row = dict


@dataclass(frozen=True)
class Variant:
    """The default without one choice.

    differs: what is different, for people. params: what changes in params.yaml. keeps: which training rows stay.
    redraws: whether the composites and the chat dataset have to be made anew.
    """

    name: str
    differs: str = ""
    params: dict = field(default_factory=dict)
    keeps: Callable[[Row], bool] = lambda _: True
    redraws: bool = False


NO_COUNTEREXAMPLES = dict.fromkeys(("swapped", "blank", "other_shape", "shuffled_letters"), 0.0)
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
    Variant("no LoRA on vision", "the vision tower stays as the base has it", {"train": {"vision": False}}),
    Variant("no virtual line", "camera captures alone", keeps=lambda row: row["source"] == CAMERA),
    Variant("no mirror images", "rows as they are, light jitter kept", {"train": {"mirror": False}}),
    Variant("no counterexamples", "no swapped, blank, ... rows", {"train": {"counterexamples": NO_COUNTEREXAMPLES}}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(variant.name for variant in VARIANTS))
    asked = parser.parse_args()
    unknown = set(asked.names) - {variant.name for variant in VARIANTS}
    if unknown:
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    if not (ROOT / "data/chat/train.jsonl").is_file():
        raise StageInputError(f"{ROOT / 'data/chat'}: no chat dataset; run `dvc repro` first")
    for variant in VARIANTS:
        if not asked.names or variant.name in asked.names:
            print(f"--- {variant.name}: {variant.differs}", flush=True)
            _keep(measure(variant, asked.steps))
    print(pd.read_csv(OUT).to_string(index=False))


def measure(variant: Variant, steps: int) -> dict:
    """One row of the table, from its own folder below build/ablations; a finished one is read back."""
    root = WORK / f"{variant.name.replace(' ', '-')}-{steps}"
    result = root / "result.json"
    if not result.is_file():
        _make_project(variant, steps, root)
        result.write_text(json.dumps(_train_and_score(variant, root), indent=2) + "\n")
    return json.loads(result.read_text())


def _make_project(variant: Variant, steps: int, root: Path) -> None:
    """A project that shares all data with this one but what the variant changes."""
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
    train.unlink()  # it may be a link into DVC's cache
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
            predictions.from_generated(row, found, contract, model=variant.name, decoding="constrained")
            for row, found in zip(rows, answers, strict=True)
        ]
    )
    controls = run_controls(
        rows,
        images,
        contract,
        lambda asked, folder: [found.text for found in answer(asked, folder)],
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
    asked = table[(table["shot"] == shot) & (table["view"] == view)]
    return round(float(metrics.score(asked)[metric].value), 4)


def _keep(row: dict) -> None:
    """Put the row into the table, in the order of VARIANTS."""
    rows = pd.read_csv(OUT, dtype={"controls held": str}).to_dict("records") if OUT.is_file() else []
    by_name = {found["name"]: found for found in rows} | {row["name"]: row}
    ordered = [by_name[variant.name] for variant in VARIANTS if variant.name in by_name]
    pd.DataFrame(ordered).to_csv(OUT, index=False)


if __name__ == "__main__":
    environment.apply()
    run(main)
