"""A Prefect server that is restarted, runs that crash, runs that are old: a real server and a real worker."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.automations import NIGHTLY, ensure_automations
from flows.servers import retention
from tests.support.checkout import Checkout
from tests.support.flow_stack import auth_string, deploy, final_state, heartbeats, working
from tests.support.mlflow_server import free_port, running
from tests.support.sample import ROOT, set_values
from tests.support.waiting import SECONDS, until

OUTAGE = 95  # seconds: three heartbeats are missing
WAITS = """
import os, time
from pathlib import Path
Path('started').write_text(str(os.getpid()))
while not Path('go').exists():
    time.sleep(0.1)
"""

_OF_RUN = {  # table of Prefect's database -> condition that its rows belong to a run
    "log": "flow_run_id = ?",
    "artifact": "flow_run_id = ?",
    "events": "resource_id = 'prefect.flow-run.' || ?",
}


class Server:
    """A Prefect server that can be stopped and started again; its database stays."""

    def __init__(self, home: Path):
        self._home, self._port = home, free_port()
        self.uri = f"http://127.0.0.1:{self._port}/api"
        self.database = home / "prefect.db"
        self._stack = ExitStack()

    def start(self) -> None:
        command = [sys.executable, "-m", "flows.prefect_app", "--port", str(self._port)]
        self._stack.enter_context(running(command, self._home / "server.log", "/api/health"))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("prefect")
    started = Server(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_API_URL", started.uri)
        patch.setenv("PREFECT_API_AUTH_STRING", auth_string(ROOT))
        patch.setenv("PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS", "1")
        for name, value in retention(ROOT).items():
            patch.setenv(name, value)
        with temporary_settings({PREFECT_API_URL: started.uri, PREFECT_API_AUTH_STRING: auth_string(ROOT)}):
            started.start()
            yield started
            started.stop()


@pytest.fixture(scope="module")
def client(server):
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def checkout(server, tmp_path_factory):
    """A deployed checkout with one stage, which works until the file `go` exists; with a worker."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("flows", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "settings.yaml", root)
    stage = {"cmd": f'"{sys.executable}" wait.py', "deps": ["wait.py"]}
    (root / "dvc.yaml").write_text(json.dumps({"stages": {"wait": stage}}))
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=root, check=True)
    made = Checkout(root)
    deploy(made, {}, limited=False)
    with working(made, root / "worker.log"):
        yield made


@pytest.fixture
def run(checkout):
    """A run whose stage is at work."""
    for name in ("started", "go"):
        (checkout.root / name).unlink(missing_ok=True)
    (checkout.root / "wait.py").write_text(f"{WAITS}# {time.time_ns()}")  # otherwise nothing has changed
    begun = run_deployment(NIGHTLY, timeout=0)
    until((checkout.root / "started").exists, "the stage's start")
    yield begun
    (checkout.root / "go").touch()


def runs_of_the_night(client) -> list:
    return client.read_flow_runs(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=["nightly"])))


def test_a_run_lives_through_a_restart_of_the_server(server, checkout, client, run):
    ensure_automations()
    until(lambda: heartbeats(client, run.id), "its heartbeat")
    server.stop()
    time.sleep(OUTAGE)
    server.start()
    before = heartbeats(client, run.id)
    until(lambda: heartbeats(client, run.id) > before, "a heartbeat to the new server")
    (checkout.root / "go").touch()
    assert until(lambda: final_state(client, run.id), "its end").name == "Completed"
    states = client.request("GET", "/flow_run_states/", params={"flow_run_id": str(run.id)}).json()
    assert "Crashed" not in [state["name"] for state in states]


def test_a_crashed_run_of_the_night_is_run_again_but_not_over_and_over(checkout, client, run):
    ensure_automations(pause=timedelta(0))
    first = {each.id for each in runs_of_the_night(client)}
    _kill_run(checkout)
    assert until(lambda: final_state(client, run.id), "its end").name == "Crashed"
    (again,) = until(lambda: [each for each in runs_of_the_night(client) if each.id not in first], "the second run")
    until((checkout.root / "started").exists, "the second run's stage")
    _kill_run(checkout)
    assert until(lambda: final_state(client, again.id), "its end").name == "Crashed"
    time.sleep(5)
    assert {each.id for each in runs_of_the_night(client)} == first | {again.id}


def test_the_server_deletes_runs_that_ended_long_ago_and_old_events(server, checkout, client, run):
    (checkout.root / "go").touch()
    until(lambda: final_state(client, run.id), "its end")
    recent = run_deployment(NIGHTLY, timeout=SECONDS)
    until(lambda: all(_stored(server, run.id).values()), "its logs, artifacts and events")
    until(lambda: _stored(server, recent.id)["log"], "the logs of the other run")  # which is skipped: no artifacts
    with closing(sqlite3.connect(server.database, timeout=SECONDS)) as database, database:
        aged = database.execute("UPDATE flow_run SET end_time = '2020-01-01' WHERE id = ?", (str(run.id),))
        assert aged.rowcount == 1
        database.execute(f"UPDATE events SET occurred = '2020-01-01' WHERE {_OF_RUN['events']}", (str(run.id),))
    until(lambda: _is_deleted(client, run.id), "its deletion")
    until(lambda: not any(_stored(server, run.id).values()), "the deletion of its logs, artifacts and events")
    assert client.read_flow_run(recent.id).state.is_final()
    kept = _stored(server, recent.id)
    assert kept["log"]
    assert kept["events"]


def test_the_settings_decide_for_how_long_runs_and_events_stay(tmp_path):
    shutil.copy(ROOT / "settings.yaml", tmp_path)
    set_values(tmp_path, "prune", runs_days=400, events_days=30)
    code = (
        "from prefect.settings import get_current_settings as get; server = get().server; vacuum = "
        "server.services.db_vacuum; print(vacuum.retention_period.days, server.events.retention_period.days, "
        "*sorted(vacuum.enabled_vacuum_types))"
    )
    environment = os.environ | retention(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "30", "events", "flow_runs", "orphans"]


def _kill_run(checkout) -> None:
    """Kill the process of the flow; its session then kills the stage."""
    started = checkout.root / "started"
    stage = psutil.Process(int(started.read_text()))
    started.unlink()
    flow = next(process for process in stage.parents() if "prefect.engine" in process.cmdline())
    os.kill(flow.pid, signal.SIGKILL)


def _stored(server, run_id) -> dict[str, int]:
    """Return how many logs, artifacts and events of a run lie in the server's database."""
    with closing(sqlite3.connect(server.database, timeout=SECONDS)) as database:
        return {
            table: database.execute(f"SELECT count(*) FROM {table} WHERE {condition}", (str(run_id),)).fetchone()[0]
            for table, condition in _OF_RUN.items()
        }


def _is_deleted(client, run_id) -> bool:
    try:
        client.read_flow_run(run_id)
    except ObjectNotFound:
        return True
    return False
