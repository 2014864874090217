"""Registers an adapter in MLflow: one registered model, one version per package, scores as tags and metrics.

A version is created in one step, with all its tags, after everything that it points to is stored: a killed run leaves
an unfinished MLflow run at most, never half a version. The package of a version never changes: the same adapter with
another view, reference or operating point becomes another version, because otherwise the champion would change without
a promotion. A new evaluation of the same package renews the scores of its version.
"""

from __future__ import annotations

import contextlib
import os
from importlib.metadata import requires
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from packaging.requirements import Requirement

from pinspect.core.digests import weights_sha256
from pinspect.core.params import Params
from pinspect.core.runs import read_run_facts
from pinspect.inspection import registered_model
from pinspect.registry.candidate import Candidate, flatten
from pinspect.registry.connection import experiment_id, open_registry, portable_uri, registry_lock
from pinspect.registry.package import Package, pack
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import (
    ADAPTER_TAG,
    CHALLENGER,
    CHAMPION,
    EVALUATION_TAG,
    PACKAGE_TAG,
    REPORTS,
    TEST_SET_TAG,
    find_version,
)

_METRICS_PER_CALL = 500
_EXPERIMENT_VARIABLES = ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV")  # set by `dvc exp run`


def experiment_name() -> str:
    """Return the name of the DVC experiment that this process belongs to (its baseline commit if it has no name).

    Returns:
        An empty string outside of `dvc exp run`.
    """
    return next((os.environ[name] for name in _EXPERIMENT_VARIABLES if os.environ.get(name)), "")


def describe_experiment(candidate: Candidate, experiment: str) -> dict:
    """Return the content of `reports/registration.json` for an experiment, which is not registered."""
    return {"experiment": experiment, **_facts(candidate)}


def register_candidate(candidate: Candidate, params: Params, settings: RegisterSettings) -> tuple[dict, dict]:
    """Register an adapter and give it the alias `challenger`, unless it is the champion already.

    A package that has a version keeps that version; a new evaluation renews the version's tags and files.

    Args:
        candidate: The evaluated adapter.
        params: The project's parameters.
        settings: The section `register` of the project's settings.

    Returns:
        The content of `reports/registration.json`: what was registered. And where: `version`, `model_uri`, `registry`.

    Raises:
        RegistryError: The registry refuses a call; RegistryUnreachableError if a server does not answer.
        StageInputError: A file that has to be packed is missing.
    """
    name = settings.model_name
    with (
        pack(candidate, params) as package,
        open_registry(candidate.root, settings) as client,
        registry_lock(candidate.root, settings),
    ):
        version = find_version(client, name, package.sha256)
        if version is None:
            version = _create_version(client, candidate, package, params, settings)
        elif version.tags.get(EVALUATION_TAG) != candidate.digests[EVALUATION_TAG]:
            _renew_scores(client, version, candidate)
        if CHAMPION not in client.get_model_version(name, version.version).aliases:
            client.set_registered_model_alias(name, CHALLENGER, version.version)
    place = {
        "version": int(version.version),
        "model_uri": f"models:/{name}/{version.version}",
        "registry": portable_uri(candidate.root, settings),
    }
    return {"name": name, PACKAGE_TAG: package.sha256, **_facts(candidate)}, place


def _facts(candidate: Candidate) -> dict:
    digests = {name: candidate.digests[name] for name in (ADAPTER_TAG, "base_sha256", "dataset_digest", TEST_SET_TAG)}
    return {**digests, "scores": dict(candidate.scores)}


def _requirements() -> list[str]:
    """Return the packages that inspecting needs: those of pinspect itself and of its extra `train`."""
    requirements = []
    for requirement in map(Requirement, requires("pinspect") or []):
        wanted = not requirement.marker or requirement.marker.evaluate({"extra": "train"})
        if wanted and requirement.name != "pinspect":
            requirement.marker = None
            requirements.append(str(requirement))
    return requirements


