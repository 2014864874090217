"""Deletes what nothing needs any more: old versions of the registry, and outputs in DVC's cache.

A version stays if it is among the newest, has an alias, or was champion: its decision is a record. The cache keeps the
outputs of the present files, of every git tag, and of every experiment: `retrain` keeps what made a version as one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from pinspect.core.errors import RegistryError
from pinspect.registry.connection import open_registry, registry_environment, registry_lock, tracking_uri
from pinspect.registry.lineage import LINEAGE_TAG, experiments, remove_experiments
from pinspect.registry.settings import PruneSettings, RegisterSettings
from pinspect.registry.versions import DECISION_TAG, ROLLBACK_TAG, number_of

_LOGGED = "models:/"  # the source of a version: the id of its package follows
_GONE = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be.

    Attributes:
        versions: Numbers of the versions, the oldest first.
        cache: The output of `dvc gc`.
    """

    versions: tuple[str, ...]
    cache: str


def prune(root: Path, settings: RegisterSettings, keep: PruneSettings, *, dry_run: bool = False) -> Pruned:
    """Delete old versions with their packages, runs and reports, then outputs that only they needed.

    Args:
        root: The project's folder.
        settings: The section `register`.
        keep: The section `prune`.
        dry_run: Delete nothing.

    Raises:
        RegistryError: The registry cannot be used, or `mlflow gc` or `dvc gc` fails. Run it again: it goes on.
    """
    name = settings.model_name
    with open_registry(root, settings) as client, registry_lock(root, settings):
        versions = client.search_model_versions(f"name = '{name}'")
        aliases = client.get_registered_model(name).aliases if versions else {}
        aliased = {str(number) for number in aliases.values()}
        oldest_first = sorted(versions, key=lambda version: int(version.version))
        old = oldest_first[: max(0, len(versions) - keep.versions)]
        obsolete = [version for version in old if number_of(version) not in aliased and not _is_record(version)]
        for version in () if dry_run else obsolete:
            if commit := version.tags.get(LINEAGE_TAG):
                remove_experiments(root, commit)
            _delete(client, version)
    if not dry_run and not tracking_uri(root, settings).startswith("http"):  # on a server, its owner runs mlflow gc
        _run(root, settings, "mlflow", "gc")  # all deleted runs, those of a pruning that was killed, too
    kept = ("--workspace", "--all-tags", *(["--all-experiments"] if experiments(root) else []))  # needs git
    output = _run(root, settings, "dvc", "gc", *kept, "--force", *(["--dry"] if dry_run else []))
    return Pruned(tuple(number_of(version) for version in obsolete), output.strip())


def _is_record(version: ModelVersion) -> bool:
    decision = json.loads(version.tags.get(DECISION_TAG, "{}"))
    return bool(decision.get("promoted")) or ROLLBACK_TAG in version.tags


def _delete(client: MlflowClient, version: ModelVersion) -> None:
    """Delete a version last, so that a killed run finds it again."""
    try:
        package = client.get_logged_model(str(version.source).removeprefix(_LOGGED))
        get_artifact_repository(package.artifact_location).delete_artifacts()
        client.delete_logged_model(package.model_id)
    except MlflowException as error:
        if error.error_code != _GONE:
            raise
    if client.get_run(str(version.run_id)).info.lifecycle_stage == LifecycleStage.ACTIVE:
        client.delete_run(str(version.run_id))
    client.delete_model_version(version.name, version.version)


def _run(root: Path, settings: RegisterSettings, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root,
        env=registry_environment(root, settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RegistryError(f"{' '.join(command[:2])}: {reason[0]}; correct this, then run pinspect prune again")
    return done.stdout
