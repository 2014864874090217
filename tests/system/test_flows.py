"""The retrain flow on a real Prefect server and a real DVC repository of a few tiny stages."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from playwright.sync_api import sync_playwright
from prefect.client.orchestration import get_client

from flows.ingest import ingest
from flows.recovery import CheckoutBusyError, CheckoutError, one_per_checkout
from flows.report_page import REPORT, report_page
from flows.retrain import InfrastructureError, retrain, run_stage
from flows.servers import commands
from pinspect.cli.status import stage_states
from pinspect.core import environment
from pinspect.registry.connection import project_database
from tests.support.browser import CHROMIUM
from tests.support.line_project import make_line_project
from tests.support.mlflow_server import free_port, running
from tests.support.sample import drop, line
from tests.support.waiting import SECONDS, is_gone, until

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    """A function that makes a DVC repository of stages: name -> (command, dependencies, outputs)."""

    def make(**stages):
        run = [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"]
        subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
        pipeline = {
            name: {"cmd": f'"{sys.executable}" {name}.py', "deps": [f"{name}.py", *needs], "outs": makes}
            for name, (_, needs, makes) in stages.items()
        }
        (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": pipeline}))
        for name, (code, _, _) in stages.items():
            (tmp_path / f"{name}.py").write_text(code)
        return tmp_path

    return make


def tries(name: str) -> str:
    """Return code that counts the starts of a stage in a file unknown to DVC."""
    return f"tries = open('{name}.tries', 'a'); tries.write('x'); tries.close()\n"


@pytest.mark.usefixtures("prefect_api")
def test_stages_run_in_the_order_of_the_pipeline_and_a_second_run_does_nothing(repository):
    root = repository(
        # dvc.yaml lists the last stage first: the order of the run follows the dependencies.
        score=("open('reports.txt', 'w').write(open('model.txt').read())", ["model.txt"], ["reports.txt"]),
        train=("open('model.txt', 'w').write(open('data.txt').read() + '!')", ["data.txt"], ["model.txt"]),
        gather=("open('data.txt', 'w').write('captures')", [], ["data.txt"]),
    )
    assert list(stage_states(root)) == ["gather", "train", "score"]

    first = retrain(str(root))
    assert [(outcome.stage, outcome.result) for outcome in first] == [
        ("gather", "ran"),
        ("train", "ran"),
        ("score", "ran"),
    ]
    assert (root / "reports.txt").read_text() == "captures!"
    again = retrain(str(root), return_state=True)
    assert (again.name, again.is_completed()) == ("Skipped", True)
    assert [outcome.result for outcome in again.result()] == ["unchanged"] * 3


@pytest.mark.usefixtures("prefect_api")
def test_stages_before_the_change_do_not_run_and_the_cache_restores_earlier_outputs(repository):
    root = repository(
        gather=("open('data.txt', 'w').write('captures')", [], ["data.txt"]),
        train=("open('model.txt', 'w').write(open('rate.txt').read())", ["data.txt", "rate.txt"], ["model.txt"]),
    )
    (root / "rate.txt").write_text("fast")
    retrain(str(root))
    (root / "rate.txt").write_text("slow")
    assert [(outcome.stage, outcome.result) for outcome in retrain(str(root))] == [
        ("gather", "unchanged"),
        ("train", "ran"),
    ]
    (root / "rate.txt").write_text("fast")
    assert [state["state"] for state in stage_states(root).values()] == ["unchanged", "changed"]
    assert [outcome.result for outcome in retrain(str(root))] == ["unchanged", "restored"]
    assert (root / "model.txt").read_text() == "fast"


@pytest.mark.usefixtures("prefect_api")
def test_dvc_has_the_images_of_the_inbox_and_of_corrections_before_the_first_stage(tmp_path):
    project = make_line_project(tmp_path / "line-7")
    record = project.captures / "images.dvc"
    stage = {"cmd": f"cp {record} seen.txt", "deps": ["data/captures"], "outs": ["seen.txt"]}
    (project.root / "dvc.yaml").write_text(json.dumps({"stages": {"raw": stage}}))
    captures = line(seed=4, train=2, references=3, shapes=("CYLN",))
    drop(project.root / "inbox", captures[:4])
    (outcome,) = ingest(str(project.root))
    assert (outcome.stage, outcome.result) == ("raw", "ran")
    assert not list((project.root / "inbox/images").iterdir())
    assert "nfiles: 4" in (project.root / "seen.txt").read_text()
    drop(project.captures, captures[4:])  # as a correction on a station without DVC
    assert [outcome.result for outcome in retrain(str(project.root))] == ["ran"]
    assert (project.root / "seen.txt").read_bytes() == record.read_bytes()
    assert "nfiles: 5" in record.read_text()
    assert retrain(str(project.root), return_state=True).name == "Skipped"
    assert project.stale() == ""


@pytest.mark.usefixtures("prefect_api")
def test_a_run_whose_lineage_cannot_be_kept_completes(repository):
    root = repository(register=("pass", [], []))  # a folder without git and without settings
    state = retrain(str(root), return_state=True)
    assert state.is_completed()
    assert [(outcome.stage, outcome.result) for outcome in state.result()] == [("register", "ran")]


@pytest.mark.usefixtures("prefect_api")
def test_a_pipeline_that_dvc_cannot_read_is_reported_with_dvcs_message(repository):
    root = repository(gather=("pass", [], []))
    (root / "dvc.yaml").write_text("stages: {gather: {deps: [a]}}")
    state = retrain(str(root), return_state=True)
    assert state.is_failed()
    assert "dvc.yaml" in state.message


@pytest.mark.usefixtures("prefect_api")
def test_environment_errors_are_retried_and_data_errors_are_not(repository):
    root = repository(
        fetch=(
            tries("fetch")
            + "open('data.txt', 'w')\nimport sys; sys.exit(75 if len(open('fetch.tries').read()) < 2 else 0)",
            [],
            ["data.txt"],
        ),
        check=(tries("check") + "import sys; print('row 7: unknown mode'); sys.exit(2)", ["data.txt"], []),
    )
    state = retrain(str(root), retries=2, retry_delay_seconds=0, return_state=True)
    assert state.is_failed()
    assert "stage check failed (dvc 255, its command 2)" in state.message
    assert "row 7: unknown mode" in state.message
    assert (root / "fetch.tries").read_text() == "xx"
    assert (root / "check.tries").read_text() == "x"


def test_a_killed_stage_is_retried(repository):
    root = repository(train=("import os; os.kill(os.getpid(), 9)", [], []))
    with pytest.raises(InfrastructureError):
        run_stage("train", root, print)


SLEEPER = "import os, time\nprint('pid', os.getpid(), flush=True)\nwhile True: time.sleep(0.05)"


def pid_in(line: str) -> int | None:
    """Return the process id that a line of SLEEPER's output holds."""
    return int(line.split()[1]) if line.startswith("pid ") else None


