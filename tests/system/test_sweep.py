"""Experiments of DVC, each with its own code, parameters and scores."""

import json

import pytest
from mlflow import MlflowClient

from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from tests.support.checkout import Checkout

MARK = "scored by the code of"


@pytest.fixture
def sweep(prepared, tmp_path) -> Checkout:
    """A project whose stages have all run, registered and committed."""
    checkout = prepared.copy(tmp_path / "line")
    checkout.must("dvc", "repro", "--force", "--single-item", "register")  # the copy has a registry of its own
    checkout.commit()
    return checkout


def registered(checkout: Checkout) -> dict[str, str]:
    """Every alias and every version of the registry."""
    settings = load_register_settings(checkout.root)
    with open_registry(checkout.root, settings) as client:
        assert isinstance(client, MlflowClient)
        model = client.get_registered_model(settings.model_name)
        versions = client.search_model_versions(f"name = '{settings.model_name}'")
    return {**model.aliases, "versions": str(sorted(version.version for version in versions))}


def stages_of(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_an_experiment_runs_its_own_code_with_its_own_parameters_and_moves_no_alias(sweep):
    """The experiment's stage prints which code it runs; PYTHONPATH is not set, and another pinspect is installed."""
    assert "PYTHONPATH" not in sweep.environment
    before, scores = registered(sweep), (sweep.root / "reports/eval/scores.csv").read_bytes()
    assert str(before["challenger"]) == "1"
    module = sweep.root / "src/pinspect/evaluation/writing.py"
    module.write_text(module.read_text() + f"\nprint({MARK!r}, __file__)\n")
    done = sweep.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "settings.yaml:report.confidence=0.9")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert stages_of(output) == ["evaluate", "register"]
    assert "not registered, since this is experiment apart" in output
    (line,) = (line for line in output.splitlines() if MARK in line)
    assert f"{sweep.root}/.dvc/tmp/exps/" in line
    assert registered(sweep) == before
    assert (sweep.root / "reports/eval/scores.csv").read_bytes() == scores
    shown = json.loads(sweep.must("dvc", "exp", "show", "--json"))
    (experiment,) = (entry for revision in shown for entry in revision["experiments"] or [])
    (revision,) = experiment["revs"]
    assert experiment["name"] == "apart"
    assert revision["data"]["params"]["settings.yaml"]["data"]["report"]["confidence"] == 0.9
    assert "zero_shot" in revision["data"]["metrics"]["reports/eval/metrics.json"]["data"]
    sweep.must("dvc", "exp", "apply", "apart")
    assert (sweep.root / "reports/eval/scores.csv").read_bytes() != scores
