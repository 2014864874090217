"""Registers an adapter in MLflow: one registered model, one version per package, scores as tags and metrics.

A version is created in one step, with all its tags, after everything that it points to is stored: a killed run leaves
an unfinished MLflow run at most, never half a version. The package of a version never changes: the same adapter with
another view, reference or operating point becomes another version, because otherwise the champion would change without
a promotion. A new evaluation of the same package renews the scores of its version.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_NAME
from packaging.requirements import Requirement

from pinspect.core.params import Params
from pinspect.core.start import TRAINING
from pinspect.inspection import registered_model
from pinspect.registry.candidate import Candidate
from pinspect.registry.connection import experiment_id, open_registry, portable_uri, registry_lock
from pinspect.registry.package import Package, pack
from pinspect.registry.run_log import log_run, renew_run, tested_captures
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import (
    ADAPTER_TAG,
    CHALLENGER,
    CHAMPION,
    EVALUATION_TAG,
    PACKAGE_TAG,
    TEST_SET_TAG,
    find_version,
)

_NOT_FOR_INSPECTING = ("accelerate", "tqdm", "typer")  # peft installs accelerate itself
_SOURCE = {MLFLOW_SOURCE_NAME: "stages.register"}  # MLflow would record the path of this machine
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
    """Register an adapter and give it the alias `challenger`, unless a newer version is challenger or champion.

    A package that has a version keeps that version; a new evaluation renews the version's tags and files. A clone that
    registers what it was cloned with so takes the alias from no version that another machine has made since.

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
        aliases = client.get_registered_model(name).aliases
        if all(int(version.version) > int(aliases.get(alias, 0)) for alias in (CHAMPION, CHALLENGER)):
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


def requirements(adapter: Path) -> list[str]:
    """Return what inspecting needs, in the versions that are installed here.

    These are the packages of pinspect and of its extra `train` without those for commands and training, MLflow's small
    package, which loads a model, and bitsandbytes for an adapter that was trained on 4-bit weights.

    Args:
        adapter: The adapter's folder.
    """
    names = {"mlflow-skinny"}
    for requirement in map(Requirement, metadata.requires("pinspect") or []):
        if not requirement.marker or requirement.marker.evaluate({"extra": "train"}):
            names.add(requirement.name)
    names -= {"pinspect", *_NOT_FOR_INSPECTING}
    if json.loads((adapter / TRAINING).read_text(encoding="utf-8")).get("four_bits"):
        names.add("bitsandbytes")
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names)]


def _example(package: Package) -> pd.DataFrame:
    """Return a request for the registered model: a reference of the line as base64."""
    reference = min(Path(package.artifacts["line"]).glob("*-reference.*"))
    return pd.DataFrame({"inspected": [base64.b64encode(reference.read_bytes()).decode()]})


def _create_version(
    client: MlflowClient, candidate: Candidate, package: Package, params: Params, settings: RegisterSettings
) -> ModelVersion:
    name, sha256 = settings.model_name, candidate.digests[ADAPTER_TAG]
    with contextlib.suppress(MlflowException):  # it exists already, or the next call reports the problem
        client.create_registered_model(name, description="Visual inspection of connector pins: LoRA adapters.")
    experiment = experiment_id(client, candidate.root, settings)
    tags = {**candidate.tags, PACKAGE_TAG: package.sha256}
    with mlflow.start_run(experiment_id=experiment, run_name=f"adapter-{sha256[:8]}", tags=tags | _SOURCE) as run:
        log_run(client, run, candidate, params)
        model = mlflow.pyfunc.log_model(
            name="inspector",
            python_model=registered_model.__file__,
            artifacts=dict(package.artifacts),
            signature=registered_model.signature(),
            code_paths=[str(package.code)],
            pip_requirements=requirements(candidate.adapter),
            input_example=_example(package),
        )
        mlflow.log_metrics(dict(candidate.scores), model_id=model.model_id, dataset=tested_captures(candidate))
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
    renew_run(client, str(version.run_id), candidate)
    # The hash of the evaluation comes last: it marks everything before it as renewed.
    for tag, text in sorted(candidate.tags.items(), key=lambda item: item[0] == EVALUATION_TAG):
        client.set_model_version_tag(version.name, version.version, tag, text)
