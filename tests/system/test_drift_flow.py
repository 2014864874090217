"""The drift flow: a station on loopback, a real Prefect server, a real DVC repository of one stage."""

import json
import shutil
import subprocess
import sys
from threading import Thread
from types import SimpleNamespace
from uuid import uuid4

import pytest
import requests
import uvicorn
import yaml
from fastapi import FastAPI
from prefect.client.orchestration import get_client
from prefect.states import Crashed

from flows.automations import ensure_notices
from flows.drift import drift, main
from flows.notices import report_crash
from flows.recovery import one_per_checkout
from pinspect.core.errors import PinspectError
from pinspect.station.drift import Change, DriftReport
from tests.support.mlflow_server import free_port
from tests.support.receivers import http_receiver
from tests.support.sample import ROOT, set_values
from tests.support.waiting import until

DARKER = Change("brightness", True, 200, 127, 0.9, 1e-20, 0.14, 0.28)
SAME = Change("brightness", False, 200, 127, 0.05, 0.9, 0.28, 0.28)
CHANGE = "image brightness: median 0.14, 0.28 in training"
pytestmark = pytest.mark.usefixtures("prefect_api")


class Station:
    """A server that answers /health like a station, with a report set by the test."""

    def __init__(self):
        self.url = f"http://127.0.0.1:{free_port()}"
        self.health: object = {}
        app = FastAPI()
        app.get("/health")(lambda: self.health)
        config = uvicorn.Config(app, host="127.0.0.1", port=int(self.url.rsplit(":", 1)[1]), log_level="warning")
        self.server = uvicorn.Server(config)

    def report(self, *quantities: Change, problem: str | None = None) -> None:
        report = DriftReport(quantities, 200, problem)
        self.health = {"status": "degraded" if report.changed else "ok", "version": "3", "drift": report.to_dict()}


@pytest.fixture(scope="module")
def station():
    started = Station()
    thread = Thread(target=started.server.run)
    thread.start()
    until(lambda: started.server.started, "the station", 60)
    yield started
    started.server.should_exit = True
    thread.join()


@pytest.fixture
def project(tmp_path):
    """A DVC project of one stage that learns from captures.txt."""
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    stage = {"cmd": f'"{sys.executable}" train.py', "deps": ["train.py", "captures.txt"], "outs": ["model.txt"]}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}))
    (tmp_path / "train.py").write_text("open('model.txt', 'w').write(open('captures.txt').read())")
    (tmp_path / "captures.txt").write_text("bright")
    return tmp_path


@pytest.fixture
def notices(project, monkeypatch):
    """The receiver of the project's notices."""
    with http_receiver() as receiver:
        shutil.copyfile(ROOT / "settings.yaml", project / "settings.yaml")
        set_values(project, "notify", webhook=receiver.url)
        monkeypatch.setenv("PINSPECT_NOTIFY_TOKEN", "secret")
        yield receiver


def ask(project, station, **options):
    return drift(str(project), url=station.url, retries=0, return_state=True, **options)


def warnings() -> list[dict]:
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    return [artifact for artifact in artifacts if artifact["key"] == "line-changed"]


def test_a_line_that_has_not_changed_starts_nothing(project, station):
    station.report(SAME)
    state = ask(project, station)
    assert (state.name, state.message) == ("Skipped", "The line has not changed, by its latest 200 captures.")
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    assert run.name == f"{project.name} at {station.url}, {run.expected_start_time:%Y-%m-%d %H:%M} UTC"
    assert state.result() == []
    assert not (project / "model.txt").exists()


def test_drift_starts_one_run_and_another_only_after_new_captures(project, station):
    station.report(DARKER)
    before = len(warnings())
    state = ask(project, station)
    assert (state.name, state.message) == ("Completed", f"The line has changed: {CHANGE}. 1 stages ran.")
    assert [outcome.result for outcome in state.result()] == ["ran"]
    again = ask(project, station)
    assert (again.name, [outcome.result for outcome in again.result()]) == ("Skipped", ["unchanged"])
    assert "nothing new to learn from: label captures of the changed line" in again.message
    created = warnings()
    assert len(created) == before + 2
    assert all(CHANGE in artifact["description"] and '"brightness"' in artifact["data"] for artifact in created[-2:])
    (project / "captures.txt").write_text("bright and dark")
    assert ask(project, station).name == "Completed"
    assert (project / "model.txt").read_text() == "bright and dark"


