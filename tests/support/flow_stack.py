"""What flows run on, for tests: a real Prefect server and worker, and a deployed checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from flows.access import ensure_access
from tests.support.checkout import Checkout
from tests.support.mlflow_server import free_port, running
from tests.support.sample import ROOT
from tests.support.waiting import until


@pytest.fixture(scope="module")
def prefect_api(tmp_path_factory) -> Iterator[str]:
    """The address of a module's own Prefect server on loopback; flows in this process use it too."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as api:
        yield api


@contextmanager
def prefect_server(home: Path, **variables: str) -> Iterator[str]:
    """Run a Prefect server on loopback during the context, and yield its address; flows in this process use it too."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    auth = auth_string(ROOT)
    command = [sys.executable, "-m", "flows.prefect_app", "--port", str(free_port())]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PREFECT_HOME": str(home), **variables}.items():
            patch.setenv(name, value)
        with running(command, home / "server.log", "/api/health") as uri:
            patch.setenv("PREFECT_API_URL", f"{uri}/api")
            patch.setenv("PREFECT_API_AUTH_STRING", auth)
            with temporary_settings({PREFECT_API_URL: f"{uri}/api", PREFECT_API_AUTH_STRING: auth}):
                yield f"{uri}/api"


@pytest.fixture(scope="module")
def deployed(prefect_api, prepared, tmp_path_factory) -> Iterator[Checkout]:
    """A checkout whose report is out of date and whose version is in no registry, deployed, with a worker.

    Its prefect.yaml differs in its schedules: `nightly` comes every minute, all other deployments run when called.
    """
    checkout = prepared.copy(tmp_path_factory.mktemp("deployed") / "line")
    checkout.set_param("report", bootstrap_samples=110)
    checkout.set_param("register", experiment="nightly")
    deploy(checkout, {"nightly": [{"cron": "* * * * *", "timezone": "UTC"}]})
    checkout.commit()
    with working(checkout, tmp_path_factory.mktemp("worker") / "worker.log"):
        yield checkout


@pytest.fixture(scope="module")
def scheduled_run(deployed):
    """The first run of `nightly`, which the schedule has started and which has ended; then the schedule is paused."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        nightly = client.read_deployment_by_name("retrain/nightly")
        first = until(lambda: _begun(client, nightly.id), "a run by cron")[0]
        client.update_deployment_schedule(nightly.id, nightly.schedules[0].id, active=False)
        until(lambda: all(run.state.is_final() for run in _begun(client, nightly.id)), "the end of the scheduled run")
        return client.read_flow_run(first.id)


def auth_string(root: Path) -> str:
    """Return the password of a project's Prefect API."""
    return tomllib.loads(ensure_access(root).read_text())["api"]["auth_string"]


def deploy(checkout: Checkout, schedules: dict[str, list], *, limited: bool = True, **variables: str) -> None:
    """Do what `make worker` does before it starts the worker; deployments that `schedules` lacks have no schedule.

    With `limited` unset, runs of a deployment may overlap: a killed run holds its place for minutes.
    """
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in content["deployments"]:
        deployment["schedules"] = schedules.get(deployment["name"], [])
        if not limited:
            deployment.pop("concurrency_limit")
    (checkout.root / "prefect.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = (ROOT / "Makefile").read_text().split("worker: install\n")[1].split("\n\n")[0]
    for command in recipe.splitlines():
        if "flows.worker" not in command:
            checkout.must(*command.split(), **variables)


@contextmanager
def working(
    checkout: Checkout, log: Path, command: Sequence[str] = ("flows.worker",), **variables: str
) -> Iterator[subprocess.Popen]:
    """Run a worker of the pool, or another module with its arguments, during the context."""
    with log.open("w") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=checkout.root,
            env=checkout.environment | {"PREFECT_WORKER_QUERY_SECONDS": "3"} | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def final_state(client, run_id):
    """Return the state of a run once it has ended, None before."""
    state = client.read_flow_run(run_id).state
    return state if state.is_final() else None


def heartbeats(client, run_id) -> int:
    """Return how many heartbeats of a run the server has received."""
    resource = {"id": [f"prefect.flow-run.{run_id}"]}
    event_filter = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": resource}}
    return client.request("POST", "/events/filter", json=event_filter).json()["total"]


def _begun(client, deployment_id) -> list:
    """Return the runs that the schedule has started, oldest first."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])))
    begun = [run for run in runs if run.auto_scheduled and not run.state.is_scheduled()]
    return sorted(begun, key=lambda run: run.expected_start_time)
