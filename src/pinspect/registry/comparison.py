"""Registered versions on one test set: their stored answers, or new ones where they were scored on another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from pinspect.core import digests as provenance
from pinspect.core import predictions, prompts
from pinspect.core.answers import DEFECTIVE, AnswerContract, AnswerKind
from pinspect.core.errors import RegistryError, StageInputError
from pinspect.core.params import Params
from pinspect.core.question import Question, camera_else_virtual
from pinspect.core.rows import read_chat
from pinspect.evaluation import metrics
from pinspect.evaluation.settings import ReportSettings
from pinspect.registry.connection import tracking_uri
from pinspect.registry.settings import load_register_settings
from pinspect.registry.versions import EVALUATION_TAG, PREDICTIONS, number_of, stored_report

# A process of its own: a version answers by the code that it was registered with, not by the present one.
_ANSWER = """
import sys, mlflow, pandas
asked = pandas.read_json(sys.argv[2], orient="records", dtype=False)
mlflow.pyfunc.load_model(sys.argv[1]).predict(asked).to_json(sys.argv[3], orient="records")
"""


@dataclass(frozen=True)
class Evidence:
    """What a version answered, zero-shot and as production asks it: one row of a predictions table a capture.

    test_set: the digest of the captures and their right answers. rescored: whether it was asked anew.
    """

    version: str
    answered: pd.DataFrame
    test_set: str
    rescored: bool = False

    @property
    def on_defective(self) -> pd.DataFrame:
        """Its answers to the defective captures."""
        return self.answered[self.answered["expected_judgement"] == DEFECTIVE]

    def scores(self, report: ReportSettings) -> dict[str, metrics.Estimate]:
        """Return `metrics.score` of the answers."""
        return metrics.score(
            self.answered, confidence=report.confidence, bootstrap_samples=report.bootstrap_samples, seed=report.seed
        )


def on_one_test_set(root: Path, params: Params, versions: Sequence[ModelVersion]) -> list[Evidence]:
    """The evidence of `versions`, all on the same test set.

    Stored answers count where all are to the same test set. Otherwise the test set of the project in `root` does, and
    who was scored on another one is asked anew: packed adapter, line and code, as production would. Raises
    StageInputError when that needs files that are not there, RegistryError when a version cannot answer.
    """
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        stored = [_stored(version, Path(folder) / number_of(version)) for version in versions]
    if all(stored) and len({evidence.test_set for evidence in stored}) == 1:
        return stored
    rows = _test_rows(root)
    found = []
    for version, evidence in zip(versions, stored, strict=True):
        present = provenance.digest_of_test_set(_table(rows, {}, params.contract(), _question(version)))
        if evidence is None or evidence.test_set != present:
            evidence = Evidence(number_of(version), _answered_anew(root, params, version, rows), present, rescored=True)
        found.append(evidence)
    return found


def _stored(version: ModelVersion, folder: Path) -> Evidence | None:
    """The evidence of a version's own evaluation; None where none is stored."""
    folder.mkdir()
    path = stored_report(version, PREDICTIONS, folder)
    if path is None or EVALUATION_TAG not in version.tags:
        return None
    if provenance.file_sha256(path) != version.tags[EVALUATION_TAG]:
        raise RegistryError(
            f"version {number_of(version)}: its evaluation was renewed by half, a registration was interrupted; run "
            "dvc repro register"
        )
    answered = camera_else_virtual(_question(version).answers(predictions.read(path)))
    return Evidence(number_of(version), answered, provenance.digest_of_test_set(answered))


def _question(version: ModelVersion) -> Question:
    """Return the question that production puts to a version."""
    tags = {field.name: version.tags.get(f"headline.{field.name}", "") for field in fields(Question)}
    if not all(tags.values()):
        raise RegistryError(
            f"version {number_of(version)}: does not say how it is asked, an older pinspect registered it; register "
            "its adapter again (dvc repro --force register)"
        )
    return Question(**tags)


def _test_rows(root: Path) -> list[dict]:
    """One row of the chat dataset for each capture of the test split: the camera's, or where there is none all."""
    rows = camera_else_virtual(
        [row for row in read_chat(root / "data/chat/test.jsonl") if row["shot"] == prompts.ZERO_SHOT]
    )
    if not rows:
        raise StageInputError(f"{root / 'data/chat/test.jsonl'}: has no capture to compare versions on; add captures")
    return list({row["file"]: row for row in rows}.values())


def _table(
    rows: Sequence[Mapping], records: Mapping[str, Mapping], contract: AnswerContract, question: Question
) -> pd.DataFrame:
    """The predictions table of `records` (by file), each beside the answer that is right for the version's view."""
    kind = prompts.answer_kind_of(question.kind)
    told = []
    for row in rows:
        right = replace(contract.parse(row["answer"], AnswerKind(row["answer_kind"])), view=question.view)
        posed = {**row, "view": question.view, "kind": question.kind, "answer": contract.render(right, kind)}
        record = records.get(row["file"], {})
        told.append(
            predictions.prediction(
                posed,
                record.get("answer") or "",
                contract,
                model=predictions.MODEL,
                decoding=question.decoding,
                p_defective=record.get("p_defective"),
            )
        )
    return predictions.table(told)


def _answered_anew(root: Path, params: Params, version: ModelVersion, rows: Sequence[Mapping]) -> pd.DataFrame:
    with tempfile.TemporaryDirectory(prefix="pinspect-") as name:
        folder, questions = Path(name), []
        for number, row in enumerate(rows):
            # Under the name that it came by: on a line with two cameras the name tells the eye.
            photograph = folder / str(number) / row["capture"]
            photograph.parent.mkdir()
            shutil.copyfile(_required(root / "data/raw" / row["file"]), photograph)
            questions.append({"inspected": str(photograph), "shape": row["shape"]})
        (folder / "questions.json").write_text(json.dumps(questions), encoding="utf-8")
        uri = tracking_uri(root, load_register_settings(root))
        done = subprocess.run(
            [
                *(sys.executable, "-c", f"import mlflow; mlflow.set_tracking_uri({uri!r})\n{_ANSWER}"),
                *(f"models:/{version.name}/{number_of(version)}", folder / "questions.json", folder / "answers.json"),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RegistryError(f"version {number_of(version)}: cannot answer the present test set: {told[0]}")
        records = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    by_file = {row["file"]: record for row, record in zip(rows, records, strict=True)}
    return _table(rows, by_file, params.contract(), _question(version))


def _required(path: Path) -> Path:
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run dvc checkout, or dvc repro")
    return path
