"""`pinspect.load_inspector` on a real registered version."""

import json
import os
import shutil
import subprocess
import sys

import mlflow
import numpy as np
import pytest
from PIL import Image

import pinspect
from pinspect.core.answers import FIELDS
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from tests.support.readme import readme_example


@pytest.fixture(scope="module")
def captures(registered):
    """Captures of the project, the references first."""
    return sorted((registered / "data/captures/images").iterdir())


@pytest.fixture(scope="module")
def inspector(registered):
    return pinspect.load_inspector("champion", project=registered)


@pytest.fixture(scope="module")
def downloaded(registered, tmp_path_factory):
    """The registered version as `mlflow artifacts download` leaves it, on a machine without the project."""
    with open_registry(registered, load_register_settings(registered)) as client:
        source = client.get_model_version(load_register_settings(registered).model_name, "1").source
        path = mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path_factory.mktemp("downloaded")))
    return type(registered)(path)


def test_the_example_of_the_readme_runs_and_changes_no_environment_variable(registered, captures):
    # Third-party libraries may set variables when imported; after the imports nothing may change.
    code = f"""
import json, os
import mlflow.pyfunc, pandas, cv2
before = dict(os.environ)
{readme_example("load_inspector")}
print(json.dumps(sorted(before.items() ^ os.environ.items())))
"""
    shutil.copy(captures[-1], registered / "photo.jpg")
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "HOME")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=registered, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    inspection, *_, changes = run.stdout.splitlines()
    assert inspection.startswith(("passed passed passed ", "defective "))
    assert json.loads(changes) == []


def test_an_inspection_has_every_field_of_a_record(inspector, captures):
    inspection = inspector(captures[-1])
    assert isinstance(inspection, pinspect.Inspection)
    assert inspection.error is None
    assert inspection.model_version == "1"
    assert inspection.defective == (inspection.judgement == "defective")
    assert sum(inspection.address_probabilities) == pytest.approx(1, abs=1e-5)
    if inspection.defective:
        assert np.array(inspection.pin_box).shape == (4, 2)
    record = json.loads(json.dumps(inspection.to_dict()))
    assert set(record) >= {"file", *FIELDS, "answer", "p_defective", "model_version", "error"}
    assert record["file"] == str(captures[-1])


def test_a_photograph_is_a_path_bytes_a_picture_or_an_array(inspector, captures):
    path = captures[-1]
    picture = Image.open(path)
    same = [str(path), path.read_bytes(), picture, np.asarray(picture.convert("RGB"))]
    for photograph, name in zip(same, [str(path), "image", str(path), "image"], strict=True):
        inspection = inspector(photograph)
        assert inspection.file == name
        assert inspection.answer == inspector(path).answer
        assert inspection.p_defective == pytest.approx(inspector(path).p_defective, abs=1e-5)


def test_an_array_of_16_bits_is_a_photograph_too(inspector, captures):
    gray = np.asarray(Image.open(captures[-1]).convert("L"))
    eight, sixteen = inspector(gray), inspector(gray.astype(np.uint16) * 257)
    assert sixteen.p_defective == pytest.approx(eight.p_defective, abs=1e-5)


def test_a_list_gives_one_inspection_per_photograph_even_if_some_fail(inspector, captures):
    inspections = inspector([captures[-1], "gone.jpg", b"text", captures[-2]])
    assert [bool(inspection.error) for inspection in inspections] == [False, True, True, False]
    assert inspections[1].error == "gone.jpg: not found"
    assert inspections[1].judgement is None
    assert inspector([]) == []


@pytest.mark.parametrize(
    ("photograph", "error", "problem"),
    [
        ("gone.jpg", pinspect.ImageError, r"gone\.jpg: not found"),
        (b"text", pinspect.ImageError, "image: not an image file"),
        (np.zeros((3, 3)), pinspect.ImageError, "image: "),
        (np.zeros((640, 480, 3), np.uint8), pinspect.AlignmentError, "image: "),
    ],
)
def test_a_single_photograph_that_cannot_be_inspected_raises(inspector, photograph, error, problem):
    with pytest.raises(error, match=problem):
        inspector(photograph)


def test_a_version_is_named_by_alias_or_number(registered, captures, inspector):
    for version in (1, ""):
        again = pinspect.load_inspector(version, project=registered)
        assert again.version == "1"
        shown, expected = again(captures[-1]), inspector(captures[-1])
        assert (shown.file, shown.answer) == (expected.file, expected.answer)
        assert shown.p_defective == pytest.approx(expected.p_defective, abs=1e-6)  # what was asked before may round it
    for version in ("nobody", "17", 17):
        with pytest.raises(pinspect.RegistryError, match=r"nobody|version 17"):
            pinspect.load_inspector(version, project=registered)


def test_a_downloaded_version_needs_no_project_and_no_registry(downloaded, captures, inspector):
    inspection = pinspect.load_inspector(f"{downloaded}/")(captures[-1])
    assert inspection.model_version is None
    assert inspection.answer == inspector(captures[-1]).answer


def test_an_error_about_an_invalid_model_folder_names_the_missing_file(tmp_path):
    with pytest.raises(pinspect.ModelError, match=r"not a packed model of pinspect: adapter, line,"):
        pinspect.load_inspector(tmp_path)
    with pytest.raises(pinspect.ModelError, match="no such folder"):
        pinspect.load_inspector(tmp_path / "gone")


def test_a_project_without_settings_is_named(tmp_path):
    with pytest.raises(pinspect.ParamsError, match=r"settings\.yaml"):
        pinspect.load_inspector("champion", project=tmp_path)


@pytest.mark.parametrize("package", ["mlflow", "torch"])
def test_an_installation_without_a_model_names_the_extra_to_install(registered, package, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    code = f"""if True:
        import numpy as np
        import pinspect
        assert pinspect.nsoartc(np.ones((9, 9, 3), np.float32), np.ones((9, 9), np.float32)).max() == 0
        try:
            pinspect.load_inspector("champion", project={str(registered)!r})
        except ModuleNotFoundError as error:
            print(error)
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "pip install 'pinspect[station]'" in run.stdout and package in run.stdout
