"""What flows run on, for tests: a real Prefect server and worker, and a deployed checkout."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.checkout import Checkout, make_checkout
from tests.support.mlflow_server import free_port, running
from tests.support.sample import ROOT
from tests.support.waiting import until

POOL = "pinspect"


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory) -> Iterator[str]:
    """The address of a real Prefect server on loopback; flows in this process use it too."""
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
    """A checkout in which nothing has run, deployed by its prefect.yaml, with a worker.

    It differs in its schedules: `nightly` comes every minute, all other deployments run when they are called.
    """
    checkout = make_checkout(tmp_path_factory.mktemp("deployed") / "line")
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    schedules = {"nightly": [{"cron": "* * * * *", "timezone": "UTC"}]}
    for deployment in content["deployments"]:
        deployment["schedules"] = schedules.get(deployment["name"], [])
    (checkout.root / "prefect.yaml").write_text(yaml.safe_dump(content))
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


@contextmanager
def working(checkout: Checkout, log: Path) -> Iterator[subprocess.Popen]:
    """Run a worker of the pool during the context."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    with log.open("w") as output:
        worker = subprocess.Popen(
            command,
            cwd=checkout.root,
            env=checkout.environment | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _begun(client, deployment_id) -> list:
    """Return the runs that the schedule has started, oldest first."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])))
    begun = [run for run in runs if run.auto_scheduled and not run.state.is_scheduled()]
    return sorted(begun, key=lambda run: run.expected_start_time)
