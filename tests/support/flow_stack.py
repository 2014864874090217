"""What flows run on, for tests: a real Prefect server and worker, and small projects with the pipeline's own stages.

One server, one worker and one prepared project serve the whole session; tests that change a project work on a copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from pinspect.core import environment as quiet
from pinspect.core.params import load_params
from pinspect.pretraining.base import new_base, save_base
from tests.support.evaluated_project import write_params
from tests.support.mlflow_server import free_port, running
from tests.support.sample import ROOT, drop, line, set_values

POOL = "pinspect"
SHAPE = ("CYLN",)
SECONDS = 1800  # patience, for machines with much else to do


class Checkout:
    """A git and DVC repository with the project's code and few captures, and commands that run in it."""

    def __init__(self, root: Path, api: str):
        self.root = root
        self.environment = (
            {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            | quiet.SETTINGS
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PWD": str(root),
                "DVC_SITE_CACHE_DIR": str(root / ".dvc/tmp/site"),
                "OMP_NUM_THREADS": "1",
                "PREFECT_API_URL": api,
                "GIT_CONFIG_GLOBAL": os.devnull,
            }
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a command in the checkout; its output is kept, its exit code is not judged."""
        given = self.environment | environment
        return subprocess.run(command, cwd=self.root, env=given, capture_output=True, text=True)

    def must(self, *command: str, **environment: str) -> str:
        """Run a command that has to end with 0. Returns what it printed."""
        done = self.run(*command, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_retrain(self, log: Path, retries: int = 9) -> subprocess.Popen:
        """Start the flow as a process of its own, without delays between tries."""
        code = f"from flows.retrain import retrain; retrain('.', {retries}, 0)"
        with log.open("a") as told:
            return subprocess.Popen(
                [sys.executable, "-c", code], cwd=self.root, env=self.environment, stdout=told, stderr=told
            )

    def copy(self, root: Path) -> Checkout:
        """The same project in another place, with a registry of its own, which is empty."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "site", "retrain"))
        return Checkout(root, self.environment["PREFECT_API_URL"])

    def set_param(self, section: str, **values: object) -> None:
        """Change values in a section of params.yaml or settings.yaml."""
        set_values(self.root, section, **values)

    def params(self):
        return load_params(self.root / "params.yaml")

    def stale(self) -> str:
        """What `dvc status` says of the stages; empty where all is up to date."""
        told = self.must("dvc", "status")
        return "" if "up to date" in told else told

    def processes(self) -> list[psutil.Process]:
        """Every process that works in the checkout."""
        return [process for process in psutil.process_iter() if _works_in(process, self.root)]

    def files(self) -> dict[str, int]:
        """When each file was written last."""
        return {str(path): path.stat().st_mtime_ns for path in self.root.rglob("*") if path.is_file()}


def make_checkout(root: Path, api: str) -> Checkout:
    """A checkout in which nothing has run yet: 8 inspected captures and 3 references of one shape, a base that was
    never trained, an adapter of two steps."""
    ignored = (".gitignore", "data/.gitignore", "models/.gitignore", "reports/.gitignore")
    for name in (*ignored, ".dvcignore", "dvc.yaml", "benchmarks/results/ablations.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in ("src/pinspect", "stages", "flows"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_params(root)
    checkout = Checkout(root, api)
    checkout.set_param("model", checkpoint="models/base")
    checkout.set_param("answers", shapes=list(SHAPE))
    checkout.set_param("dst", minimum_references=3, stride=3)
    checkout.set_param("chat", views=["RAW"])
    checkout.set_param("evaluate", decodings=["constrained"])
    drop(root / "data/captures", captures()[:11])
    model, processor, known = new_base(checkout.params().layout.layout(), seed=0)
    save_base(model, processor, known, root / "models/base")
    checkout.must("git", "init", "--quiet")
    checkout.must("dvc", "init", "--quiet")
    return checkout


def captures() -> list:
    """16 captures of a small line: 3 references, then 13 to inspect."""
    return list(line(seed=8, train=13, references=3, shapes=SHAPE))


def until(found: Callable[[], object], what: str, seconds: float = SECONDS, every: float = 0.2) -> object:
    """What `found` gives as soon as it is anything true; an AssertionError that tells `what` did not come."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if result := found():
            return result
        time.sleep(every)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory) -> Iterator[str]:
    """The address of a real Prefect server on loopback, which flows in this process use, too."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    home = tmp_path_factory.mktemp("prefect")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(free_port())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        with running(command, home / "server.log", "/api/health") as uri:
            patch.setenv("PREFECT_API_URL", f"{uri}/api")
            with temporary_settings({PREFECT_API_URL: f"{uri}/api"}):
                yield f"{uri}/api"


@pytest.fixture(scope="session")
def deployed(prefect_api, tmp_path_factory) -> Iterator[Checkout]:
    """A checkout in which nothing has run, deployed by its prefect.yaml, with a worker. The one difference: `nightly`
    comes every minute, and `inbox` when it is called."""
    checkout = make_checkout(tmp_path_factory.mktemp("deployed") / "line", prefect_api)
    told = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    schedules = {"nightly": [{"cron": "* * * * *", "timezone": "UTC"}]}
    for deployment in told["deployments"]:
        deployment["schedules"] = schedules.get(deployment["name"], [])
    (checkout.root / "prefect.yaml").write_text(yaml.safe_dump(told))
    checkout.must("prefect", "work-pool", "create", POOL, "--type", "process")
    checkout.must("prefect", "--no-prompt", "deploy", "--all")
    with working(checkout, tmp_path_factory.mktemp("worker") / "worker.log"):
        yield checkout


@pytest.fixture(scope="session")
def scheduled_run(deployed):
    """The first run of `nightly`, which the schedule has started and which has ended; then the schedule is paused."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("retrain/nightly")
        first = until(lambda: _begun(client, nightly.id), "a run by cron")[0]
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
        until(lambda: all(run.state.is_final() for run in _begun(client, nightly.id)), "the end of the scheduled run")
        return client.read_flow_run(first.id)


@pytest.fixture(scope="session")
def prepared(deployed, scheduled_run) -> Checkout:
    """A checkout whose stages have all run. Never changed: tests work on a copy."""
    assert scheduled_run.state.name == "Completed", scheduled_run.state.message
    return deployed


@contextmanager
def working(checkout: Checkout, log: Path) -> Iterator[subprocess.Popen]:
    """A worker of the pool for as long as the context lasts."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    with log.open("w") as told:
        worker = subprocess.Popen(
            command,
            cwd=checkout.root,
            env=checkout.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _begun(client, deployment_id) -> list:
    """Runs that the schedule has started, the first one first."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])))
    begun = [run for run in runs if run.auto_scheduled and not run.state.is_scheduled()]
    return sorted(begun, key=lambda run: run.expected_start_time)


def _works_in(process: psutil.Process, root: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(root)
    except psutil.Error:
        return False