def test_a_failed_stage_fails_the_flow_and_is_reported(project, station, notices):
    station.report(DARKER)
    (project / "train.py").write_text("import sys; print('row 7: unknown mode'); sys.exit(2)")
    state = ask(project, station)
    assert state.is_failed()
    assert "row 7: unknown mode" in state.message
    changed, failed = notices.documents
    assert (changed["event"], failed["event"]) == ("line-changed", "failed")
    assert (failed["details"]["flow"], failed["details"]["message"]) == ("drift", state.message)
    assert "row 7: unknown mode" in failed["text"]


def test_a_changed_line_is_reported_once_and_again_when_more_changes_or_after_it_was_as_in_training(
    project, station, notices
):
    station.report(DARKER)
    for _ in range(2):
        ask(project, station)
    (notice,) = notices.documents
    assert notice["text"] == f"The line has changed: {CHANGE}"
    assert notice["details"]["station"] == station.url
    assert [quantity["quantity"] for quantity in notice["details"]["quantities"]] == ["brightness"]
    station.report(DARKER, Change("dst_background", True, 200, 127, 0.9, 1e-20, 0.2, 0.1))
    ask(project, station)
    station.report(SAME)
    ask(project, station)
    station.report(DARKER)
    ask(project, station)
    assert [len(notice["details"]["quantities"]) for notice in notices.documents] == [1, 2, 1]


def test_the_server_reports_a_crashed_run(project, notices):
    """The run's process and its worker are gone; only the server knows."""
    ensure_notices(project)
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(drift, parameters={"root": str(project)})
        client.set_flow_run_state(run.id, Crashed(message='No "heartbeat" for 600 s.'), force=True)
    until(lambda: notices.documents, "the notice")
    (notice,) = notices.documents
    assert (notice["event"], notice["id"], notice["project"]) == ("crashed", f"crashed-{run.id}", "pin-inspector")
    assert notice["details"]["message"] == 'No "heartbeat" for 600 s.'
    assert (notice["details"]["flow"], notice["details"]["name"]) == ("drift", run.name)
    assert notices.tokens == ["Bearer secret"]


def test_a_run_that_is_ended_reports_its_crash_itself(project, notices):
    flow_run = SimpleNamespace(id=uuid4(), name="calm-ant", parameters={"root": str(project)})
    report_crash(drift, flow_run, Crashed(message="Execution was interrupted."))
    assert drift.on_crashed_hooks == [report_crash]
    assert notices.documents[0]["text"] == "drift calm-ant: Crashed. Execution was interrupted."


def test_the_drift_flow_skips_while_another_run_uses_the_checkout(project, station):
    station.report(DARKER)
    with one_per_checkout(project):
        assert ask(project, station).is_cancelled()


def test_a_line_that_cannot_be_judged_starts_nothing_and_has_a_reason(project, station):
    station.report(problem="the line profile of this version cannot be read")
    state = ask(project, station)
    assert (state.name, state.message) == (
        "Skipped",
        "The station cannot judge its line: the line profile of this version cannot be read.",
    )
    assert not (project / "model.txt").exists()


@pytest.mark.parametrize(
    ("health", "why"),
    [
        ({"status": "unavailable", "drift": None, "last_error": "no version has the alias champion"}, "alias champion"),
        ({"status": "ok", "drift": None, "last_error": None}, "no line profile in its package; run dvc repro"),
        ({"status": "ok"}, "no health of a station"),
        ([], "no health of a station"),
    ],
)
def test_a_station_without_a_drift_report_is_a_failure_with_a_reason(project, station, health, why):
    station.health = health
    state = ask(project, station)
    assert state.is_failed()
    assert state.message.startswith(f"{station.url}/health: ")
    assert why in state.message


def test_an_address_without_a_station_is_reported_in_one_line(project, prefect_api, capsys):
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(PinspectError, match=f"{nobody}/health: no station answers") as refused:
        main(str(project), nobody)
    assert refused.value.exit_code == 75
    page = prefect_api.removesuffix("/api")  # Prefect's own page
    assert requests.get(page, timeout=30).ok
    state = drift(str(project), url=f"{page}/nowhere", return_state=True)
    assert state.is_failed()
    assert "/nowhere/health: " in state.message


def test_running_the_flow_prints_the_state_of_the_stages(project, station, capsys):
    station.report(DARKER)
    main(str(project), station.url)
    assert CHANGE in capsys.readouterr().out


def test_only_the_drift_deployment_waits_until_someone_switches_it_on():
    deployments = {each["name"]: each for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    schedules = {name: each["schedules"] for name, each in deployments.items() if "schedules" in each}
    assert schedules["drift"] == [{"interval": 900, "active": False}]
    assert all(schedule.get("active", True) for name in ("nightly", "inbox") for schedule in schedules[name])
