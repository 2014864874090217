"""`pinspect prune` on a real registry and a real DVC cache."""

import json
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pinspect.core.errors import RegistryError
from pinspect.registry.connection import open_registry
from pinspect.registry.pruning import prune
from pinspect.registry.settings import PruneSettings, load_register_settings
from tests.support.sample import set_values
from tests.support.station_stack import PINSPECT

NAME = "pin-inspector"


@pytest.fixture
def project(registered) -> Path:
    """A project with versions 1 (champion and challenger), 2 and 3, in a DVC repository."""
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=registered, check=True)
    return registered


def state_of(root: Path) -> tuple[set[str], set[str], int]:
    """Return the versions, the runs in every state, and the number of files of packages."""
    with open_registry(root, load_register_settings(root)) as client:
        assert isinstance(client, MlflowClient)
        versions = {str(version.version) for version in client.search_model_versions(f"name = '{NAME}'")}
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = {run.info.run_id for run in client.search_runs(experiments, run_view_type=3)}
    return versions, runs, len(list((root / "mlruns").rglob("adapter_model.safetensors")))


def test_versions_that_nothing_needs_are_deleted_with_packages_and_runs(project):
    versions, runs, packages = state_of(project)
    assert (versions, len(runs), packages) == ({"1", "2", "3"}, 3, 3)
    settings = load_register_settings(project)
    assert prune(project, settings, PruneSettings(versions=3), dry_run=True).versions == ()
    with open_registry(project, settings) as client:  # a former champion stays
        client.set_model_version_tag(NAME, "2", "promotion", json.dumps({"promoted": True}))
        assert prune(project, settings, PruneSettings(versions=1), dry_run=True).versions == ()
        client.set_model_version_tag(NAME, "2", "promotion", json.dumps({"promoted": False}))
    set_values(project, "prune", versions=1)
    shown = subprocess.run([PINSPECT, "prune", "--dry-run"], cwd=project, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[0] == "versions would be deleted: 2"
    assert state_of(project) == (versions, runs, packages)
    done = subprocess.run([PINSPECT, "prune", "--json"], cwd=project, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["versions"] == ["2"]
    versions, runs, packages = state_of(project)
    assert (versions, len(runs), packages) == ({"1", "3"}, 2, 2)


def test_a_project_without_a_dvc_repository_is_an_error_in_one_line(three_versions, tmp_path):
    with pytest.raises(RegistryError, match=r"^dvc gc: .*not inside of a DVC repository"):
        prune(three_versions, load_register_settings(three_versions), PruneSettings(versions=9))
