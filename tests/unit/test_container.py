"""The Dockerfile, compose.yaml and the units of systemd, as far as they can be checked without an engine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.servers import retention
from pinspect.cli.shipped import ENTRIES, copy_shipped
from pinspect.core import environment
from tests.support.container_files import build_order, composed, context_files, env_file, read_env, services, stages
from tests.support.sample import ROOT

SECRETS = {
    name: f"{number}" * 24
    for number, name in enumerate(
        (
            *("PINSPECT_STATION_TOKEN", "PREFECT_AUTH_STRING", "POSTGRES_PASSWORD"),
            *("RESULTS_PASSWORD", "MLFLOW_PASSWORD", "PREFECT_PASSWORD"),
        )
    )
}
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """An .env file without gaps."""
    return env_file(tmp_path_factory.mktemp("env") / ".env", SECRETS | {"PINSPECT_PROJECT": "./line"})


def test_hadolint_finds_nothing_in_the_dockerfile_and_no_rule_is_ignored():
    hadolint = Path(sys.executable).with_name("hadolint")
    command = [hadolint, "--disable-ignore-pragma", "--failure-threshold", "style", ROOT / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_an_image_copies_is_in_the_context():
    files = context_files()
    for target in ("station", "pipeline", "gpu"):
        for stage in build_order(target):
            for keyword, text in stage.instructions:
                for source in text.split()[:-1] if keyword == "COPY" and "--from" not in text else []:
                    assert source == "." or source in files, f"{stage.name}: {source}"


def test_the_context_has_all_that_a_wheel_is_built_from(tmp_path):
    copy_shipped(ROOT, tmp_path, ENTRIES)
    shipped = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "src/pinspect").rglob("*") if path.is_file()}
    needed = shipped | {name for name in package if "__pycache__" not in name}
    assert needed | {"pyproject.toml", "setup.py", "README.md", "LICENSE"} <= context_files()


def test_no_secret_and_nothing_of_a_line_gets_into_the_context(tmp_path):
    kept_out = (
        *(".env", "prefect.toml", ".git/config", ".dvc/config.local", "mlruns/mlflow.db", "data/station/results.db"),
        *("data/captures/images/left.png", "data/captures/labels.csv", "models/adapter/adapter_model.safetensors"),
        *("src/pinspect/__pycache__/a.pyc", "reports/eval/metrics.json", "inbox/images/left.png"),
    )
    for name in (*kept_out, "src/pinspect/__init__.py", "models/base/config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert context_files(tmp_path) == {"src/pinspect/__init__.py", "models/base/config.json"}


def test_every_image_runs_as_an_unprivileged_user_and_keeps_no_downloads():
    for target in ("station", "pipeline", "gpu"):
        assert stages()[target].last("USER") == "${UID}"
        for stage in build_order(target):
            for _, text in stage.instructions:
                assert text.count("pip install") + text.count("pip wheel") == text.count("--no-cache-dir")
                assert text.count("apt-get install") == text.count("rm -rf /var/lib/apt/lists/*")


@pytest.mark.parametrize("lock", ["requirements-station.lock", "requirements.lock", "requirements-gpu.lock"])
def test_every_image_has_the_drivers_of_its_databases(lock):
    drivers = {"psycopg"} if lock == "requirements-station.lock" else {"psycopg", "asyncpg"}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), flags=re.MULTILINE))
    assert drivers <= locked, f"{lock} lacks {drivers - locked}: add --extra postgres to `make lock`"


def test_compose_does_not_start_before_each_secret_is_set(filled, tmp_path):
    variables = re.findall(r"\$\{(\w+)(\S*?)[} ]", (ROOT / "compose.yaml").read_text())
    assert {name for name, _ in variables} == set(read_env(ROOT / ".env.example"))
    assert {(name, form) for name, form in variables if form != ":?set"} == {("PINSPECT_UID", ":-1000")}
    assert composed(filled).returncode == 0
    done = composed(ROOT / ".env.example")
    assert done.returncode != 0
    assert "is missing a value: set it in .env" in done.stderr


def test_compose_publishes_on_loopback_only_and_waits_for_healthy_services(filled):
    running = services(filled, "compose.gpu.yaml")
    published = [port for service in running.values() for port in service.get("ports", [])]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    for name, service in running.items():
        for other, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_healthy"
            assert "healthcheck" in running[other]
        assert "healthcheck" in service or name == "station"  # the image has it
        if target := service.get("build", {}).get("target"):
            assert target in stages()
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
        for mount in service.get("volumes", []):
            source = str(mount).split(":", maxsplit=1)[0]
            assert source in ("postgres", "artifacts", "./line") or (ROOT / source).is_dir(), mount
        for file in service.get("env_file", []):
            assert (ROOT / file).is_file()


def test_the_servers_of_a_deployment_are_set_as_those_of_make_server():
    values = read_env(ROOT / "deploy/servers.env")
    expected = environment.SETTINGS | retention(ROOT)
    assert {name: value for name, value in values.items() if name in expected} == {
        name: expected[name] for name in values if name in expected
    }
    sends = ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED")
    assert {*sends, *retention(ROOT)} <= set(values)


def test_systemd_accepts_every_unit(tmp_path):
    """The programs of `/opt/pinspect/bin` are those of this environment."""
    folder = tmp_path / "units"
    for path in (ROOT / "deploy/systemd").rglob("*"):
        if path.is_file():
            text = path.read_text().replace("/opt/pinspect/bin/", f"{Path(sys.executable).parent}/")
            (folder / path.relative_to(ROOT / "deploy/systemd")).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(ROOT / "deploy/systemd")).write_text(text)
    assert len(UNITS) == 4
    for unit in UNITS:
        done = subprocess.run(
            ["systemd-analyze", "verify", folder / unit.name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_confines_every_unit(unit):
    """systemd-analyze rates the exposure of a service from 0 (none) to 10; the threshold is a tenth of it."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:]


def test_units_and_compose_start_the_same_programs(filled):
    """The commands of compose.yaml are run by `tests/system/test_containers.py`."""
    lines = {
        unit.stem: re.findall(r"^Exec\w+=/opt/pinspect/bin/(.+)", unit.read_text(), re.MULTILINE) for unit in UNITS
    }
    running = services(filled)
    mlflow = " ".join(running["mlflow"]["command"])
    assert lines["pinspect-mlflow"] == [mlflow.replace("0.0.0.0", "127.0.0.1")]
    script = running["worker"]["command"][-1].splitlines()
    assert lines["pinspect-worker"] == [
        *script[:-1],
        script[-1].removeprefix("exec ").removesuffix(" --with-healthcheck"),
    ]
    recipe = yaml.safe_load((ROOT / "prefect.yaml").read_text())["definitions"]["worker"]["name"]
    assert f"work-pool create {recipe} " in script[0]
