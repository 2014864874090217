"""What made a version is an experiment of DVC, which a new folder reproduces."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pinspect.registry.lineage import LineageError, check_out_commit, new_name, push_experiment, save_experiment

PIPELINE = """
stages:
  copy:
    cmd: cp data/captures/labels.csv data/out.csv
    deps: [data/captures]
    outs: [data/out.csv]
"""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture
def repository(tmp_path) -> Path:
    """A project with one stage, committed before it has run."""
    root = tmp_path / "project"
    (root / "data/captures").mkdir(parents=True)
    (root / "data/captures/labels.csv").write_text("first\n")
    (root / "dvc.yaml").write_text(PIPELINE)
    run(root, "git", "init", "--quiet")
    run(root, "git", "config", "user.name", "Line")
    run(root, "git", "config", "user.email", "line@example.com")
    dvc(root, "init", "--quiet")
    run(root, "git", "add", ".")
    run(root, "git", "commit", "--quiet", "--message", "New line")
    return root


def test_a_new_folder_has_captures_and_data_of_a_run_that_nobody_committed(repository, tmp_path):
    (repository / "data/captures/labels.csv").write_text("second\n")
    (repository / "data/captures/new.jpg").write_bytes(b"new")  # unknown to git
    dvc(repository, "repro")
    before = run(repository, "git", "rev-parse", "HEAD"), run(repository, "git", "status", "--porcelain")
    commit = save_experiment(repository, "retrain-1")
    assert (run(repository, "git", "rev-parse", "HEAD"), run(repository, "git", "status", "--porcelain")) == before
    run(tmp_path, "git", "init", "--quiet", "--bare", "remote.git")
    run(repository, "git", "remote", "add", "origin", str(tmp_path / "remote.git"))
    dvc(repository, "remote", "add", "--default", "store", str(tmp_path / "store"))
    assert push_experiment(repository, "retrain-1") == "store and origin"
    assert commit in run(tmp_path / "remote.git", "git", "for-each-ref", "refs/exps")
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    (repository / "data/captures/labels.csv").write_text("third\n")
    dvc(repository, "repro")

    out = tmp_path / "again"
    check_out_commit(repository, commit, out)
    assert (out / "data/captures/labels.csv").read_text() == "second\n"
    assert (out / "data/captures/new.jpg").read_bytes() == b"new"
    assert (out / "data/out.csv").read_text() == "second\n"
    assert "didn't change" in dvc(out, "repro")
    with pytest.raises(LineageError, match="again: exists already; choose a new folder"):
        check_out_commit(repository, commit, out)
    with pytest.raises(LineageError, match="commit ffffffffffff is not here; fetch it"):
        check_out_commit(repository, "f" * 40, tmp_path / "other")


def test_two_machines_never_overwrite_each_others_experiment(repository, tmp_path):
    run(tmp_path, "git", "clone", "--quiet", "--bare", str(repository), "remote.git")
    time, pushed = datetime(2026, 11, 29, 2, 0, 0), {}
    for machine in ("one", "two"):
        clone = tmp_path / machine
        run(tmp_path, "git", "clone", "--quiet", "--depth", "1", f"file://{tmp_path}/remote.git", machine)
        run(clone, "git", "config", "user.name", machine)
        run(clone, "git", "config", "user.email", f"{machine}@example.com")
        (clone / "data/captures/labels.csv").write_text(machine)
        dvc(clone, "repro")
        name = new_name("retrain", time)
        pushed[name] = save_experiment(clone, name)
        push_experiment(clone, name)
        pushed.setdefault("same", save_experiment(clone, "same"))
        if machine == "one":
            push_experiment(clone, "same")
    with pytest.raises(LineageError, match=r"git push: ! \[rejected\]"):
        push_experiment(tmp_path / "two", "same")
    listed = run(
        tmp_path / "remote.git", "git", "for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/exps"
    )
    assert dict(line.split() for line in listed.splitlines()) == pushed
    assert len(pushed) == 3


def test_a_folder_without_a_commit_cannot_be_saved(tmp_path):
    with pytest.raises(LineageError, match="git rev-parse: fatal: not a git repository"):
        save_experiment(tmp_path, "retrain-1")
