"""Captures of a new project, with a real git and a real DVC: git has the labels, DVC has the images."""

import os
import pty
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml

from pinspect.captures.dvc_images import record_images
from pinspect.captures.labels import read_captures
from pinspect.core.errors import CaptureError
from pinspect.registry.lineage import check_out_commit, save_experiment
from tests.support.checkout import IDENTITY
from tests.support.line_project import PINSPECT, LineProject, make_line_project
from tests.support.sample import contents, drop, line, params
from tests.support.waiting import until

CONTRACT = params().contract()
CAPTURES = line(seed=4, train=9, references=3, shapes=("CYLN",))
RECORD = "data/captures/images.dvc"
SECONDS = 300
HOLDING_STAGE = "touch started; while [ ! -e go ]; do sleep 0.1; done; {python} -c '{heal}' && ls {images} > {seen}"
HEAL = 'from pathlib import Path; from pinspect.captures.change import heal; heal(Path("data/captures"))'


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """A new project without captures."""
    return make_line_project(tmp_path_factory.mktemp("lines") / "line-7").root


@pytest.fixture
def project(empty, tmp_path) -> LineProject:
    """A copy of the new project."""
    return LineProject(shutil.copytree(empty, tmp_path / "project", symlinks=True))


@pytest.fixture
def first(tmp_path) -> Path:
    """Six captures to add."""
    return drop(tmp_path / "first", CAPTURES[:6])


@pytest.fixture
def second(tmp_path) -> Path:
    """Six other captures to add."""
    return drop(tmp_path / "second", CAPTURES[6:])


def recorded(project: LineProject) -> int:
    """Return how many images `images.dvc` has."""
    return yaml.safe_load((project.root / RECORD).read_bytes())["outs"][0]["nfiles"]


def images(project: LineProject) -> dict[str, bytes]:
    return contents(project.captures / "images")


def expected(*captures) -> dict[str, bytes]:
    return {capture.name: capture.jpeg for capture in captures}


def set_stage(project: LineProject, command: str) -> None:
    """Make the pipeline one stage that reads the captures."""
    (project.root / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"read": {"cmd": command, "deps": ["data/captures"]}}})
    )


def start_holding_dvc(project: LineProject, seen: Path) -> subprocess.Popen:
    """Start a `dvc repro` whose stage reads the captures until the file `go` exists, then locks them, as stage raw."""
    command = HOLDING_STAGE.format(python=PINSPECT[0], heal=HEAL, images="data/captures/images", seen=seen)
    set_stage(project, command)
    dvc = subprocess.Popen(
        [PINSPECT[0], "-m", "dvc", "repro"], cwd=project.root, env=project.environment, stdout=subprocess.DEVNULL
    )
    until((project.root / "started").exists, "the start of the stage", SECONDS)
    return dvc


def test_git_gets_labels_and_record_and_dvc_gets_the_images(project, first, second):
    assert project.changes() == set()
    project.add(first)
    assert project.changes() == {f" M {RECORD}", "?? data/captures/labels.csv"}
    assert recorded(project) == 6
    project.commit()
    project.add(second)
    assert project.changes() == {f" M {RECORD}", " M data/captures/labels.csv"}
    assert recorded(project) == 12
    project.commit()
    tracked = project.must("git", "ls-files", "data/captures").split()
    assert tracked == [f"data/captures/{name}" for name in (".gitignore", "images.dvc", "labels.csv")]
    assert images(project) == expected(*CAPTURES)
    assert "up to date" in project.must("dvc", "status", RECORD)