def test_a_stage_that_is_canceled_leaves_no_process_behind(repository):
    root = repository(train=(SLEEPER, [], []))
    started = []

    def cancel_when_started(line):
        if pid := pid_in(line):
            started.append(pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("train", root, cancel_when_started)
    wait_for_end(started[0])


@pytest.mark.parametrize("victim", [os.getpgid, os.getsid], ids=["dvc", "session"])
def test_a_kill_of_dvc_or_of_its_session_leaves_no_stage_running(repository, victim):
    root = repository(train=(SLEEPER, [], []))
    started = []

    def kill(line):
        if pid := pid_in(line):
            started.append(pid)
            os.kill(victim(pid), signal.SIGKILL)

    with pytest.raises(InfrastructureError):
        run_stage("train", root, kill)
    wait_for_end(started[0])


@pytest.mark.parametrize("dvc_dies_first", [False, True], ids=["flow", "dvc and flow at the same time"])
def test_a_kill_of_the_flow_leaves_no_stage_running(repository, dvc_dies_first):
    root = repository(train=(SLEEPER, [], []))
    code = "from flows.retrain import Path, run_stage; run_stage('train', Path(), lambda line: print(line, flush=True))"
    flow = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=-1, text=True
    )
    started = next(pid for line in flow.stdout if (pid := pid_in(line)))
    if dvc_dies_first:
        dvc = os.getpgid(started)
        flow.send_signal(signal.SIGSTOP)  # the session process cannot notice that dvc has died
        os.kill(dvc, signal.SIGKILL)
        until(lambda: is_gone(dvc), "the end of dvc")
    flow.kill()
    wait_for_end(started)
    flow.wait()
    flow.stdout.close()


