"""A stage whose inputs change while it runs is not recorded as done."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pinspect.core.errors import CaptureError, InputChangedError
from pinspect.core.runs import read_run_facts
from pinspect.core.stage import watch_inputs
from tests.support.waiting import is_gone, until

PIPELINE = {
    "stages": {
        "raw": {
            "cmd": f"{sys.executable} stage.py",
            "deps": ["captures", "code.py"],
            "params": ["raw", "dst.shift", {"settings.yaml": ["report"]}],
            "outs": ["out.txt"],
        }
    }
}


REPRO = [sys.executable, "-m", "dvc", "repro"]
STAGE = """
import os, time
from pathlib import Path
from pinspect.core.stage import run_stage

def main():{work}
run_stage('raw', main)
"""


def add_stage(project: Path, work: str) -> None:
    """Write the stage, whose `main` does `work`, and make the project a DVC repository."""
    (project / "stage.py").write_text(STAGE.format(work=work))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=project, check=True)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "captures/images").mkdir(parents=True)
    (tmp_path / "captures/images/a.jpg").write_bytes(b"a")
    (tmp_path / "code.py").touch()
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    (tmp_path / "params.yaml").write_text("raw: {seed: 1}\ndst: {shift: 1, size: 1}\n")
    (tmp_path / "settings.yaml").write_text("report: {seed: 1}\nstation: {port: 1}\n")
    return tmp_path


def write(name: str, text: str):
    return lambda project: (project / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (write("captures/images/b.jpg", "late"), "captures/images/b.jpg"),
        (write("captures/images/a.jpg", "other"), "captures/images/a.jpg"),
        (write("captures/images/\n\udcff.jpg", "a line break and no UTF-8"), "captures/images/\n\udcff.jpg"),
        (lambda project: (project / "captures/images/a.jpg").unlink(), "captures/images/a.jpg"),
        (write("code.py", "edited"), "code.py"),
        (write("params.yaml", "raw: {seed: 2}\ndst: {shift: 1, size: 1}\n"), "params.yaml: raw"),
        (write("params.yaml", "raw: {seed: 1}\ndst: {shift: 2, size: 1}\n"), "params.yaml: dst.shift"),
        (write("params.yaml", "raw: {"), "params.yaml: dst.shift, params.yaml: raw"),
        (write("settings.yaml", "report: {seed: 2}\nstation: {port: 1}\n"), "settings.yaml: report"),
    ],
)
def test_a_change_of_an_input_is_named_and_asks_for_another_try(project, change, name):
    with pytest.raises(InputChangedError) as caught:
        watch_inputs("raw", lambda: change(project), project)
    assert str(caught.value) == f"{name}: changed while the stage raw ran; try again"
    assert caught.value.exit_code == 75


@pytest.mark.parametrize(
    "change",
    [
        lambda project: None,
        write("captures/.adding-lock", "x"),
        write("captures/images/b.partial", "x"),
        write("params.yaml", "raw: {seed: 1}\ndst: {shift: 1, size: 2}\n"),
        write("settings.yaml", "report: {seed: 1}\nstation: {port: 2}\n"),
    ],
)
def test_what_the_stage_does_not_depend_on_may_change(project, change):
    watch_inputs("raw", lambda: change(project), project)


def test_of_many_inputs_only_those_that_changed_are_named(project):
    for number in range(2000):
        (project / f"captures/images/{number}.jpg").touch()

    def change():
        (project / "captures/images/7.jpg").unlink()
        (project / "captures/images/1999.jpg").write_bytes(b"other")
        (project / "captures/images/new.jpg").touch()

    names = ", ".join(f"captures/images/{name}.jpg" for name in ("1999", "7", "new"))
    with pytest.raises(InputChangedError, match=f"^{names}: changed while"):
        watch_inputs("raw", change, project)


def test_an_error_that_a_change_has_caused_is_shown_as_the_change(project):
    def failing(change):
        change(project)
        raise CaptureError("images/a.jpg: not found")

    with pytest.raises(InputChangedError, match="try again"):
        watch_inputs("raw", lambda: failing(lambda root: (root / "captures/images/a.jpg").unlink()), project)
    with pytest.raises(CaptureError, match="not found"):
        watch_inputs("raw", lambda: failing(lambda root: None), project)


def test_dvc_does_not_record_a_stage_whose_parameter_was_edited_meanwhile(project):
    add_stage(
        project,
        """
    Path('out.txt').write_text(Path('params.yaml').read_text())
    if not Path('edited').exists():
        Path('edited').touch()
        Path('params.yaml').write_text(Path('params.yaml').read_text().replace('seed: 1', 'seed: 2'))
""",
    )
    first = subprocess.run(REPRO, cwd=project, capture_output=True, text=True, check=False)
    assert first.returncode
    assert "params.yaml: raw: changed while the stage raw ran; try again" in first.stderr
    assert not (project / "dvc.lock").exists()
    subprocess.run(REPRO, cwd=project, check=True)
    assert "seed: 2" in (project / "out.txt").read_text()
    assert read_run_facts(project, "raw")["stage_seconds"] >= 0


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # dash stays beside its command, bash becomes it
def test_a_stage_whose_dvc_was_killed_ends_and_the_next_run_completes(project, monkeypatch, shell):
    monkeypatch.setenv("SHELL", shell)
    add_stage(
        project,
        """
    if not Path('first').exists():
        Path('first.partial').write_text(str(os.getpid()))
        Path('first.partial').rename('first')
        time.sleep(3600)
        Path('out.txt').write_text('too late')
    Path('out.txt').write_text('second')
""",
    )
    first = subprocess.Popen(REPRO, cwd=project)
    until((project / "first").exists, "the stage's start")
    first.kill()
    first.wait()
    stage = int((project / "first").read_text())
    until(lambda: is_gone(stage), "the end of the stage")
    subprocess.run(REPRO, cwd=project, check=True)
    assert (project / "out.txt").read_text() == "second"


def test_every_stage_of_the_pipeline_watches_its_inputs():
    root = Path(__file__).parents[2]
    for name in yaml.safe_load((root / "dvc.yaml").read_text())["stages"]:
        assert f'    run_stage("{name}", main)\n' in (root / f"stages/{name}.py").read_text()
