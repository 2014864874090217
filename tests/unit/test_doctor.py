"""`pinspect doctor`, and the GPU benchmark on a machine without a GPU."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from typer.testing import CliRunner

from pinspect.cli.doctor import NOT_READY, READY
from pinspect.cli.main import app
from pinspect.core.params import load_params
from pinspect.model.families import FAMILIES
from pinspect.model.machine import family_needs, machine_report, version_differences
from tests.support.sample import ROOT


def ask_doctor(root, monkeypatch, *options: str, **model: object):
    """`pinspect doctor` in a project whose params.yaml has `model` changed."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["model"] |= {"checkpoint": str(ROOT / "models/base")} | model
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.chdir(root)
    return CliRunner().invoke(app, ["doctor", *options])


def test_the_default_model_has_no_obstacle(tmp_path, monkeypatch):
    done = ask_doctor(tmp_path, monkeypatch, "--json")
    report = json.loads(done.stdout)
    assert (done.exit_code, report["obstacles"]) == (READY, [])
    assert report["torch"] == version("torch")
    assert {family["name"] for family in report["families"]} == set(FAMILIES)
    assert report["backends"]["transformers"] == ""


def test_doctor_prints_the_same_facts_as_a_table(tmp_path, monkeypatch):
    done = ask_doctor(tmp_path, monkeypatch)
    assert done.exit_code == READY
    assert all(name in done.stdout for name in FAMILIES)
    assert "Ready: the chosen model can run on this machine." in done.stdout


def test_a_model_that_is_too_large_is_an_obstacle(tmp_path, monkeypatch):
    done = ask_doctor(tmp_path, monkeypatch, "--json", family="llama-3.2-90b-vision", checkpoint="")
    obstacles = json.loads(done.stdout)["obstacles"]
    assert done.exit_code == NOT_READY
    assert [line.split(":")[1] for line in obstacles] == [" model.family"] * 2
    assert "llama-3.2-90b-vision needs about" in obstacles[0]


def test_unsloth_without_a_gpu_is_an_obstacle(tmp_path, monkeypatch):
    done = ask_doctor(tmp_path, monkeypatch, "--json", backend="unsloth")
    (obstacle,) = json.loads(done.stdout)["obstacles"]
    assert done.exit_code == NOT_READY
    assert "unsloth needs an NVIDIA GPU" in obstacle


def test_a_missing_base_is_an_obstacle(tmp_path):
    params = load_params(ROOT / "params.yaml")
    (tmp_path / "models").mkdir()
    (obstacle,) = machine_report(tmp_path, params)["obstacles"]
    assert obstacle.startswith(f"{tmp_path / 'models/base'}: base model not found")


def test_installed_versions_are_compared_with_the_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# a comment\ntorch=={version('torch').split('+')[0]}\nnumpy==0.0.1\nno-such-package==1.0\n")
    assert version_differences(lock) == [
        {"name": "numpy", "locked": "0.0.1", "installed": version("numpy")},
        {"name": "no-such-package", "locked": "1.0", "installed": None},
    ]
    assert version_differences(tmp_path / "none.lock") == []


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_training_needs_more_than_answering_and_less_in_four_bits(family):
    needs = family_needs(family)["needs"]
    assert needs["train_4bit"] <= needs["answer"] <= needs["train"]


def test_the_gpu_benchmark_reports_a_missing_gpu_and_measures_nothing():
    done = subprocess.run([ROOT / "benchmarks/gpu.sh"], env={"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/gpu.sh: torch sees no NVIDIA GPU on this machine; nothing was measured\n"
