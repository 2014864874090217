"""The pipeline under a real DVC, in its own project: only changed stages and captures are redone."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pinspect.captures.incremental import source_files
from pinspect.core.manifests import read_manifest
from pinspect.core.yaml_file import SETTINGS_FILE
from pinspect.model.rows import read_composite
from tests.support.sample import ROOT, contents, drop, line, read_labels, write_labels

IMAGING_STAGES = ("raw", "dst", "composite")
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]


def paths(outs: list) -> dict[str, dict]:
    """Return the outputs of a stage with their options."""
    return {path: options for out in outs for path, options in (out if isinstance(out, dict) else {out: {}}).items()}


class Project:
    """A git and DVC repository with the code, small captures and the first three stages; each picture is a file."""

    def __init__(self, root: Path):
        self.root = root
        for name in (".gitignore", ".dvcignore", "data/.gitignore", "models/.gitignore", "reports/.gitignore"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        for name in ("src/pinspect", "stages"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        pipeline = {"stages": {name: STAGES[name] for name in IMAGING_STAGES}}
        (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["raw"]["virtual"] |= {"train": 0, "validation": 0, "test": 0}
        params["raw"]["shards"] = 0
        params["dst"] |= {"minimum_references": 3}
        params["composite"] |= {"cell": 32}
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shutil.copy(ROOT / SETTINGS_FILE, root)
        self.run("git", "init", "--quiet")
        self.run("dvc", "init", "--quiet")

    def run(self, *command: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.root / ".dvc/tmp/site"),
        }
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)

    def commit(self) -> None:
        """Commit everything; an experiment starts from a commit."""
        identity = ("-c", "user.name=sweep", "-c", "user.email=sweep@example.com")
        self.run("git", "add", ".")
        assert self.run("git", *identity, "commit", "--quiet", "--message", "Start").returncode == 0

    def repro(self) -> list[str]:
        """Run `dvc repro`; return the stages that ran."""
        result = self.run("dvc", "repro")
        assert result.returncode == 0, result.stdout + result.stderr
        return [text.split("'")[1] for text in result.stdout.splitlines() if text.startswith("Running stage")]

    def data(self) -> dict[str, bytes]:
        """Return every file that the stages have made."""
        return {
            name: content
            for name, content in contents(self.root / "data").items()
            if name.startswith(("raw/", "dst/", "composited/"))
        }


def captures(shape: str = "CYLN") -> list:
    return list(line(seed=4, train=6, references=4, shapes=(shape,)))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Project:
    """A project whose stages have run. Tests that change it work on a copy."""
    project = Project(tmp_path_factory.mktemp("made"))
    drop(project.root / "data/captures", captures()[:8])
    assert project.repro() == list(IMAGING_STAGES)
    return project


@pytest.fixture
def project(made, tmp_path) -> Project:
    """A copy of the made project."""
    shutil.copytree(made.root, tmp_path / "copy", symlinks=True)
    copy = object.__new__(Project)
    copy.root = tmp_path / "copy"
    return copy


def has_code(module: Path) -> bool:
    """Return whether a module contains more than a docstring."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(module.read_text()).body)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_nothing_outside_the_folders_that_it_depends_on_and_depends_on_no_other(stage):
    script = f"stages/{stage}.py"
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    modules = [path for path in source_files(ROOT / script, ROOT / "src/pinspect") if has_code(path)]
    imported = {path.relative_to(ROOT).as_posix() for path in modules}
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("src/", "stages/"))]
    users = {dep: {path for path in imported if path == dep or path.startswith(f"{dep}/")} for dep in listed}
    assert imported == set().union(*users.values())
    assert [dep for dep, paths in users.items() if not paths] == []


def test_every_stage_script_is_a_stage():
    scripts = sorted(path.stem for path in (ROOT / "stages").glob("*.py"))
    assert scripts == sorted([*STAGES, "__init__"])


