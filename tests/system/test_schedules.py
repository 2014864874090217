"""The deployments of prefect.yaml on a real server and a real worker, which run the pipeline's own stages."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import yaml
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.deployments import run_deployment
from prefect.states import Cancelling

from flows.automations import ensure_automations
from flows.promotion import promote, rollback
from pinspect.core.digests import adapter_sha256
from pinspect.registry.lineage import LINEAGE_TAG
from pinspect.registry.versions import ADAPTER_TAG
from tests.support.checkout import Checkout, captures
from tests.support.flow_stack import final_state, heartbeats
from tests.support.sample import ROOT, drop, read_labels
from tests.support.waiting import SECONDS, until

SILENCE = 40  # seconds; a heartbeat is sent every 30 s
DIES = """
import time
from prefect import flow

@flow
def sleeps():
    time.sleep(600)
sleeps()
"""


@pytest.fixture(scope="module")
def client(prefect_api):
    with get_client(sync_client=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def up_to_date(deployed, scheduled_run):
    """The deployed checkout, after its first run."""
    assert scheduled_run.state.name == "Completed", scheduled_run.state.message
    return deployed


@pytest.fixture(scope="module", autouse=True)
def zombie(deployed, client):
    """A run killed after its first heartbeat, and an automation that detects runs without heartbeats."""
    ensure_automations(timedelta(seconds=SILENCE))
    ensure_automations(timedelta(seconds=SILENCE))  # a second call replaces the automations
    process = subprocess.Popen(
        [sys.executable, "-c", DIES], env={**os.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    )
    try:
        run = until(lambda: _run_of(client, "sleeps"), "the run that is to die")
        until(lambda: heartbeats(client, run.id), "its heartbeat")
    finally:
        process.kill()
        process.wait()
    return run.id


def registry(checkout) -> MlflowClient:
    uri = f"sqlite:///{checkout.root}/mlruns/mlflow.db"
    return MlflowClient(uri, uri)  # otherwise MLflow uses the registry that this process used last


def versions(checkout) -> list:
    return registry(checkout).search_model_versions("name = 'pin-inspector'")


def challenger(checkout):
    return registry(checkout).get_model_version_by_alias("pin-inspector", "challenger")


def test_a_schedule_brings_a_project_up_to_date_and_registers_its_version(scheduled_run, deployed, client):
    assert scheduled_run.auto_scheduled
    assert scheduled_run.state.name == "Completed", scheduled_run.state.message
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[scheduled_run.id])))
    order = [task.name for task in sorted(tasks, key=lambda task: task.start_time)]
    assert order == deployed.must("dvc", "stage", "list", "--name-only").split()
    assert scheduled_run.name == f"pin-inspector, {scheduled_run.expected_start_time:%Y-%m-%d %H:%M} UTC"
    assert [version.version for version in versions(deployed)] == [challenger(deployed).version]


def test_a_run_shows_its_stages_its_scores_and_the_report(scheduled_run, deployed, client):
    artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    of_this_run = {
        artifact["key"]: str(artifact["data"])
        for artifact in artifacts
        if artifact["flow_run_id"] == str(scheduled_run.id)
    }
    assert {"stages", "scores", "report", "headline"} <= set(of_this_run)
    assert "zero-shot exact_match" in of_this_run["scores"]
    assert of_this_run["headline"].startswith("data:image/svg+xml;base64,")
    report = deployed.root / "reports/eval/report.html"  # no MLflow server shows this registry, see test_flows.py
    assert of_this_run["report"] == f"Evaluation report: `{report}`"


def test_a_run_that_finds_nothing_changed_ends_as_skipped(up_to_date, client):
    before = [version.version for version in versions(up_to_date)]
    run = run_deployment("retrain/nightly", timeout=SECONDS)
    assert (run.state.type, run.state.name) == ("COMPLETED", "Skipped"), run.state.message
    assert [version.version for version in versions(up_to_date)] == before


def test_captures_in_the_inbox_start_a_run_and_become_a_new_challenger_and_bad_ones_stay(up_to_date, client):
    """The deployment has no schedule here: the worker's event starts the run."""
    inbox = drop(up_to_date.root / "inbox", captures()[11:])
    (inbox / "images" / "camera0_torn_OK.jpg").write_bytes(b"torn")
    first = until(lambda: _runs_of(client, "ingest"), "a run by event")[0]
    until(lambda: final_state(client, first.id), "its end")
    run = client.read_flow_run(first.id)
    assert run.created_by.type == "AUTOMATION"
    assert run.name == f"pin-inspector, 6 files in inbox, {run.expected_start_time:%Y-%m-%d %H:%M} UTC"
    assert run.state.name == "Completed", run.state.message
    assert "5 captures came in; problems left in inbox: 1" in run.state.message
    assert len(read_labels(up_to_date.root / "data/captures")) == 16
    assert [path.name for path in (inbox / "images").iterdir()] == ["camera0_torn_OK.jpg"]
    assert read_labels(inbox) == []
    newest, earlier = versions(up_to_date)
    assert newest.version == challenger(up_to_date).version
    assert newest.tags["dataset_digest"] != earlier.tags["dataset_digest"]


