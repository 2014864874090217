"""The command line, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sample import ROOT, contents, drop, line, read_labels, write_labels

PINSPECT = Path(sys.executable).with_name("pinspect")


def pinspect(*words: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([PINSPECT, *map(str, words)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path):
    """A project folder with four captures, and three new captures beside it."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    drop(tmp_path / "data/captures", line()[:4])
    drop(tmp_path / "new", line()[4:7])
    return tmp_path


def test_add_reports_added_and_skipped_captures(project):
    first = pinspect("add", "new", cwd=project)
    assert (first.returncode, first.stderr) == (0, "")
    assert "3 captures added to data/captures, 0 skipped" in first.stdout
    second = pinspect("add", "new", cwd=project)
    assert second.returncode == 0
    assert "0 captures added to data/captures, 3 skipped" in second.stdout
    assert f"{line()[4].name}: already in the project, skipped" in second.stdout


def test_a_bad_label_ends_with_one_line_and_code_2(project):
    rows = read_labels(project / "new")
    write_labels(project / "new", [rows[0] | {"shape": "HEXA"}, *rows[1:]])
    before = contents(project)
    result = pinspect("add", "new", cwd=project)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"new/labels.csv, row 2 ({rows[0]['file']}): shape: expected CYLN or SQUR, found 'HEXA'; correct the row"
    ]
    assert result.stdout == ""
    assert {name: content for name, content in contents(project).items() if name != "data/.captures.lock"} == before


def test_outside_of_a_project_the_error_names_the_folder(tmp_path):
    result = pinspect("add", "new", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "params.yaml: not found; run this in the project's folder\n"


def test_the_shape_can_be_given_for_captures_without_labels(project):
    (project / "plain").mkdir()
    (project / "plain/left_1_OK.jpg").write_bytes(line(seed=9)[0].jpeg)
    assert pinspect("add", "plain", cwd=project).returncode == 2
    assert pinspect("add", "plain", "--shape", "SQUR", cwd=project).returncode == 0
    assert read_labels(project / "data/captures")[-1]["shape"] == "SQUR"


def test_help_lists_the_commands_and_needs_no_heavy_library(tmp_path):
    result = pinspect("--help", cwd=tmp_path)
    listed = {line.strip("│ ").partition(" ")[0] for line in result.stdout.splitlines()}
    assert {"add", "labels", "summary", "inspect", "models", "compare", "promote", "rollback", "status"} <= listed
    code = "import sys, pinspect.cli; print(sorted({'torch', 'mlflow', 'pandas', 'cv2'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_a_command_without_its_packages_names_what_to_install(project):
    code = "import sys; sys.modules['mlflow'] = None; sys.argv[1:] = ['models']; "
    code += "from pinspect.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == (
        "mlflow is not installed; run pip install 'pinspect[station]' to inspect, or 'pinspect[pipeline]' for all "
        "commands\n"
    )
