"""`pinspect status`: the stages that DVC would run, new captures, and the champion."""

import json
import subprocess
import sys

import pytest

from pinspect.cli import main as cli
from pinspect.cli.status import new_captures, stage_states
from pinspect.core.errors import StageInputError
from tests.support.sample import ROOT, drop, line

STAGES = {
    "raw": ("data/captures", "data/raw"),
    "train": ("data/raw", "adapter.txt"),
    "register": ("adapter.txt", "registration.txt"),
    "drawings": ("params.yaml", "drawings.txt"),
}


def dvc(*words, root) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A DVC repository with four captures and a pipeline that has run."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("params.yaml", "settings.yaml"):
        (root / name).write_text((ROOT / name).read_text())
    drop(root / "data/captures", line()[:4])
    (root / "seen.csv").write_text("capture,source\n" + "".join(f"{capture.name},camera\n" for capture in line()[:4]))
    commands = {name: f"echo made > {out}" for name, (_, out) in STAGES.items()}
    commands["raw"] = "mkdir -p data/raw && cp seen.csv data/raw/manifest.csv"
    stages = {name: {"cmd": commands[name], "deps": [dep], "outs": [out]} for name, (dep, out) in STAGES.items()}
    (root / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    dvc("init", "--quiet", "--no-scm", root=root)
    dvc("repro", "--quiet", root=root)
    return root


def test_nothing_changed_means_nothing_to_do(repository):
    assert {state["state"] for state in stage_states(repository).values()} == {"unchanged"}
    assert new_captures(repository) == ([], [])


def test_a_new_capture_runs_the_stages_after_it_and_is_named(repository, monkeypatch, capsys):
    drop(repository / "data/captures", line()[4:5])
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if ".dvc" not in path.parts}
    states = stage_states(repository)
    assert list(states).index("raw") < list(states).index("train") < list(states).index("register")
    assert states["raw"] == {"state": "changed", "why": ["data/captures modified"]}
    assert states["train"] == {"state": "follows", "why": ["after raw"]}
    assert states["register"] == {"state": "follows", "why": ["after train"]}
    assert states["drawings"]["state"] == "unchanged"
    assert before == {path: path.stat().st_mtime_ns for path in repository.rglob("*") if ".dvc" not in path.parts}
    assert new_captures(repository) == ([line()[4].name], [])

    monkeypatch.chdir(repository)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for words in (["status", "--json"], ["status"]):
        monkeypatch.setattr(sys, "argv", ["pinspect", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    machine, *people = capsys.readouterr().out.splitlines()
    status = json.loads(machine)
    assert status["stages"] == states
    assert status["new_captures"] == [line()[4].name]
    assert "no MLflow server answers" in status["registry_error"]
    assert line()[4].name in " ".join(people)


def test_a_removed_capture_is_named(repository):
    (repository / "data/captures/images" / line()[0].name).rename(repository / "away")
    try:
        assert new_captures(repository)[1] == [line()[0].name]
    finally:
        (repository / "away").rename(repository / "data/captures/images" / line()[0].name)


def test_outside_of_a_repository_the_error_names_the_folder(tmp_path):
    with pytest.raises(StageInputError, match="run this in the project's folder"):
        stage_states(tmp_path)