def test_dvc_yaml_is_short():
    lines = (ROOT / "dvc.yaml").read_text().splitlines()
    assert len(lines) <= 250


def listed_params(stage: str) -> dict[str, list[str]]:
    """Return the keys that a stage depends on, by file."""
    listed: dict[str, list[str]] = {"params.yaml": []}
    for entry in STAGES[stage]["params"]:
        if isinstance(entry, str):
            listed["params.yaml"].append(entry)
        else:
            listed |= entry
    return listed


@pytest.mark.parametrize("stage", STAGES)
def test_every_param_that_a_stage_lists_exists(stage):
    for file, keys in listed_params(stage).items():
        content = yaml.safe_load((ROOT / file).read_text())
        for key in keys:
            value = content
            for name in key.split("."):
                value = value[name]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_lists_every_section_that_its_script_reads(stage):
    script = (ROOT / f"stages/{stage}.py").read_text()
    words = set(re.findall(r"\bparams\.(?!yaml\b)(\w+)", script))
    sections = {name for word in words for name in {"contract": ("layout", "answers")}.get(word, (word,))}
    listed = listed_params(stage)
    assert sections <= {key.split(".")[0] for key in listed["params.yaml"]}
    settings = set(re.findall(r"\bload_(\w+)_settings\(", script))
    assert settings <= set(listed.get(SETTINGS_FILE, ()))


def test_no_stage_depends_on_the_station_or_on_promotion():
    """So a new setting of either runs no stage again."""
    rooms = {"src/pinspect/station", "src/pinspect/cli", "src/pinspect/pretraining"}
    for stage in STAGES:
        assert set(listed_params(stage).get(SETTINGS_FILE, ())) <= {"report", "register"}
        assert not rooms & set(STAGES[stage]["deps"])


def test_compiled_code_does_not_count_as_a_change(made):
    cache = made.root / "src/pinspect/core/__pycache__/answers.cpython-311.pyc"
    cache.parent.mkdir(exist_ok=True)
    cache.write_bytes(b"compiled")
    assert made.repro() == []


def test_every_artifact_is_an_output_or_committed():
    outs = {path for stage in STAGES.values() for path in paths(stage["outs"])}
    for artifact in PIPELINE["artifacts"].values():
        assert artifact["path"] in outs or (ROOT / artifact["path"] / "config.json").is_file()


def test_only_incremental_folders_persist_between_runs():
    persistent = {
        path for stage in STAGES.values() for path, options in paths(stage["outs"]).items() if options.get("persist")
    }
    assert persistent == {"data/raw", "data/splits.csv", "data/dst", "data/composited"}


def test_git_ignores_every_output_that_dvc_keeps(made):
    for stage in STAGES.values():
        for path, options in paths([*stage["outs"], *stage.get("metrics", [])]).items():
            ignored = made.run("git", "check-ignore", "--quiet", path).returncode == 0
            assert ignored == options.get("cache", True) or path == "reports/registration.json", path


def test_a_run_leaves_the_committed_ignore_files_alone(made):
    for name in (".gitignore", "data/.gitignore"):
        assert (made.root / name).read_text() == (ROOT / name).read_text()


def test_a_second_run_runs_no_stage(made):
    assert made.repro() == []


def test_every_capture_has_its_view_and_composites(made):
    data = made.root / "data"
    raw = read_manifest(data / "raw/manifest.csv", ("file", "role"))
    composited = read_manifest(data / "composited/manifest.csv", ("file", "raw_file", "kind", "view"))
    singles = composited[composited["kind"] == "single"]
    assert sorted(singles["raw_file"]) == sorted([*raw["file"]] * 2)
    stars = composited[composited["kind"] == "star"]
    assert set(stars["raw_file"]) == set(raw.loc[raw["role"] == "reference", "file"])
    assert all((data / "composited" / file).is_file() for file in composited["file"])


