"""Gathers the answers of registered versions to one test set: stored answers, or new ones."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from pinspect.core import digests, predictions, prompts
from pinspect.core.answers import DEFECTIVE, AnswerContract, AnswerKind
from pinspect.core.errors import PinspectError, RegistryError, StageInputError
from pinspect.core.params import Params
from pinspect.core.question import Question, camera_else_virtual
from pinspect.core.rows import read_chat
from pinspect.evaluation import metrics
from pinspect.evaluation.settings import ReportSettings
from pinspect.inspection.photograph_inspector import BATCH
from pinspect.inspection.records import Photograph, Record, Task
from pinspect.registry.versions import EVALUATION_TAG, PREDICTIONS, load_version, number_of, stored_report


@dataclass(frozen=True)
class Evidence:
    """The zero-shot answers of a version to production's question.

    Attributes:
        version: The number of the version.
        answered: A predictions table (`pinspect.core.predictions`) with one row per capture.
        test_set: The digest of the captures and their expected answers.
        rescored: Whether the version answered now; False for stored answers.
    """

    version: str
    answered: pd.DataFrame
    test_set: str
    rescored: bool = False

    @property
    def on_defective(self) -> pd.DataFrame:
        """The answers to defective captures."""
        return self.answered.loc[self.answered["expected_judgement"] == DEFECTIVE]

    def scores(self, report: ReportSettings) -> dict[str, metrics.Estimate]:
        """Return `metrics.score` of the answers."""
        return metrics.score(
            self.answered, confidence=report.confidence, bootstrap_samples=report.bootstrap_samples, seed=report.seed
        )


def on_one_test_set(root: Path, params: Params, versions: Sequence[ModelVersion]) -> list[Evidence]:
    """Gather the evidence of versions on the same test set.

    If the stored answers of all versions belong to one test set, they are the evidence. Otherwise the present test set
    of the project counts, and a version that was scored on another one answers it now: with its own adapter, line and
    code, as in production.

    Args:
        root: The project's folder.
        params: The project's parameters.
        versions: The versions to compare.

    Returns:
        The evidence of each version, in the same order.

    Raises:
        RegistryError: A version cannot answer, or its evaluation is stored in part only.
        StageInputError: The project lacks files of the present test set.
    """
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        stored = [_stored(version, Path(folder) / number_of(version)) for version in versions]
    complete = [evidence for evidence in stored if evidence]
    if len(complete) == len(versions) and len({evidence.test_set for evidence in complete}) == 1:
        return complete
    rows = _test_rows(root)
    present = []
    for version, evidence in zip(versions, stored, strict=True):
        test_set = digests.digest_of_test_set(_table(rows, {}, params.contract(), _question(version)))
        if evidence and evidence.test_set == test_set:
            present.append(evidence)
        else:
            answered = _answers(root, params, version, rows)
            present.append(Evidence(number_of(version), answered, test_set, rescored=True))
    return present


def _stored(version: ModelVersion, folder: Path) -> Evidence | None:
    """Return the evidence that is stored with a version; None if it has none."""
    folder.mkdir()
    path = stored_report(version, PREDICTIONS, folder)
    if path is None or EVALUATION_TAG not in version.tags:
        return None
    if digests.file_sha256(path) != version.tags[EVALUATION_TAG]:
        raise RegistryError(
            f"version {number_of(version)}: an interrupted registration has renewed its evaluation in part; run dvc "
            "repro register"
        )
    answered = camera_else_virtual(_question(version).answers(predictions.read(path)))
    return Evidence(number_of(version), answered, digests.digest_of_test_set(answered))


def _question(version: ModelVersion) -> Question:
    """Return the question that production puts to a version."""
    tags = {field.name: version.tags.get(f"headline.{field.name}", "") for field in fields(Question)}
    if not all(tags.values()):
        raise RegistryError(
            f"version {number_of(version)}: its tags lack production's question (headline.view, .kind, .decoding); "
            "register its adapter again (dvc repro --force register)"
        )
    return Question(**tags)


def _test_rows(root: Path) -> list[dict]:
    """Return one row of the chat dataset per capture of the test split: the camera's, else the virtual line's."""
    rows = camera_else_virtual(
        [row for row in read_chat(root / "data/chat/test.jsonl") if row["shot"] == prompts.ZERO_SHOT]
    )
    if not rows:
        raise StageInputError(f"{root / 'data/chat/test.jsonl'}: no capture to compare versions on; add captures")
    return list({row["file"]: row for row in rows}.values())


def _table(
    rows: Sequence[Mapping], records: Mapping[str, Mapping], contract: AnswerContract, question: Question
) -> pd.DataFrame:
    """Return the predictions table of `records` (by file), with the answers that are expected in the version's view."""
    kind = prompts.answer_kind_of(question.kind)
    table = []
    for row in rows:
        expected = replace(contract.parse(row["answer"], AnswerKind(row["answer_kind"])), view=question.view)
        posed = {**row, "view": question.view, "kind": question.kind, "answer": contract.render(expected, kind)}
        record = records.get(row["file"], {})
        table.append(
            predictions.prediction(
                posed,
                record.get("answer") or "",
                contract,
                model=predictions.MODEL,
                decoding=question.decoding,
                p_defective=record.get("p_defective"),
            )
        )
    return predictions.table(table)


def _answers(root: Path, params: Params, version: ModelVersion, rows: Sequence[Mapping]) -> pd.DataFrame:
    """Let a version answer the captures of `rows`, with its own code."""
    records: dict[str, Record] = {}
    try:
        inspector = load_version(version)
    except PinspectError as error:
        raise RegistryError(f"version {number_of(version)}: cannot answer the present test set: {error}") from None
    with contextlib.closing(inspector):
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            # The capture keeps its own name: on a line with two cameras the name holds the eye.
            tasks = [Task(Photograph(row["capture"], _content(root, row["file"])), shape=row["shape"]) for row in batch]
            records |= zip((row["file"] for row in batch), inspector.inspect(tasks), strict=True)
    return _table(rows, records, params.contract(), _question(version))


def _content(root: Path, file: str) -> bytes:
    path = root / "data/raw" / file
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run dvc checkout, or dvc repro")
    return path.read_bytes()
