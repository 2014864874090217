"""Project folders below lines/: each has its own captures, parameters and results; the pipeline is shared."""

from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from pinspect.captures.labels import REFERENCE, content_hash, read_captures
from pinspect.cli.status import stage_states
from pinspect.core.digests import git_commit
from pinspect.core.manifests import read_manifest
from pinspect.core.names import label_in_name, series_name, shot_of
from pinspect.core.params import load_params
from pinspect.core.yaml_file import SETTINGS_FILE
from pinspect.registry.settings import load_registry_settings
from tests.stages.test_pipeline_dvc import IMAGING_STAGES, PIPELINE, Project, captures, paths
from tests.support.sample import ROOT, contents, drop

LINES = sorted(path.parent for path in (ROOT / "lines").glob("*/params.yaml"))
LINKS = ("dvc.yaml", "models/base", "src", "stages")
SERIES = ROOT / "lines/series"


def test_the_series_line_is_a_project_folder():
    assert SERIES in LINES


@pytest.mark.parametrize("folder", LINES, ids=lambda folder: folder.name)
def test_a_line_links_to_the_code_and_the_pipeline_of_the_repository(folder):
    for name in LINKS:
        link = folder / name
        assert link.is_symlink() and not Path(link.readlink()).is_absolute()
        assert link.resolve() == ROOT / name


@pytest.mark.parametrize("folder", LINES, ids=lambda folder: folder.name)
def test_the_parameters_settings_and_captures_of_a_line_can_be_used(folder):
    params = load_params(folder / "params.yaml")
    load_registry_settings(folder)
    labels = read_captures(folder / "data/captures", params.contract())
    assert labels.problems == ()
    assert {capture.shape for capture in labels.captures} == set(params.answers.shapes)
    assert sum(capture.role == REFERENCE for capture in labels.captures) >= params.dst.minimum_references


@pytest.mark.parametrize("folder", LINES, ids=lambda folder: folder.name)
def test_git_ignores_what_the_stages_of_a_line_make(folder):
    ignored = (folder / ".gitignore").read_text().splitlines()
    for stage in PIPELINE["stages"].values():
        for path, options in paths([*stage["outs"], *stage.get("metrics", [])]).items():
            assert (f"/{path}" in ignored) == (options.get("cache", True) or path == "reports/registration.json"), path


def test_the_names_of_the_series_line_agree_with_its_labels():
    contract = load_params(SERIES / "params.yaml").contract()
    for capture in read_captures(SERIES / "data/captures", contract).captures:
        label = label_in_name(capture.file, contract)
        assert label.usual_shape == capture.shape
        assert (label.judgement, label.defect_mode) == (capture.judgement, capture.defect_mode)
        assert label.defect_position == ("" if capture.judgement == "passed" else capture.defect_position)
        assert series_name(capture.file).eye in ("left", "right")


def test_captures_of_the_series_line_need_no_labels_but_their_names(tmp_path):
    contract = load_params(SERIES / "params.yaml").contract()
    labelled = read_captures(SERIES / "data/captures", contract).captures
    (tmp_path / "images").symlink_to(SERIES / "data/captures/images")
    named = {capture.file: capture for capture in read_captures(tmp_path, contract).captures}
    assert len(named) == len(labelled)
    for capture in labelled:
        assert named[capture.file].label[:4] == capture.label[:4]


def test_all_captures_of_a_shot_of_the_series_line_have_one_split():
    record = SERIES / "data/splits.csv"
    split_of = dict(line.split(",")[:2] for line in record.read_text().splitlines()[1:])
    contract = load_params(SERIES / "params.yaml").contract()
    splits = defaultdict(set)
    for capture in read_captures(SERIES / "data/captures", contract).captures:
        content = content_hash(SERIES / "data/captures/images" / capture.file)
        splits[shot_of(capture.file)].add(split_of[content])
    assert [shot for shot, of_shot in splits.items() if len(of_shot) > 1] == []
    assert {split for of_shot in splits.values() for split in of_shot} == {"train", "validation", "test"}


def test_two_lines_share_the_stages_and_nothing_else(tmp_path):
    project = Project(tmp_path)
    drop(project.root / "data/captures", captures()[:6])
    line = project.root / "lines/second"
    for name in ("dvc.yaml", "src", "stages"):
        (line / name).parent.mkdir(parents=True, exist_ok=True)
        (line / name).symlink_to(Path("../..") / name)
    (line / ".gitignore").write_text((SERIES / ".gitignore").read_text())
    (line / SETTINGS_FILE).write_text((SERIES / SETTINGS_FILE).read_text())
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    params["raw"]["split_salt"] = "second"
    (line / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    drop(line / "data/captures", captures()[4:10])

    done = project.run("dvc", "repro", "raw")
    assert done.returncode == 0, done.stderr
    before = contents(project.root / "data/raw")
    done = project.run("dvc", "repro", "lines/second/dvc.yaml:raw")
    assert done.returncode == 0, done.stderr
    assert contents(project.root / "data/raw") == before
    assert len(read_manifest(line / "data/raw/manifest.csv", ("file",))) == 6
    assert (line / "dvc.lock").is_file() and not (line / "dvc.lock").is_symlink()
    locks = [yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["raw"] for folder in (project.root, line)]
    code = [{dep["path"]: dep["md5"] for dep in lock["deps"] if dep["path"].startswith("s")} for lock in locks]
    assert code[0] == code[1]
    again = project.run("dvc", "repro", "lines/second/dvc.yaml:raw")
    assert "Running stage" not in again.stdout
    assert project.run("git", "check-ignore", "lines/second/data/raw").returncode == 0
    assert not (line / "data/.gitignore").exists()  # DVC adds one where an output is not ignored
    for folder in (project.root, line):
        states = stage_states(folder)
        assert list(states) == list(IMAGING_STAGES)
        assert states["raw"]["state"] == "unchanged"
    project.commit()
    assert git_commit(line) == git_commit(project.root) != ""
    with (project.root / "src/pinspect/core/answers.py").open("a") as module:
        module.write("# edited")
    assert git_commit(line).endswith("+")
