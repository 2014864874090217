"""`pinspect summary`: the last run at a glance."""

import json
import shutil
from pathlib import Path

import pytest

from pinspect.cli.summary import print_summary
from pinspect.core.errors import StageInputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    (tmp_path / "reports/eval").mkdir(parents=True)
    shutil.copy(ROOT / "reports/eval/metrics.json", tmp_path / "reports/eval")
    registration = {"model_uri": "models:/pin-inspector/7", "registry": "sqlite:///mlruns/mlflow.db"}
    (tmp_path / "reports/registration.json").write_text(json.dumps(registration))
    return tmp_path


def test_the_summary_tells_scores_version_and_report(project, capsys):
    print_summary(project)
    told = capsys.readouterr().out
    metrics = json.loads((project / "reports/eval/metrics.json").read_text())
    assert f"{metrics['captures']} captures" in told
    exact = next(line for line in told.splitlines() if "exact match" in line)
    assert f"{metrics['zero_shot']['exact_match']:.3f}" in exact
    assert f"{metrics['baseline']['exact_match']:.3f}" in exact
    assert "models:/pin-inspector/7" in told
    assert str(project / "reports/eval/report.html") in told


def test_a_run_that_has_not_ended_is_told(project):
    (project / "reports/registration.json").unlink()
    with pytest.raises(StageInputError, match="dvc repro"):
        print_summary(project)