def test_a_version_is_reproduced_with_its_captures_until_it_is_pruned(up_to_date, tmp_path):
    """After the run of the inbox: the first version is not the workspace's any more."""
    newest, earlier = versions(up_to_date)
    up_to_date.must("pinspect", "prune")
    reproduced = up_to_date.must("pinspect", "reproduce", str(earlier.version), str(tmp_path / "again"))
    assert reproduced.startswith(f"version {earlier.version}: commit {earlier.tags[LINEAGE_TAG][:12]}")
    again = Checkout(tmp_path / "again")
    assert len(read_labels(again.root / "data/captures")) == 11
    stale = [line for line in again.stale().splitlines() if not line.startswith("\t")]
    assert stale == ["register:"]  # the new folder has a registry of its own
    assert adapter_sha256(again.root / "models/adapter") == earlier.tags[ADAPTER_TAG]
    up_to_date.set_param("prune", versions=1)
    up_to_date.must("pinspect", "prune")
    assert [version.version for version in versions(up_to_date)] == [newest.version]
    assert earlier.tags[LINEAGE_TAG] not in up_to_date.must("git", "for-each-ref", "refs/exps")
    assert newest.tags[LINEAGE_TAG] in up_to_date.must("git", "for-each-ref", "refs/exps")


def test_a_refused_promotion_names_its_version_and_a_rollback_its_aim(up_to_date, client):
    root, before = str(up_to_date.root), challenger(up_to_date).version
    assert promote(root, return_state=True).name == "Refused"  # there are few captures
    assert rollback(root, to="previous", return_state=True).is_failed()
    (promotion,), (back,) = _runs_of(client, "promote"), _runs_of(client, "rollback")
    assert promotion.name.startswith(f"pin-inspector version {before}, ")
    assert back.name.startswith("pin-inspector to version previous, ")


def test_a_canceled_run_ends_its_stage_at_once(up_to_date, client, tmp_path):
    checkout = up_to_date.copy(tmp_path / "cancelled")
    checkout.set_param("train", seed=41)
    run = run_deployment("retrain/nightly", parameters={"root": str(checkout.root)}, timeout=0)
    until(lambda: any("stages.train" in process.cmdline() for process in checkout.processes()), "the training")
    client.set_flow_run_state(run.id, Cancelling())
    assert until(lambda: final_state(client, run.id), "the end of the run").name == "Cancelled"
    until(lambda: not checkout.processes(), "the end of the stage's processes")


def test_every_deployment_of_prefect_yaml_is_on_the_server_and_runs_one_at_a_time(deployed, client):
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        flow_name = deployment["entrypoint"].split(":")[1]
        on_server = client.read_deployment_by_name(f"{flow_name}/{deployment['name']}")
        assert on_server.parameters == deployment.get("parameters", {})
        assert on_server.global_concurrency_limit.limit == 1
        assert on_server.description == deployment["description"]


def test_a_run_whose_process_died_is_marked_crashed_by_the_server(zombie, client):
    state = until(lambda: final_state(client, zombie), "its end")
    assert (state.name, state.message) == ("Crashed", f"No heartbeat for {SILENCE} s.")


def _run_of(client, flow_name: str):
    return next((run for run in _runs_of(client, flow_name) if run.state.is_running()), None)


def _runs_of(client, flow_name: str) -> list:
    return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])))