def test_a_clone_gets_the_images_by_dvc_pull_and_adds_nothing_before(project, first, second, tmp_path):
    project.add(first)
    project.must("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit()
    project.must("dvc", "push")
    project.must("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = LineProject(tmp_path / "clone")

    refused = clone.run(*PINSPECT, "add", str(second))
    assert refused.returncode == 2
    (problem,) = refused.stderr.splitlines()
    assert problem.endswith(f"images: not found, but {RECORD} lists 6 images; run dvc pull {RECORD}")
    assert clone.changes() == set()

    clone.must("dvc", "pull", RECORD)
    assert images(clone) == expected(*CAPTURES[:6])
    assert read_captures(clone.captures, CONTRACT) == read_captures(project.captures, CONTRACT)
    clone.add(second)
    assert recorded(clone) == 12


def test_git_merges_the_captures_of_two_people(project, first, second, tmp_path):
    project.must("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.add(drop(tmp_path / "base", CAPTURES[:2]))
    project.commit()
    project.must("dvc", "push", RECORD)
    project.must("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    colleague = LineProject(tmp_path / "clone")
    colleague.must("dvc", "pull", RECORD)
    for each, source in ((project, first), (colleague, second)):
        each.add(source)
        each.commit()
        each.must("dvc", "push", RECORD)
    colleague.must("dvc", "install")
    colleague.must("git", "fetch", "--quiet")
    colleague.must("dvc", "fetch", "--all-commits", RECORD)
    colleague.must("git", *IDENTITY, "merge", "--quiet", "FETCH_HEAD")
    colleague.must("dvc", "checkout", RECORD)
    assert recorded(colleague) == 12
    assert images(colleague) == expected(*CAPTURES)
    labels = read_captures(colleague.captures, CONTRACT)
    assert (len(labels.captures), labels.problems) == (12, ())


def test_a_clone_of_a_project_without_captures_takes_captures(project, first, tmp_path):
    project.must("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = LineProject(tmp_path / "clone")
    clone.add(first)
    assert recorded(clone) == 6


def test_an_image_that_is_missing_stays_in_the_record(project, first, second):
    project.add(first)
    lost = CAPTURES[2].name
    (project.captures / "images" / lost).unlink()
    refused = project.run(*PINSPECT, "add", str(second))
    assert refused.returncode == 2
    assert f"({lost}): file: the image is missing from" in refused.stderr
    assert "run dvc pull, put it there or remove the row" in refused.stderr
    with pytest.raises(CaptureError, match=rf"1 images of .* are missing, such as {lost}; run dvc pull .*images\.dvc"):
        record_images(project.captures)
    assert recorded(project) == 6
    project.must("dvc", "checkout", RECORD)
    assert images(project) == expected(*CAPTURES[:6])


def test_add_waits_for_a_dvc_that_reads_the_captures_and_that_dvc_finishes(project, first, tmp_path):
    seen, log = tmp_path / "seen", tmp_path / "add.log"
    dvc = start_holding_dvc(project, seen)
    add = project.start_add(first, log)
    until(lambda: "waiting for" in log.read_text(), "the report of pinspect add that it waits", SECONDS)
    (waiting,) = log.read_text().splitlines()
    assert f"images.dvc: waiting for dvc (PID {dvc.pid}): " in waiting
    assert waiting.endswith("; all captures are in place")
    assert images(project) == expected(*CAPTURES[:6])
    assert recorded(project) == 0
    (project.root / "go").touch()
    assert (dvc.wait(SECONDS), add.wait(SECONDS)) == (0, 0), log.read_text()
    assert seen.read_text().split() == sorted(expected(*CAPTURES[:6]))
    assert recorded(project) == 6
    assert "6 captures added" in log.read_text()


def test_a_terminal_shows_the_progress_of_dvc(project, first):
    terminal, screen = pty.openpty()
    termios.tcsetwinsize(screen, (40, 100))
    done = subprocess.run([*PINSPECT, "add", str(first)], cwd=project.root, env=project.environment, stderr=screen)
    os.close(screen)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert done.returncode == 0, shown
    assert "Adding data/captures/images to cache" in shown


@pytest.mark.parametrize("mend", ["add", "repro"])
def test_what_was_killed_before_dvc_had_the_images_is_recorded_next(project, first, tmp_path, mend):
    seen, log = tmp_path / "seen", tmp_path / "add.log"
    dvc = start_holding_dvc(project, seen)
    add = project.start_add(first, log)
    until(lambda: "waiting for" in log.read_text(), "the images in their place", SECONDS)
    add.kill()
    add.wait()
    (project.root / "go").touch()
    assert dvc.wait(SECONDS) == 0
    assert recorded(project) == 0
    if mend == "add":
        assert "0 captures added to data/captures, 6 skipped" in project.add(first)
    else:
        project.must("dvc", "repro")
    assert images(project) == expected(*CAPTURES[:6])
    assert recorded(project) == 6
    assert "up to date" in project.must("dvc", "status", RECORD)


@pytest.mark.parametrize("length", [0, 20, -3])
def test_a_record_that_was_cut_off_is_written_again(project, first, length):
    project.add(first)
    whole = (project.root / RECORD).read_bytes()
    (project.root / RECORD).write_bytes(whole[:length])
    project.add(first)
    assert yaml.safe_load((project.root / RECORD).read_bytes()) == yaml.safe_load(whole)


def test_a_conflict_of_git_is_left_to_the_user(project, first):
    conflict = b"<<<<<<< HEAD\n" + (project.root / RECORD).read_bytes()
    (project.root / RECORD).write_bytes(conflict)
    refused = project.run(*PINSPECT, "add", str(first))
    assert refused.returncode == 2
    (problem,) = refused.stderr.splitlines()
    assert "images.dvc: not updated (" in problem
    assert (project.root / RECORD).read_bytes() == conflict


def test_images_that_a_person_puts_there_are_recorded_by_dvc_repro(project, first):
    set_stage(project, "true")
    drop(project.captures, CAPTURES[:6])
    project.must("dvc", "repro")
    assert recorded(project) == 6


@pytest.mark.parametrize("options", [(), ("--temp",)], ids=["workspace", "temp"])
def test_an_experiment_has_captures_that_nobody_committed(project, first, second, tmp_path, options):
    project.add(first)
    project.commit()
    project.add(second)
    set_stage(project, f"ls data/captures/images > {tmp_path / 'seen'}")
    project.must("dvc", "exp", "run", *options, "--name", "apart")
    assert (tmp_path / "seen").read_text().split() == sorted(expected(*CAPTURES))
    assert images(project) == expected(*CAPTURES)


def test_what_made_a_version_comes_back_with_its_images(project, first, second, tmp_path, monkeypatch):
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "line")
        monkeypatch.setenv(f"{name}_EMAIL", "line@example.com")
    set_stage(project, "true")
    project.must("dvc", "repro")
    project.commit()
    project.add(first)  # git does not know these labels yet
    commit = save_experiment(project.root, "retrain-1")
    project.add(second)
    tracked = project.must("git", "ls-tree", "-r", "--name-only", commit, "data/captures").split()
    assert tracked == [f"data/captures/{name}" for name in (".gitignore", "images.dvc", "labels.csv")]
    check_out_commit(project.root, commit, tmp_path / "again")
    again = LineProject(tmp_path / "again")
    assert images(again) == expected(*CAPTURES[:6])
    assert images(project) == expected(*CAPTURES)


def test_images_that_git_tracks_stay_with_git(project, first, second):
    project.must("git", "rm", "--quiet", "--cached", RECORD, "data/captures/.gitignore")
    for name in ("images.dvc", ".gitignore"):
        (project.captures / name).unlink()
    project.add(first)
    project.commit()
    project.add(second)
    new = {f"?? data/captures/images/{capture.name}" for capture in CAPTURES[6:]}
    assert project.changes() == {" M data/captures/labels.csv", *new}


def test_a_copy_of_the_captures_alone_takes_captures(project, first, second, tmp_path):
    project.add(first)
    alone = shutil.copytree(project.captures, tmp_path / "alone")
    before = (alone / "images.dvc").read_bytes()
    project.must(*PINSPECT, "add", str(second), "--captures", str(alone))
    assert contents(alone / "images") == expected(*CAPTURES)
    assert (alone / "images.dvc").read_bytes() == before


def test_without_dvc_the_images_are_added_and_the_record_is_left_to_others(project, first, monkeypatch, caplog):
    drop(project.captures, CAPTURES[:6])
    monkeypatch.setitem(sys.modules, "dvc.exceptions", None)  # as if it were not installed
    record_images(project.captures)
    assert "images.dvc: not updated, since DVC is not installed here; where it is, dvc repro updates it" in caplog.text
    assert recorded(project) == 0