@pytest.mark.usefixtures("prefect_api")
def test_a_registry_that_is_down_fails_only_the_register_stage(prepared, tmp_path, monkeypatch):
    checkout = prepared.copy(tmp_path / "line")
    address = f"http://127.0.0.1:{free_port()}"
    checkout.set_param("register", tracking_uri=address)
    flow = "from flows.retrain import retrain, run, run_here; run(lambda: run_here(retrain, '.', retries=0))"
    down = checkout.run(sys.executable, "-c", flow)
    assert down.returncode == 75, down.stderr
    assert f"{address}: no MLflow server answers" in down.stderr
    assert "Traceback" not in down.stderr

    monkeypatch.setenv("MLFLOW_PORT", str(free_port()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project_database(checkout.root)}")
    assert report_page(checkout.root) == "", "nothing is registered yet"
    with running(commands(checkout.root)["MLflow"], tmp_path / "server.log", "/health") as uri:
        done = checkout.must(sys.executable, "-c", flow, MLFLOW_TRACKING_URI=uri)
        assert re.findall(r"(\w+) +ran ", done) == ["register"]
        registered = MlflowClient(uri, uri).get_model_version_by_alias("pin-inspector", "challenger")
        version = registered.version

        (link,) = re.findall(r"^\[Evaluation report\]\((http.*)\)$", latest_artifact("report"))
        assert link.startswith(f"{uri}/#/experiments/")
        assert f"/runs/{registered.run_id}/artifacts/reports/report.html" in link
        shown = f"{uri}/get-artifact?run_uuid={registered.run_id}&path=reports/report.html"
        assert requests.get(shown, timeout=SECONDS).content == (checkout.root / REPORT).read_bytes()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.goto(link)
            headline = page.frame_locator("iframe").locator("h1")
            assert headline.inner_text(timeout=1000 * SECONDS).startswith("Evaluation of adapter ")
            browser.close()
        assert report_page(checkout.root) == link, "`make server` shows the registry in the project's file"
        image = next((checkout.root / "data/captures/images").iterdir())
        done = checkout.run("pinspect", "inspect", "--json", str(image), MLFLOW_TRACKING_URI=uri)
        inspected = json.loads(done.stdout)
        assert (inspected["error"], inspected["model_version"]) == (None, str(version)), done.stderr
    assert report_page(checkout.root) == "", "no server runs any more"


@pytest.mark.usefixtures("prefect_api")
def test_two_runs_never_work_in_one_checkout(repository):
    root = repository(gather=("pass", [], []))
    refused = pytest.raises(CheckoutBusyError, match="another run works in this checkout")
    with one_per_checkout(root), refused, one_per_checkout(root):
        pass
    with one_per_checkout(root):
        state = retrain(str(root), return_state=True)
    assert state.is_cancelled()
    assert "another run works in this checkout" in state.message
    assert retrain(str(root), return_state=True).is_completed()


def test_a_folder_that_is_not_a_project_is_named_and_left_alone(tmp_path):
    with pytest.raises(CheckoutError, match="not a DVC project"), one_per_checkout(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_flows_run_the_code_of_their_checkout_quiet_and_offline_unless_the_user_chose_otherwise(tmp_path):
    chosen = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "0"}
    code = "import flows, pinspect, os, json; print(json.dumps([dict(os.environ), pinspect.__file__]))"
    shutil.copytree(PROJECT / "flows", tmp_path / "flows")
    shutil.copytree(PROJECT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=chosen, capture_output=True, check=True)
    variables, file = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert {name: variables[name] for name in environment.SETTINGS} == environment.SETTINGS | {"HF_HUB_OFFLINE": "0"}


def latest_artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    newest = max((each for each in artifacts if each["key"] == key), key=lambda each: each["created"])
    return newest["data"]


def wait_for_end(pid: int) -> None:
    until(lambda: is_gone(pid), f"the end of process {pid}")
