"""The steps of the station's image in a clean environment, and the services of compose.yaml as processes.

No engine runs: paths of an image lie below a temporary folder, ports and host names are those of this machine.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
import requests
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from tests.support.container_files import Image, command_of, env_file, health_check_of, read_env, services, stages
from tests.support.flow_stack import final_state
from tests.support.mlflow_server import free_port
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.sample import ROOT
from tests.support.waiting import until

TOKEN = secrets.token_urlsafe(32)


@contextmanager
def healthy(
    command: list[str], check: list[str], folder: Path, variables: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen]:
    """Run a container's command during the context, once its health check succeeds."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def is_healthy() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return subprocess.run(check, env=variables, capture_output=True, check=False).returncode == 0

    try:
        until(is_healthy, f"the health check of {' '.join(command)}")
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def inspect(port: int, project: Path) -> dict:
    """Send a capture of a project to its station, and return its result."""
    picture = max((project / "data/captures/images").iterdir())
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with picture.open("rb") as file:
        answer = requests.post(f"http://127.0.0.1:{port}/inspect", headers=headers, files={"images": file}, timeout=600)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    return result


def test_the_steps_of_the_stations_image_make_a_station_that_becomes_healthy_inspects_and_stops(
    registered, tmp_path, monkeypatch
):
    monkeypatch.setenv("PINSPECT_STATION_TOKEN", TOKEN)
    image = Image(tmp_path / "image", "station")
    assert [command.split()[0] for command in image.skipped] == ["useradd"]
    port = free_port()
    command, check = (
        [word.replace("8000", str(port)) for word in words]
        for words in (command_of(stages()["station"]), health_check_of(stages()["station"]))
    )
    with healthy(command, check, registered, image.environment, tmp_path / "station.log") as station:
        assert inspect(port, registered)["judgement"] in ("passed", "defective")
        assert requests.get(f"http://127.0.0.1:{port}/results", timeout=60).status_code == 401
        station.send_signal(signal.SIGTERM)
        assert station.wait(timeout=600) == 0
    assert subprocess.run(check, env=image.environment, capture_output=True, check=False).returncode != 0


@pytest.fixture(scope="module")
def line(prepared, tmp_path_factory) -> Path:
    """A checkout whose version is in no registry, with results in PostgreSQL; its deployments run when called."""
    checkout = prepared.copy(tmp_path_factory.mktemp("composed") / "line")
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in content["deployments"]:
        deployment["schedules"] = []
    (checkout.root / "prefect.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    checkout.set_param("register", experiment="composed")  # else DVC takes the registration from its cache
    checkout.set_param("station", results="postgresql+psycopg://", timeout_seconds=300.0)
    checkout.commit()
    return checkout.root


class Composed:
    """The services of compose.yaml as processes of this machine.

    Args:
        project: What `PINSPECT_PROJECT` names.
        folder: Where the volumes lie.
        postgres: A server in place of that of the service `postgres`.
        stack: Ends the services.
    """

    def __init__(self, project: Path, folder: Path, postgres: PostgresServer, stack: ExitStack):
        self._project, self._folder, self._postgres, self._stack = project, folder, postgres, stack
        self.ports = {port: str(free_port()) for port in ("4200", "5000", "8000", "8080")}
        names = [name for name in read_env(ROOT / ".env.example") if name.endswith("PASSWORD")]
        self.values = {name: secrets.token_hex(8) for name in names} | {
            "PINSPECT_PROJECT": str(project),
            "PINSPECT_STATION_TOKEN": TOKEN,
            "PREFECT_AUTH_STRING": f"pinspect:{secrets.token_hex(8)}",
        }
        self.services = services(env_file(folder / ".env", self.values))
        (folder / "artifacts").mkdir()

    def make_databases(self) -> None:
        """Do what the image of PostgreSQL does with the scripts of its first start."""
        [mount] = [text for text in self.services["postgres"]["volumes"] if "initdb" in text]
        for script in sorted((ROOT / mount.split(":")[0]).iterdir()):
            subprocess.run(
                ["psql", "--set", "ON_ERROR_STOP=1", "--no-psqlrc", "--file", script, self._postgres.url()],
                env=os.environ | self.services["postgres"]["environment"],
                check=True,
                capture_output=True,
            )

    def start(self, name: str) -> None:
        """Start a service, and wait until it is healthy."""
        service = self.services[name]
        image = stages()[service["build"]["target"]]
        command = service.get("command") or command_of(image)
        check = service["healthcheck"]["test"][1:] if "healthcheck" in service else health_check_of(image)
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PGPORT": str(self._postgres.port),
            "PREFECT_HOME": str(self._folder / name),
            "PREFECT_WORKER_WEBSERVER_PORT": self.ports["8080"],
            "PREFECT_WORKER_QUERY_SECONDS": "3",
            "DVC_SITE_CACHE_DIR": str(self._project / ".dvc/tmp/site"),
        }
        for file in service.get("env_file", []):
            variables |= read_env(ROOT / file)
        variables |= service["environment"]
        self._stack.enter_context(
            healthy(
                [self._here(word) for word in command],
                [self._here(word) for word in check],
                self._project if service.get("volumes", [""])[0].endswith(":/project") else self._folder,
                {key: self._here(value) for key, value in variables.items()},
                self._folder / f"{name}.log",
            )
        )

    def _here(self, text: str) -> str:
        """Return a word of a command, or the value of a variable, as it has to be on this machine."""
        text = re.sub(r"\b(4200|5000|8000|8080)\b", lambda port: self.ports[port[1]], text)
        text = re.sub(r"//(prefect|mlflow):", "//127.0.0.1:", text)
        text = re.sub(r"^postgres$|(?<=@)postgres(?=/)", "127.0.0.1", text)
        return re.sub(r"^/(artifacts|tmp/prefect-ui)$", rf"{self._folder}/\1", text)