def _create_version(
    client: MlflowClient, candidate: Candidate, package: Package, params: Params, settings: RegisterSettings
) -> ModelVersion:
    name, sha256 = settings.model_name, candidate.digests[ADAPTER_TAG]
    with contextlib.suppress(MlflowException):  # it exists already, or the next call reports the problem
        client.create_registered_model(name, description="Visual inspection of connector pins: LoRA adapters.")
    experiment = experiment_id(client, candidate.root, settings)
    tags = {**candidate.tags, PACKAGE_TAG: package.sha256}
    with mlflow.start_run(experiment_id=experiment, run_name=f"adapter-{sha256[:8]}", tags=tags) as run:
        _log_run(client, run, candidate, params)
        model = mlflow.pyfunc.log_model(
            name="inspector",
            python_model=registered_model.__file__,
            artifacts=dict(package.artifacts),
            signature=registered_model.signature(),
            code_paths=[str(package.code)],
            pip_requirements=_requirements(),
        )
        for metric, value in candidate.scores.items():
            mlflow.log_metric(metric, value, model_id=model.model_id)
    version = client.create_model_version(
        name,
        source=model.model_uri,
        run_id=run.info.run_id,
        tags=tags,
        description=f"Adapter {sha256[:12]} on base {candidate.digests['base_sha256'][:12]}.",
        model_id=model.model_id,
    )
    return _keep_oldest(client, version, package)


def _keep_oldest(client: MlflowClient, version: ModelVersion, package: Package) -> ModelVersion:
    """Remove the new version if another machine registered the same package in the meantime."""
    oldest = find_version(client, version.name, package.sha256)
    if oldest is None or oldest.version == version.version:
        return version
    client.delete_model_version(version.name, version.version)
    return oldest


def _renew_scores(client: MlflowClient, version: ModelVersion, candidate: Candidate) -> None:
    run_id = str(version.run_id)
    for metric, value in candidate.scores.items():
        client.log_metric(run_id, metric, value)
    for report in candidate.reports:
        client.log_artifact(run_id, str(report), REPORTS)
    # The hash of the evaluation comes last: it marks everything before it as renewed.
    for tag, text in sorted(candidate.tags.items(), key=lambda item: item[0] == EVALUATION_TAG):
        client.set_model_version_tag(version.name, version.version, tag, text)


def _log_run(client: MlflowClient, run: Run, candidate: Candidate, params: Params) -> None:
    mlflow.log_params(flatten(params.model_dump(by_alias=True)))
    digest = candidate.digests["dataset_digest"]
    dataset = MetaDataset(CodeDatasetSource({"path": "data/chat", "dvc": digest}), name="chat", digest=digest)
    mlflow.log_input(dataset, context="training")
    points = _learning_curve(candidate.adapter / "learning_curve.csv")
    for start in range(0, len(points), _METRICS_PER_CALL):
        client.log_batch(run.info.run_id, metrics=points[start : start + _METRICS_PER_CALL])
    for report in candidate.reports:
        mlflow.log_artifact(str(report), REPORTS)
    _log_run_facts(candidate)


def _log_run_facts(candidate: Candidate) -> None:
    """Log what training and answering took on this machine, unless the facts belong to another adapter."""
    weights = weights_sha256(candidate.adapter)
    for stage in ("train", "answer"):
        facts = read_run_facts(candidate.root, stage)
        if facts.pop("weights_sha256", None) != weights:
            continue
        for name, value in flatten(facts, f"run.{stage}.").items():
            if isinstance(value, int | float):
                mlflow.log_metric(name, float(value))
            else:
                mlflow.set_tag(name, str(value))


def _learning_curve(path: Path) -> list[Metric]:
    if not path.is_file():
        return []
    curve = pd.read_csv(path)
    names = [name for name in ("loss", "validation_loss", "learning_rate") if name in curve]
    return [
        Metric(f"train.{name}", float(value), timestamp=0, step=int(step))
        for name in names
        for step, value in curve[["step", name]].dropna().itertuples(index=False)
    ]
