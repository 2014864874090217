"""Results, registry and Prefect's state on a real PostgreSQL server that several processes use as machines would."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment

from pinspect.core.errors import RegistryError, RegistryUnreachableError
from pinspect.core.postgres import lock_number, with_driver
from pinspect.registry.connection import open_registry, registry_lock
from pinspect.registry.database_lock import database_lock
from pinspect.registry.settings import RegisterSettings, load_register_settings
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import ResultsError
from tests.support.flow_stack import final_state, prefect_server
from tests.support.lock_holder import holder_killed_at_first_message
from tests.support.mlflow_server import free_port
from tests.support.postgres import PASSWORD
from tests.support.promotion_race import NAME, promoters, race, register_two
from tests.support.result_writers import write_from_two
from tests.support.results import keep
from tests.support.sample import ROOT, line, set_values, stage_environment
from tests.support.station_stack import StationProcess, station
from tests.support.waiting import until

ROUNDS, RESULTS = 2, 100  # benchmarks/postgres.py has 20 rounds and 2,000 results
IMAGE = line()[0].jpeg


@dataclass
class Registry:
    """A registry in PostgreSQL: URL, two checkouts that share it, client."""

    url: str
    roots: list[Path]
    client: MlflowClient

    @property
    def aliases(self) -> dict[str, str]:
        aliases = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in aliases.items()}

    def settings(self) -> RegisterSettings:
        return load_register_settings(self.roots[0])


@pytest.fixture(scope="module")
def registry(postgres, project, tmp_path_factory) -> Registry:
    """Versions 1 and 2 of the project, of which version 2 is better; the user has created the experiment."""
    url, folder = postgres.new_database(), tmp_path_factory.mktemp("checkouts")
    create = (
        "experiments",
        "create",
        "--experiment-name",
        "pinspect",
        "--artifact-location",
        str(folder / "artifacts"),
    )
    subprocess.run(
        [sys.executable, "-m", "mlflow", *create],
        env=os.environ | {"MLFLOW_TRACKING_URI": with_driver(url)},
        check=True,
        capture_output=True,
    )
    roots = register_two(project, folder, tracking_uri=url)
    return Registry(url, roots, MlflowClient(with_driver(url), with_driver(url)))


@pytest.fixture(scope="module")
def processes(registry) -> Iterator[list[subprocess.Popen]]:
    """A process in each checkout that promotes for each line on its standard input."""
    with promoters(registry.roots) as running:
        yield running


# Results.


def test_two_stations_lose_and_double_nothing_although_one_is_killed_and_started_again(postgres, tmp_path):
    counts = write_from_two(tmp_path, postgres.new_database(), RESULTS)
    assert RESULTS // 2 < counts["acknowledged_before_the_kill"] < RESULTS
    assert (counts["acknowledged"], counts["stored"], counts["lost"], counts["doubled"]) == (2 * RESULTS,) * 2 + (0, 0)
    assert counts["numbered_without_a_gap"]
    assert counts["delivered_once_and_in_order"]


def test_a_station_with_the_url_of_postgresql_stores_answers_and_shows_results(postgres, registered):
    url = postgres.new_database()
    set_values(registered, "station", results=url)
    with station(registered) as running:
        ids = [send(running, key) for key in ("1", "2", "3", "2")]  # the client of key 2 repeats its request
        page = requests.get(f"{running.url}/results", timeout=600).json()["results"]
        assert requests.get(f"{running.url}/health", timeout=600).json()["status"] == "ok"
        assert running.stop() == 0
    with contextlib.closing(ResultsTable(url)) as table:
        stored = table.after(0, 9)
    assert [result.id for result in stored] == ids[:3]
    assert ids[3] == ids[1]
    assert [result["id"] for result in page] == ids[2::-1]
    assert all(result.answer and result.pin_map for result in stored)


def send(running: StationProcess, key: str) -> str:
    """Send a capture with a key, and return the id of its result."""
    images, headers = [("images", (f"{key}.jpg", IMAGE))], {"Idempotency-Key": key}
    answer = requests.post(f"{running.url}/inspect", files=images, headers=headers, timeout=600)
    answer.raise_for_status()
    return answer.json()["results"][0]["id"]


def test_results_are_stored_again_once_a_server_that_went_away_is_back(postgres):
    with contextlib.closing(ResultsTable(postgres.new_database())) as table:
        keep(table, "before")
        postgres.stop()
        with pytest.raises(ResultsError, match="cannot be used as results table") as caught:
            keep(table, "meanwhile")
        assert "\n" not in str(caught.value)
        postgres.start()
        assert keep(table, "after")
        assert [(i.id, i.sequence) for i in table.after(0, 9)] == [("before", 1), ("after", 2)]


# Registry.


def test_of_raced_promotions_of_two_checkouts_one_makes_the_champion_and_its_decision_is_the_recorded_one(
    registry, processes
):
    for _ in range(ROUNDS):
        answers, faults = race(registry.client, processes)
        assert faults == []
        (error,) = [answer["error"] for answer in answers if "error" in answer]
        assert "no version of pin-inspector is challenger, version 2 is champion" in error
        assert PASSWORD not in error


def test_a_promotion_whose_lock_was_lost_moves_no_alias(registry, processes, postgres):
    registry.client.set_registered_model_alias(NAME, "champion", "1")
    registry.client.set_registered_model_alias(NAME, "challenger", "2")
    registry.client.delete_registered_model_alias(NAME, "previous")
    processes[0].stdin.write("promote\n")
    processes[0].stdin.flush()
    number = lock_number(f"pinspect registry {NAME}") % 2**32  # pg_locks shows its two halves
    held = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = {number}"
    ((pid,),) = until(lambda: postgres.execute(held), "the lock of the promotion", longest=0.05)
    postgres.execute(f"SELECT pg_terminate_backend({pid})")
    assert "the connection that held the lock has ended" in processes[0].stdout.readline()
    assert registry.aliases == {"champion": "1", "challenger": "2"}


def test_a_version_registered_in_postgresql_has_its_tags_its_files_and_no_twin(registry):
    with open_registry(registry.roots[1], registry.settings()) as client:
        versions = client.search_model_versions(f"name = '{NAME}'")
        assert sorted(str(version.version) for version in versions) == ["1", "2"]
        assert all(len(version.tags["package_sha256"]) == 64 for version in versions)
        files = {file.path for file in client.list_artifacts(versions[0].run_id, "reports")}
    assert "reports/report.html" in files
    command = [sys.executable, "-m", "stages.register"]
    done = subprocess.run(command, cwd=registry.roots[1], env=stage_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == 2
    assert PASSWORD not in done.stdout + (registry.roots[1] / "reports/registration.json").read_text()


def test_a_process_that_waits_says_so_and_goes_on_when_the_holder_is_killed(postgres, tmp_path, caplog):
    url = postgres.new_database()
    settings = RegisterSettings(
        model_name=NAME, experiment="pinspect", tracking_uri="http://127.0.0.1:9", lock_database=url
    )
    code = (
        "import sys; from pathlib import Path; from pinspect.registry.connection import registry_lock\n"
        "from pinspect.registry.settings import RegisterSettings\n"
        f"with registry_lock(Path({str(tmp_path / 'other')!r}), RegisterSettings(**{settings.model_dump()!r})):\n"
        "    print('held', flush=True); sys.stdin.readline()"
    )
    with holder_killed_at_first_message(code, caplog), registry_lock(tmp_path, settings):
        (message,) = (record.getMessage() for record in caplog.records)
    assert message.endswith(": waiting for another process that registers or promotes")
    assert PASSWORD not in message
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    with database_lock(url, "a model"), database_lock(url, "another model"):  # models do not wait for each other
        assert postgres.execute(held) == [(2,)]


# What a user sees.


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        ("password", RegistryError, "password authentication failed"),
        ("database", RegistryError, 'database "nowhere" does not exist'),
        ("server", RegistryUnreachableError, "no PostgreSQL server answers .*Connection refused"),
        ("driver", RegistryError, r"driver is not installed; run pip install 'pinspect\[postgres\]'"),
        (
            "experiment",
            RegistryError,
            "no experiment pinspect; create it .*: mlflow experiments create --experiment-name",
        ),
        ("tables", RegistryError, "not usable as MLflow's database .*Can't locate revision"),
    ],
)
def test_a_registry_that_cannot_be_used_is_reported_in_one_line(
    postgres, tmp_path, monkeypatch, mistake, error, message
):
    url = {
        "password": postgres.url(password="wrong"),
        "database": postgres.url("nowhere"),
        "server": postgres.url().replace(f":{postgres.port}/", f":{free_port()}/"),
    }.get(mistake) or postgres.new_database()
    if mistake == "driver":
        monkeypatch.setitem(sys.modules, "psycopg", None)  # Python then finds no such package
    if mistake == "tables":  # those of another program, such as Prefect
        postgres.execute(
            "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('x')", url
        )
    settings = RegisterSettings(model_name=NAME, experiment="pinspect", tracking_uri=url)
    with pytest.raises(error, match=message) as caught, open_registry(tmp_path, settings):
        pass
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_results_that_cannot_be_stored_are_reported_in_one_line(postgres):
    for url, message in (
        (postgres.url(password="wrong"), "password authentication failed"),
        (postgres.url("nowhere"), 'database "nowhere" does not exist'),
    ):
        with pytest.raises(ResultsError, match=rf"\*\*\*@.*cannot be used as results table: .*{message}") as caught:
            ResultsTable(url)
        assert "\n" not in str(caught.value)


# Prefect.


@contextlib.contextmanager
def serving(log: Path) -> Iterator[None]:
    """Run the deployment `rollback/rollback` in a process of its own during the context."""
    command = [sys.executable, "-c", "from flows.promotion import rollback; rollback.serve(name='rollback')"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_prefect_runs_a_flow_with_its_state_and_the_registry_in_postgresql(registry, postgres, tmp_path):
    registry.client.set_registered_model_alias(NAME, "champion", "2")
    registry.client.set_registered_model_alias(NAME, "previous", "1")
    url = postgres.new_database()
    database = url.replace("postgresql://", "postgresql+asyncpg://")
    with (
        prefect_server(tmp_path, PREFECT_API_DATABASE_CONNECTION_URL=database),
        serving(tmp_path / "serve.log"),
        get_client(sync_client=True) as client,
    ):
        until(client.read_deployments, "the deployment")
        parameters = {"root": str(registry.roots[1]), "why": "three escapes at line 2"}
        run = run_deployment("rollback/rollback", parameters=parameters, timeout=0)
        state = until(lambda: final_state(client, run.id), "the end of the run")
    assert state.is_completed(), state
    assert registry.aliases["champion"] == "1"
    rows = postgres.execute("SELECT state_type::text, parameters->>'why' FROM flow_run", url)
    assert rows == [("COMPLETED", "three escapes at line 2")]
