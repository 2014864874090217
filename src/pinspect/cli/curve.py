"""Learning curve of a line: the scores of adapters that are trained on few, then on more of its labeled defects."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from pinspect.core import predictions
from pinspect.core.answers import DEFECTIVE, AnswerKind
from pinspect.core.charts import BLUE, RED, Axis, Chart
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file
from pinspect.core.params import Params
from pinspect.core.predictions import MODEL
from pinspect.core.prompts import SHOTS
from pinspect.core.question import CAMERA, Question
from pinspect.core.rows import Row, read_chat
from pinspect.core.start import start_folder
from pinspect.evaluation import metrics
from pinspect.evaluation.score_names import SCORE_NAMES
from pinspect.evaluation.settings import ReportSettings
from pinspect.model.adapter import train_adapter
from pinspect.model.families import checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import load_inspector
from pinspect.model.start import start_digest

FOLDER = Path("reports/curve")
_WORK = Path("build/curve")
_SCORES = ("exact_match", "balanced_accuracy", "escape_rate")
_PALETTE = "<style>svg{--ink:#222;--soft:#666;--rule:#ddd;--blue:#1f6fb2;--red:#b3261e}</style>"


@dataclass(frozen=True)
class _Captures:
    """The captures of a line, as production's question about them in the chat dataset has them.

    Attributes:
        training: The rows of the training captures, camera and virtual.
        validation: The rows of the validation captures.
        defective: Hashes of the camera's defective training captures, in order.
        passed: Hashes of the camera's passed training captures, in order.
        test: The rows of the camera's test captures.
    """

    training: list[Row]
    validation: list[Row]
    defective: list[str]
    passed: list[str]
    test: list[Row]

    def training_rows(self, defective: int) -> tuple[list[Row], int]:
        """Return the rows of so many defective captures, of passed ones in proportion, and of the virtual line.

        Returns:
            The rows, and the number of passed captures.
        """
        passed = round(defective * len(self.passed) / len(self.defective))
        kept = {*self.defective[:defective], *self.passed[:passed]}
        return [row for row in self.training if row["source"] != CAMERA or row["sha256"] in kept], passed


def learning_curve(
    root: Path, params: Params, report: ReportSettings, sizes: Sequence[int], steps: int | None = None
) -> pd.DataFrame:
    """Train an adapter for each size and score its answers to production's question on the camera's test captures.

    The adapters learn this question alone: in one of the dataset's views, and in its share of the project's steps. The
    defective captures are taken in the order of their content hashes, so that a larger size adds captures to the
    smaller one; passed captures are taken in proportion. Virtual captures, base, start and parameters stay as the
    project has them. A size with a result is not trained again; an interrupted training goes on.

    Args:
        root: The project's folder, with the chat dataset.
        params: The project's parameters.
        report: How intervals are computed.
        sizes: Numbers of defective captures; larger ones than there are become all.
        steps: Optimizer steps of each training; None for `train.maximum_steps` divided by the number of views.

    Returns:
        One row per size: `defective` and `passed` training captures, `steps`, `test_captures`, and for each score its
        value, `_low` and `_high`. Also written to reports/curve/curve.csv, and drawn to curve.svg.

    Raises:
        StageInputError: There is no chat dataset, or it lacks camera captures to train or to test on.
    """
    steps = steps or math.ceil(params.train.maximum_steps / len(params.chat.views))
    params = params.model_copy(update={"train": params.train.model_copy(update={"maximum_steps": steps})})
    captures = _read_captures(root, params)
    available = len(captures.defective)
    if not available or not captures.test:
        raise StageInputError(
            f"{root / 'data/chat'}: {available} defective camera captures to train on and {len(captures.test)} camera "
            "captures to test on; add captures (pinspect add DIR), then dvc repro"
        )
    points = [_point(root, params, report, captures, size) for size in sorted({min(size, available) for size in sizes})]
    curve = pd.DataFrame(points)
    write_file(root / FOLDER / "curve.csv", curve.to_csv(index=False, lineterminator="\n"))
    write_file(root / FOLDER / "curve.svg", draw(curve))
    return curve


def draw(curve: pd.DataFrame) -> str:
    """Draw a learning curve, as `learning_curve` returns it, as an SVG file."""
    sizes = [float(size) for size in curve["defective"]]
    x = Axis(sizes[0] / 1.2, sizes[-1] * 1.2, [(s, f"{s:g}") for s in sizes], "defective training captures", math.log)
    y = Axis(0, 1, [(n / 5, f"{n / 5:.1f}") for n in range(6)], "on test captures")
    chart = Chart(x, y, f"Scores for {sizes[0]:g} to {sizes[-1]:g} defective training captures", width=520)
    for name, color in (("exact_match", BLUE), ("escape_rate", RED)):
        chart.line(sizes, list(curve[name]), color, label=f"{SCORE_NAMES[name]}, with interval")
        chart.dots(sizes, list(curve[name]), color)
        for size, low, high in zip(sizes, curve[f"{name}_low"], curve[f"{name}_high"], strict=True):
            chart.line([size, size], [low, high], color, width=3, opacity=0.35)
    head, _, marks = chart.svg(legend="middle right").partition("\n")
    return f"{head}\n{_PALETTE}\n{marks}\n"


def print_curve(curve: pd.DataFrame, root: Path) -> None:
    """Print a learning curve as a table, and where it is drawn."""
    table = Table()
    for column in ("defective", "passed", "steps", *(SCORE_NAMES[name] for name in _SCORES)):
        table.add_column(column, justify="right")
    for row in curve.to_dict("records"):
        scores = [f"{row[name]:.3f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})" for name in _SCORES]
        table.add_row(*(f"{row[column]:.0f}" for column in ("defective", "passed", "steps")), *scores)
    console = Console()
    console.print(table)
    console.print(f"{curve['test_captures'].iloc[0]} test captures; drawn in {root / FOLDER / 'curve.svg'}")


def _read_captures(root: Path, params: Params) -> _Captures:
    question = Question.of(params.evaluate)
    training, validation, test = (
        [row for row in read_chat(root / f"data/chat/{split}.jsonl") if any(question.asks(row, shot) for shot in SHOTS)]
        for split in ("train", "validation", "test")
    )
    contract, judgements = params.contract(), dict[str, str | None]()
    for row in training:
        if row["source"] == CAMERA:
            judgements[row["sha256"]] = contract.parse(row["answer"], AnswerKind(row["answer_kind"])).judgement
    hashes = sorted(judgements)
    return _Captures(
        training,
        validation,
        [sha256 for sha256 in hashes if judgements[sha256] == DEFECTIVE],
        [sha256 for sha256 in hashes if judgements[sha256] != DEFECTIVE],
        [row for row in question.rows(test) if row["source"] == CAMERA],
    )


def _point(root: Path, params: Params, report: ReportSettings, captures: _Captures, size: int) -> dict[str, float]:
    """Return one row of the curve; a finished one is read from its folder in build/curve."""
    rows, passed = captures.training_rows(size)
    start = start_folder(root, params.train.start)
    work = root / _WORK / f"{size}-{params.train.maximum_steps}{start_digest(start)[:12]}"
    chat = _lines(rows)
    result = work / "scores.json"
    if not result.is_file() or (work / "chat/train.jsonl").read_text(encoding="utf-8") != chat:
        result.unlink(missing_ok=True)
        write_file(work / "chat/train.jsonl", chat)
        write_file(work / "chat/validation.jsonl", _lines(captures.validation))
        scores = _train_and_score(root, params, report, len(rows), captures.test, work, start)
        write_file(result, json.dumps(scores, indent=2) + "\n")
    facts = {"defective": size, "passed": passed, "steps": params.train.maximum_steps}
    scores = json.loads(result.read_text(encoding="utf-8")).items()
    return facts | {name: math.nan if value is None else value for name, value in scores}  # NaN: not measurable


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _train_and_score(
    root: Path, params: Params, report: ReportSettings, rows: int, test: Sequence[Row], work: Path, start: Path | None
) -> dict[str, Any]:
    steps, batch = params.train.maximum_steps, params.train.batch_size
    # As many steps for few captures as for many: they are shown more often.
    train = params.train.model_copy(update={"epochs": max(params.train.epochs, (steps + 1) * batch / rows)})
    params, base = params.model_copy(update={"train": train}), checkpoint_of(params.model, root)
    torch.set_num_threads(params.model.threads)
    train_adapter(params, base, work / "chat", root / "data/composited", work / "adapter", work / "train", start=start)
    scores = score_adapter(root, params, report, work / "adapter", test)
    values: dict[str, Any] = {"test_captures": len(test)}
    for name in _SCORES:
        estimate = scores[name]
        values |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return values


def score_adapter(
    root: Path, params: Params, report: ReportSettings, adapter: Path, rows: Sequence[Row]
) -> dict[str, metrics.Estimate]:
    """Score an adapter's answers to rows that ask production's question.

    Args:
        root: The project's folder, with the composites.
        params: The project's parameters.
        report: How intervals are computed.
        adapter: Folder of the adapter.
        rows: Rows of the chat dataset.

    Returns:
        Each score of `metrics.score`, by its name.
    """
    inspector, contract = load_inspector(checkpoint_of(params.model, root), adapter), params.contract()
    answers = answer_rows(inspector, rows, root / "data/composited", contract, batch_size=params.evaluate.batch_size)
    decoding = Question.of(params.evaluate).decoding
    table = predictions.table([
        predictions.from_generated(row, answer, contract, MODEL, decoding)
        for row, answer in zip(rows, answers, strict=True)
    ])  # fmt: skip
    return metrics.score(
        table, confidence=report.confidence, bootstrap_samples=report.bootstrap_samples, seed=report.seed
    )
