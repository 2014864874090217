"""A real station for tests: a registered champion, the page's process and the model process, on loopback.

Fixtures: `registered` (a project with three versions, the module's own), `running_station` (a station on it for the
module). Tests that start and stop a station themselves use `station`.
"""

from __future__ import annotations

import compileall
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from pinspect.core import environment as quiet
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.registry.versions import CHALLENGER, CHAMPION
from tests.support.evaluated_project import run_stage
from tests.support.mlflow_server import free_port
from tests.support.sample import set_values
from tests.support.shared_project import made_once
from tests.support.waiting import until

PINSPECT = Path(sys.executable).with_name("pinspect")


@dataclass
class StationProcess:
    """A running station: url such as `http://127.0.0.1:41234`, root of its project, process (leader of its group), log
    with all that it printed."""

    url: str
    root: Path
    process: subprocess.Popen
    log: Path

    def answers(self) -> bool:
        """Return whether its model answers; raise AssertionError with the log's end if the process has exited."""
        assert self.process.poll() is None, self.log.read_text()[-2000:]
        try:
            return requests.get(f"{self.url}/health", timeout=600).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """Kill every process of the station at once, as a power cut does."""
        members = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for member in members:
            member.kill()
        self.process.wait()
        psutil.wait_procs(members)

    def stop(self) -> int:
        """Terminate the station as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=600)


@contextmanager
def station(project: Path, *options: str, **environment: str) -> Iterator[StationProcess]:
    """`pinspect station` with `options` on a free port, once its model answers; it ends with the context."""
    port = free_port()
    log = project.parent / f"station-{port}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [PINSPECT, "station", "--port", str(port), *options],
            cwd=project,
            env=os.environ | quiet.SETTINGS | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = StationProcess(f"http://127.0.0.1:{port}", project, process, log)
    try:
        until(running.answers, "the station's model")
        yield running
    finally:
        if process.poll() is None:
            running.kill()


def make_champion(project: Path, reference: str) -> str:
    """Move the champion alias to version `reference` (a number or an alias); return the version number."""
    params = load_register_settings(project)
    with open_registry(project, params) as client:
        if not reference.isdecimal():
            reference = str(client.get_model_version_by_alias(params.model_name, reference).version)
        client.set_registered_model_alias(params.model_name, CHAMPION, reference)
    return reference


@pytest.fixture(scope="session")
def three_versions(evaluated_project, tmp_path_factory) -> Path:
    """An evaluated project with three registered versions; copy it to change it.

    They differ in a limit of the alignment alone. The first is champion and challenger.
    """
    return made_once(tmp_path_factory, "versions", lambda folder: _register_three(evaluated_project, folder))


def _register_three(evaluated: Path, project: Path) -> None:
    shutil.copytree(evaluated, project, dirs_exist_ok=True)
    before = (project / "params.yaml").read_text()
    for shift in (40, 41, 42):
        set_values(project, "dst", maximum_shift=shift)
        run_stage("register", project)
    compileall.compile_dir(project / "mlruns", quiet=1)  # otherwise each copy compiles the packed code again
    (project / "params.yaml").write_text(before)
    set_values(project, "station", timeout_seconds=300.0)  # no answer is late on a busy machine
    make_champion(project, "1")
    params = load_register_settings(project)
    with open_registry(project, params) as client:
        client.set_registered_model_alias(params.model_name, CHALLENGER, "1")


@pytest.fixture(scope="module")
def registered(three_versions, tmp_path_factory) -> Path:
    """A test module's own copy of `three_versions`, with its own registry."""
    return shutil.copytree(three_versions, tmp_path_factory.mktemp("station") / "project")


@pytest.fixture(scope="module")
def running_station(registered) -> Iterator[StationProcess]:
    """A running station on `registered`, shared by the tests of a module."""
    with station(registered) as running:
        yield running
