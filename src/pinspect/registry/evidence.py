"""What a registered version answers to labeled photographs: evidence for comparisons, scores and promotions."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.progress import track

from pinspect.captures.labeled_folder import LabeledFolder
from pinspect.core import predictions, prompts
from pinspect.core.answers import DEFECTIVE, VIEWS, Answer, AnswerContract
from pinspect.core.errors import ImageError, PinspectError, RegistryError
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.question import CAMERA, Question
from pinspect.evaluation import metrics
from pinspect.evaluation.settings import ReportSettings
from pinspect.inspection.files import read_photograph
from pinspect.inspection.inspector_process import InspectorProcess
from pinspect.inspection.photograph_inspector import BATCH, PhotographInspector
from pinspect.inspection.records import SCORES, Photograph, Record, Task, empty_record
from pinspect.registry.versions import load_version, number_of

Step = TypeVar("Step")


@dataclass(frozen=True)
class LabeledPhotograph:
    """A photograph and the answer that is expected.

    Attributes:
        file: What identifies the photograph in a predictions table.
        path: The image file.
        name: The name that the version gets; on a line with two cameras it holds the eye.
        expected: The right answer; its view does not matter.
        source: `camera` or `virtual`.
        shape: The pin shape that the version gets; None for the shape that fits best.
    """

    file: str
    path: Path
    name: str
    expected: Answer
    source: str = CAMERA
    shape: str | None = None

    def read(self, max_pixels: int) -> Photograph:
        """Read the image file. Raises ImageError if it cannot be read, or is larger than `max_pixels` allow."""
        return read_photograph(self.path, max_pixels, self.name)


@dataclass(frozen=True)
class Evidence:
    """The zero-shot answers of a version to production's question.

    Attributes:
        version: The number of the version.
        answered: A predictions table (`pinspect.core.predictions`) with one row per capture.
        test_set: The digest of the captures and their expected answers.
        rescored: Whether the version answered now; False for stored answers.
        not_inspected: File -> reason, of the captures that the version could not inspect; their answers are empty.
    """

    version: str
    answered: pd.DataFrame
    test_set: str
    rescored: bool = False
    not_inspected: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_defective(self) -> pd.DataFrame:
        """The answers to defective captures."""
        return self.answered.loc[self.answered["expected_judgement"] == DEFECTIVE]

    def scores(self, report: ReportSettings) -> dict[str, metrics.Estimate]:
        """Return `metrics.score` of the answers."""
        return metrics.score(
            self.answered, confidence=report.confidence, bootstrap_samples=report.bootstrap_samples, seed=report.seed
        )

    def values(self, report: ReportSettings) -> dict[str, float]:
        """Return the values of `scores`, rounded, without those that could not be computed."""
        scores = self.scores(report)
        return {name: round(score.value, 4) for name, score in scores.items() if score.value is not None}


def photographs_of(folder: LabeledFolder, contract: AnswerContract, shape: str = "") -> list[LabeledPhotograph]:
    """Return the captures of a labeled folder; a version gets nothing of their labels.

    Args:
        folder: The folder.
        contract: The line's layout, shapes and defect modes.
        shape: The pin shape that the version gets; empty for the shape that fits best, as in `pinspect inspect`.
    """
    photographs = []
    for capture in folder.captures:
        where = capture.defect_position
        address = None if where == NO_ADDRESS else contract.layout.address(where)
        expected = Answer(
            capture.shape, VIEWS[0], contract.layout.pins, capture.judgement, capture.defect_mode, address
        )
        path = folder.images / capture.file
        photographs.append(LabeledPhotograph(capture.file, path, capture.file, expected, shape=shape or None))
    return photographs


@contextlib.contextmanager
def opened(version: ModelVersion) -> Iterator[InspectorProcess]:
    """Load a version of the registry that is open, with its packed code; its process ends with the context.

    Raises:
        RegistryError: The version cannot be loaded.
    """
    try:
        inspector = load_version(version)
    except PinspectError as error:
        raise RegistryError(f"version {number_of(version)}: cannot answer: {error}") from None
    with contextlib.closing(inspector):
        yield inspector


def question_of(version: ModelVersion) -> Question:
    """Return the question that production puts to a version.

    Raises:
        RegistryError: The version has no such tags.
    """
    tags = {field.name: version.tags.get(f"headline.{field.name}", "") for field in fields(Question)}
    if not all(tags.values()):
        raise RegistryError(
            f"version {number_of(version)}: its tags lack production's question (headline.view, .kind, .decoding); "
            "register its adapter again (dvc repro --force register)"
        )
    return Question(**tags)


def new_evidence(
    inspector: PhotographInspector,
    version: ModelVersion,
    photographs: Sequence[LabeledPhotograph],
    contract: AnswerContract,
    test_set: str,
) -> Evidence:
    """Let a version answer photographs, with its own adapter, line and code, as in production.

    Args:
        inspector: The version, loaded.
        version: The version.
        photographs: The photographs.
        contract: The line's layout, shapes and defect modes.
        test_set: The digest of the photographs and their expected answers.
    """
    records: dict[str, Record] = {}
    for start in progress(range(0, len(photographs), BATCH), f"version {number_of(version)} answers"):
        batch = photographs[start : start + BATCH]
        tasks: dict[str, Task] = {}
        for each in batch:
            try:
                tasks[each.file] = Task(each.read(inspector.max_pixels), shape=each.shape)
            except ImageError as error:
                records[each.file] = empty_record(each.name) | {"error": str(error)}
        records |= zip(tasks, inspector.inspect(list(tasks.values())), strict=True)
    not_inspected = {
        each.file: records[each.file]["error"].removeprefix(f"{each.name}: ")
        for each in photographs
        if records[each.file]["error"]
    }
    answered = table_of(photographs, records, contract, question_of(version))
    return Evidence(number_of(version), answered, test_set, rescored=True, not_inspected=not_inspected)


def table_of(
    photographs: Sequence[LabeledPhotograph],
    records: Mapping[str, Record],
    contract: AnswerContract,
    question: Question,
) -> pd.DataFrame:
    """Return the predictions table of `records` (by file); answers are expected in the view of the question."""
    kind = prompts.answer_kind_of(question.kind)
    rows = []
    for each in photographs:
        record = records.get(each.file, {})
        row = {
            "id": each.file,
            "source": each.source,
            "shape": each.expected.shape,
            "view": question.view,
            "kind": question.kind,
            "shot": prompts.ZERO_SHOT,
            "file": each.file,
            "answer": contract.render(replace(each.expected, view=question.view), kind),
        }
        scores = {name: record.get(name) for name in SCORES}
        answer = record.get("answer") or ""
        rows.append(
            predictions.prediction(row, answer, contract, model=predictions.MODEL, decoding=question.decoding, **scores)
        )
    return predictions.table(rows)


def progress(steps: Sequence[Step], description: str) -> Iterator[Step]:
    """Yield the steps, with a progress bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    yield from track(steps, description, console=console, transient=True, disable=not sys.stderr.isatty())
