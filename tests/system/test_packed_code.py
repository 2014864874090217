"""A version inspects with the code that it was registered with, and its files are those that were registered."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mlflow
import psutil
import pytest

import pinspect
from pinspect.inspection.package import CODE, package_artifacts, package_sha256
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.registry.versions import PACKAGE_TAG, load_registered
from pinspect.station.champion import Champion
from tests.support.waiting import until

NAME = "pin-inspector"


@pytest.fixture
def folder(registered, tmp_path) -> Path:
    """A copy of a registered version."""
    with open_registry(registered, load_register_settings(registered)):
        stored = mlflow.artifacts.download_artifacts(f"models:/{NAME}/1")
    return shutil.copytree(stored, tmp_path / "packed")


@pytest.fixture
def capture(registered) -> Path:
    return max((registered / "data/captures/images").iterdir())


def process_of(inspector) -> psutil.Process:
    return psutil.Process(inspector._process.pid)


def test_a_model_inspects_with_its_packed_code_and_the_parameters_that_it_was_packed_with(folder, capture):
    """The caller's code does not know the key, and does not have to."""
    with (folder / "code/pinspect/inspection/inspector.py").open("a") as code:
        code.write("\nCaptureInspector.inspect_photograph = lambda *_: Inspection('found by packed code')\n")
    with (folder / "code/pinspect/core/params.py").open("a") as code:
        code.write("\nParams.model_config['extra'] = 'ignore'\nParams.model_rebuild(force=True)\n")
    params = package_artifacts(folder)["params"]
    params.write_text(f"{params.read_text()}\nlater_section: {{size: 1}}\n")
    assert pinspect.load_inspector(folder)(capture).file == "found by packed code"
    with pytest.raises(pinspect.ParamsError, match="later_section"):
        pinspect.load_params(params)


def test_code_and_parameters_enter_the_hash_but_comments_of_parameters_do_not(registered, folder):
    def sha256() -> str:
        return package_sha256(package_artifacts(folder), folder / CODE)

    with open_registry(registered, load_register_settings(registered)) as client:
        registered_hash = client.get_model_version(NAME, "1").tags[PACKAGE_TAG]
    params, code = package_artifacts(folder)["params"], folder / "code/pinspect/core/answers.py"
    params.write_text(f"# another comment\n{params.read_text()}")
    assert sha256() == registered_hash
    before = params.read_text()
    params.write_text(before.replace("max_pixels: ", "max_pixels: 1"))
    assert sha256() != registered_hash
    params.write_text(before)
    code.write_text(f"{code.read_text()}\n")
    assert sha256() != registered_hash


@pytest.mark.parametrize("file", ["code/pinspect/core/answers.py", "artifacts/operating_point.json"])
def test_a_version_whose_files_were_changed_is_not_loaded(registered, tmp_path, file):
    settings = load_register_settings(registered)
    with open_registry(registered, settings):
        stored = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1")) / file
    content = stored.read_bytes()
    stored.write_bytes(content + b"\n")
    try:
        with pytest.raises(pinspect.ModelError, match="version 1 of pin-inspector was changed or is incomplete"):
            load_registered(registered, settings, "1")
    finally:
        stored.write_bytes(content)


def test_a_temporary_folder_with_a_long_path_is_refused(registered, tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with pytest.raises(pinspect.ModelError, match="set TMPDIR to a folder with a shorter path"):
        load_registered(registered, load_register_settings(registered), "1")
    assert list(folder.iterdir()) == []


def test_the_process_ends_with_its_parent(registered):
    code = f"""if True:
        import time, pinspect
        inspector = pinspect.load_inspector("1", project={str(registered)!r})
        print(inspector._process.pid, flush=True)
        time.sleep(3600)
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process = psutil.Process(int(parent.stdout.readline()))
    sockets = Path(process.cmdline()[-2]).parent
    assert sockets.is_dir()
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the end of the process")
    assert not sockets.exists()


def test_a_killed_process_is_reported_and_its_champion_loaded_again_and_it_ends_with_its_inspector(
    registered, tmp_path, capture
):
    champion = Champion(registered, load_register_settings(registered), tmp_path)
    champion.check()
    inspector = champion.current().inspector
    process_of(inspector).kill()
    with pytest.raises(pinspect.ModelError, match=r"has ended \(exit code -9\)"):
        inspector(capture)
    again = champion.current().inspector
    assert again(capture).model_version == "1"
    process = process_of(again)
    del champion, again
    until(lambda: not process.is_running(), "the end of the process")