def test_the_services_of_compose_retrain_register_inspect_and_store_in_their_own_databases(line, tmp_path):
    with postgres_server() as postgres, ExitStack() as stack:
        composed = Composed(line, tmp_path, postgres, stack)
        composed.make_databases()
        for name in ("mlflow", "prefect", "worker"):
            composed.start(name)

        mlflow = f"http://127.0.0.1:{composed.ports['5000']}"
        for host, status in ((f"mlflow:{composed.ports['5000']}", 200), ("other.example", 403)):
            answer = requests.get(
                f"{mlflow}/api/2.0/mlflow/experiments/get", {"experiment_id": 0}, headers={"Host": host}
            )
            assert answer.status_code == status, answer.text

        api = f"http://127.0.0.1:{composed.ports['4200']}/api"
        assert requests.get(f"{api}/admin/version", timeout=60).status_code == 401
        password = composed.values["PREFECT_AUTH_STRING"]
        with (
            temporary_settings({PREFECT_API_URL: api, PREFECT_API_AUTH_STRING: password}),
            get_client(sync_client=True) as client,
        ):
            nightly = client.read_deployment_by_name("retrain/nightly")
            run = client.create_flow_run_from_deployment(nightly.id)
            state = until(lambda: final_state(client, run.id), "the end of the retraining")
        assert state.is_completed(), (state.message, (tmp_path / "worker.log").read_text()[-3000:])

        composed.start("station")
        result = inspect(int(composed.ports["8000"]), line)
        assert result["model_version"] == "1"
        assert [*(tmp_path / "artifacts").rglob("line_profile.json")]

        def rows(database: str, role: str, statement: str) -> list:
            password = composed.values[f"{role.upper()}_PASSWORD"]
            place = {"host": "127.0.0.1", "port": postgres.port, "dbname": database}
            with psycopg.connect(user=role, password=password, **place) as connection:
                return connection.execute(statement).fetchall()

        assert rows("results", "results", "SELECT id FROM station_inspections") == [(result["id"],)]
        assert rows("mlflow", "mlflow", "SELECT version FROM model_versions") == [(1,)]
        assert (run.id,) in rows("prefect", "prefect", "SELECT id FROM flow_run")
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            rows("prefect", "results", "SELECT 1")
