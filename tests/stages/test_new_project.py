"""A project that `pinspect new` makes, with a real DVC: it runs the installed code, and only that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pinspect.captures.adding import add_captures
from pinspect.cli.choices import read_choices
from pinspect.cli.new import ProjectError, make_project, update_project
from pinspect.core import environment
from pinspect.core.code import CODE_FILE
from pinspect.core.params import load_params
from tests.support.line_project import ANSWERS
from tests.support.sample import ROOT, contents, drop, line, set_values

STAGES = ["raw", "dst", "composite", "chat", "check"]


def run(root: Path, *command: str) -> subprocess.CompletedProcess:
    """Run a module with this checkout's pinspect as the installed one."""
    variables = {
        "PYTHONPATH": str(ROOT / "src"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
    }
    environment_of_run = os.environ | environment.SETTINGS | variables
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment_of_run, capture_output=True, text=True
    )


def repro(root: Path) -> list[str]:
    """Run `dvc repro` up to the answer checks; return the stages that ran."""
    done = run(root, "dvc", "repro", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    return [text.split("'")[1] for text in done.stdout.splitlines() if text.startswith("Running stage")]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A new project whose first five stages have run on a few captures."""
    folder = tmp_path_factory.mktemp("lines") / "line-7"
    folder.mkdir()  # an empty folder will do
    make_project(folder, read_choices(folder, ANSWERS))
    for section, values in {
        "raw": {
            "virtual": {"train": 0, "validation": 0, "test": 0, "references": 3, "defective_share": 0.5, "seed": 1}
        },
        "dst": {"minimum_references": 3},
        "composite": {"cell": 32},
        "check": {"minimum_rows": 1},
    }.items():
        set_values(folder, section, **values)
    drop(folder.parent / "new", line(seed=4, train=8, references=3, shapes=("CYLN",)))
    params = load_params(folder / "params.yaml")
    add_captures(folder.parent / "new", folder / "data/captures", params.contract(), max_pixels=params.raw.max_pixels)
    assert repro(folder) == STAGES
    return folder


def test_a_new_project_has_no_code_of_the_package_and_commits_all_its_files(project):
    files = set(contents(project))
    assert {"README.md", "stages/raw.py", "flows/job_template.json", "models/base/model.safetensors"} <= files
    assert not [name for name in files if name.startswith("src/")]
    ignored = subprocess.run(
        ["git", "status", "--short", "--ignored"], cwd=project, capture_output=True, text=True
    ).stdout
    assert "data/raw/" in ignored
    assert "?? stages" not in ignored and "?? models" not in ignored


def test_git_gets_the_labels_the_record_of_the_images_and_no_image(project):
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    shown = subprocess.run(status, cwd=project, capture_output=True, text=True, check=True).stdout.splitlines()
    changed = {text[3:] for text in shown}
    assert {name for name in changed if name.startswith("data/")} == {
        "data/captures/images.dvc",
        "data/captures/labels.csv",
        "data/splits.csv",
    }
    assert "dvc.lock" in changed


def test_a_second_run_of_a_new_project_runs_no_stage(project):
    assert repro(project) == []


def test_a_stage_refuses_other_code_until_the_project_is_updated(project):
    path, script = project / CODE_FILE, project / "stages/check.py"
    code, before = path.read_text(), script.read_text()
    path.write_text(yaml.safe_dump(yaml.safe_load(code) | {"chat": "0" * 64}))
    script.write_text("old")
    stopped = run(project, "stages.raw")
    assert stopped.returncode == 2
    (problem,) = stopped.stderr.splitlines()
    assert problem.startswith(f"{CODE_FILE}: the installed pinspect has other code in chat; run pinspect update")
    changed, stale = update_project(project)
    assert changed == "code that changed: chat"
    assert not set(STAGES) & set(stale.split(": ")[1].split(", "))
    assert (path.read_text(), script.read_text()) == (code, before)


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path):
    (tmp_path / "line").mkdir()
    (tmp_path / "line/photo.jpg").write_bytes(b"")
    with pytest.raises(ProjectError, match="not an empty folder"):
        make_project(tmp_path / "line", read_choices(tmp_path / "line", ANSWERS))
    assert set(contents(tmp_path)) == {"line/photo.jpg"}


def test_a_project_that_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))  # without git
    with pytest.raises(ProjectError, match="git: not found"):
        make_project(tmp_path / "line", read_choices(tmp_path / "line", ANSWERS))
    assert list(tmp_path.iterdir()) == []


def test_without_an_identity_the_first_commit_is_left_to_the_user(tmp_path, monkeypatch):
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "EMAIL": ""}.items():
        monkeypatch.setenv(name, value)
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    (remark,) = make_project(tmp_path / "line", read_choices(tmp_path / "line", ANSWERS))
    assert remark.startswith("git commit: ") and "nothing is committed yet" in remark
    assert (tmp_path / "line/.dvc/config").is_file()
    shutil.rmtree(tmp_path / "line")