def test_adding_captures_redoes_only_those_and_equals_a_clean_run(project, tmp_path):
    before = project.data()
    added = captures()[8:]
    drop(tmp_path / "new", added)
    assert project.run("pinspect", "add", str(tmp_path / "new")).returncode == 0
    times = {path: path.stat().st_mtime_ns for path in (project.root / "data").rglob("images/*/*")}
    result = project.run("dvc", "repro")
    assert result.returncode == 0, result.stderr
    assert f"{len(added)} items processed, all others unchanged" in result.stdout  # raw
    assert f"{len(added)} captures compared, all others unchanged" in result.stdout  # dst
    touched = {path for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert not touched
    clean = Project(tmp_path / "clean")
    drop(clean.root / "data/captures", captures())
    clean.repro()
    assert project.data() == clean.data()
    assert len(project.data()) > len(before)


def test_a_bad_capture_stops_the_pipeline_and_nothing_is_lost(project):
    labels = project.root / "data/captures"
    before, rows = project.data(), read_labels(labels)
    broken = labels / "images" / rows[0]["file"]
    good = broken.read_bytes()
    broken.write_bytes(good[:1000])
    write_labels(labels, [*rows[:-1], rows[-1] | {"judgement": "unknown"}])
    result = project.run("dvc", "repro")
    assert result.returncode != 0
    assert rows[0]["file"] in result.stderr
    assert f"row {len(rows) + 1} ({rows[-1]['file']}): judgement: expected passed or defective" in result.stderr
    assert "Traceback" not in result.stderr
    assert project.data() == before
    broken.write_bytes(good)
    write_labels(labels, rows)
    project.repro()
    assert project.data() == before


def test_a_stage_runs_the_code_of_the_checkout_that_it_lies_in(project):
    """Another pinspect is installed, and PYTHONPATH is not set."""
    module = project.root / "src/pinspect/composites/composited.py"
    module.write_text(module.read_text() + "\nprint('this is the code of', __file__)\n")
    result = project.run("dvc", "repro")
    assert f"this is the code of {module}" in result.stdout


def test_an_experiment_in_another_folder_runs_its_own_code(project):
    project.commit()
    module = project.root / "src/pinspect/composites/composited.py"
    module.write_text(module.read_text() + "\nprint('this is the code of', __file__)\n")
    result = project.run("dvc", "exp", "run", "--temp", "--name", "apart", "-S", "composite.cell=48")
    assert result.returncode == 0, result.stdout + result.stderr
    (shown,) = (line for line in (result.stdout + result.stderr).splitlines() if "this is the code of" in line)
    assert ".dvc/tmp/exps" in shown and str(module) not in shown


def test_an_edit_of_a_module_runs_the_stages_that_use_it(project):
    with (project.root / "src/pinspect/composites/drawing.py").open("a") as module:
        module.write("\n# edited\n")
    assert project.repro() == ["composite"]


def test_a_lost_output_is_made_again(project):
    before = project.data()
    shutil.rmtree(project.root / "data/composited")
    (project.root / "data/dst/manifest.csv").unlink()
    project.repro()
    assert project.data() == before


def test_experiments_of_a_sweep_use_their_own_params_and_rerun_only_changed_stages(project):
    project.commit()
    widths = {}
    for cell in (128, 192):
        result = project.run("dvc", "exp", "run", "--name", f"cell-{cell}", "-S", f"composite.cell={cell}")
        assert result.returncode == 0, result.stderr
        ran = [line.split("'")[1] for line in result.stdout.splitlines() if line.startswith("Running stage")]
        assert ran == ["composite"]
        files = read_manifest(project.root / "data/composited/manifest.csv", ("file",))["file"]
        widths[cell] = {read_composite(project.root / "data/composited" / file).shape[1] for file in files}
    assert widths == {128: {1280}, 192: {1920}}
    listed = project.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert sorted(listed) == ["cell-128", "cell-192"]
    assert project.run("dvc", "exp", "apply", "cell-128").returncode == 0
    assert yaml.safe_load((project.root / "params.yaml").read_text())["composite"]["cell"] == 128
