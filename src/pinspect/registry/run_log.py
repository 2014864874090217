"""Logs a registration as an MLflow run: parameters, data, learning curve, scores, answers and reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Run

from pinspect.core.digests import weights_sha256
from pinspect.core.params import Params
from pinspect.core.runs import read_run_facts
from pinspect.registry.candidate import Candidate, flatten
from pinspect.registry.versions import REPORTS, TEST_SET_TAG

ANSWERS = "answers.json"  # a table: production's question on the test captures
_ANSWER_COLUMNS = ("file", "shape", "view", "expected", "answer", "p_defective", "threshold", "parses")
_METRICS_PER_CALL = 500
_LONGEST_DIGEST = 36  # MLflow's limit
_STEP_TIMES = "step_times"  # a fact of the training


def log_run(client: MlflowClient, run: Run, candidate: Candidate, params: Params) -> None:
    """Log everything but the scores to the running run.

    Args:
        client: The client of the registry.
        run: The running run.
        candidate: The evaluated adapter.
        params: The project's parameters.
    """
    mlflow.log_params(flatten(params.model_dump(by_alias=True)))
    mlflow.log_input(_dataset("chat", "data/chat", candidate.digests["dataset_digest"]), context="training")
    mlflow.log_input(tested_captures(candidate), context="test")
    facts = _facts_of(candidate, "train")
    points = _learning_curve(candidate, cast(Sequence[float], facts.get(_STEP_TIMES, ())))
    for start in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(run.info.run_id, metrics=points[start : start + _METRICS_PER_CALL])
    mlflow.log_table(_answers(candidate), ANSWERS)
    for report in candidate.reports:
        mlflow.log_artifact(str(report), REPORTS)
    for stage in ("train", "answer"):
        for name, value in flatten(_facts_of(candidate, stage), f"run.{stage}.").items():
            if isinstance(value, int | float):
                mlflow.log_metric(name, float(value))
            elif not isinstance(value, list):
                mlflow.set_tag(name, str(value))


def renew_run(client: MlflowClient, run_id: str, candidate: Candidate) -> None:
    """Replace scores, answers and reports of a run by those of a new evaluation.

    Args:
        client: The client of the registry.
        run_id: The run.
        candidate: The adapter with its new evaluation.
    """
    tested = tested_captures(candidate)
    for metric, value in candidate.scores.items():
        client.log_metric(run_id, metric, value, dataset_name=tested.name, dataset_digest=tested.digest)
    client.log_text(run_id, _answers(candidate).to_json(orient="split", index=False), ANSWERS)
    for report in candidate.reports:
        client.log_artifact(run_id, str(report), REPORTS)


def tested_captures(candidate: Candidate) -> MetaDataset:
    """Return the test captures as MLflow's dataset: the first 36 digits of `test_set_digest` identify them."""
    return _dataset("test", "data/chat/test.jsonl", candidate.digests[TEST_SET_TAG][:_LONGEST_DIGEST])


def _dataset(name: str, path: str, digest: str) -> MetaDataset:
    return MetaDataset(CodeDatasetSource({"path": path, "dvc": digest}), name=name, digest=digest)


def _answers(candidate: Candidate) -> pd.DataFrame:
    return candidate.answered[list(_ANSWER_COLUMNS)].reset_index(drop=True)


def _facts_of(candidate: Candidate, stage: str) -> dict[str, object]:
    """Return what a stage took on this machine; nothing if the facts belong to another adapter."""
    facts = read_run_facts(candidate.root, stage)
    return facts if facts.pop("weights_sha256", None) == weights_sha256(candidate.adapter) else {}


def _learning_curve(candidate: Candidate, step_times: Sequence[float]) -> list[Metric]:
    """Return the points of the curve at the time of their step; at the present time if another machine trained."""
    path = candidate.adapter / "learning_curve.csv"
    if not path.is_file():
        return []
    curve = pd.read_csv(path)
    names = [name for name in ("loss", "validation_loss", "learning_rate") if name in curve]
    if len(step_times) != len(curve):
        step_times = [time.time()] * len(curve)
    times = dict(zip(curve["step"], step_times, strict=True))
    return [
        Metric(f"train.{name}", float(value), timestamp=int(times[step] * 1000), step=int(step))
        for name in names
        for step, value in curve[["step", name]].dropna().itertuples(index=False)
    ]
