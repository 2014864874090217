"""`pinspect summary`: the results of the last run."""

import json
import shutil
from pathlib import Path

import pytest

from pinspect.cli.summary import print_summary
from pinspect.core.errors import StageInputError
from pinspect.core.runs import RUNS, write_run_facts

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "reports/eval").mkdir(parents=True)
    shutil.copy(ROOT / "reports/eval/metrics.json", tmp_path / "reports/eval")
    (tmp_path / "reports/registration.json").write_text(json.dumps({"name": "pin-inspector"}))
    place = {"model_uri": "models:/pin-inspector/7", "registry": "sqlite:///mlruns/mlflow.db"}
    write_run_facts(tmp_path, "register", place)
    return tmp_path


def test_the_summary_shows_scores_version_and_report(project, capsys):
    print_summary(project)
    output = capsys.readouterr().out
    metrics = json.loads((project / "reports/eval/metrics.json").read_text())
    assert f"{metrics['captures']} captures" in output
    exact = next(line for line in output.splitlines() if "exact match" in line)
    assert f"{metrics['zero_shot']['exact_match']:.3f}" in exact
    assert f"{metrics['baseline']['exact_match']:.3f}" in exact
    assert "models:/pin-inspector/7" in output
    assert str(project / "reports/eval/report.html") in output


def test_outputs_from_another_machine_are_not_shown_as_registered_here(project, capsys):
    (project / RUNS / "register.json").unlink()
    print_summary(project)
    assert "registered: on another machine" in capsys.readouterr().out


def test_a_run_that_has_not_ended_is_reported(project):
    (project / "reports/registration.json").unlink()
    with pytest.raises(StageInputError, match="dvc repro"):
        print_summary(project)
