"""Several machines, one registry: two checkouts and a worker without one, as docs/machines.md shows them.

Prefect, MLflow and S3 are real servers on loopback, `origin` is a bare git repository, the worker has its own home.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.deployments import run_deployment

from flows.retrain import retrain
from pinspect.core.digests import adapter_sha256
from pinspect.registry.lineage import LINEAGE_TAG
from pinspect.registry.versions import ADAPTER_TAG
from tests.support.checkout import Checkout, captures
from tests.support.flow_stack import working
from tests.support.mlflow_server import free_port
from tests.support.s3 import KEYS, add_remote
from tests.support.sample import ROOT, drop
from tests.support.waiting import SECONDS

NAME, DEPLOYMENT, POOL, FILE = "pin-inspector", "retrain/elsewhere", "pinspect-elsewhere", "prefect-elsewhere.yaml"
LENIENT = {
    "minimum_defective": 1,
    "maximum_escape_rate": 1.0,
    "maximum_overkill_rate": 1.0,
    "required_controls": [],
    "significance": 0.000001,
}


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """The team's git repository; module tests set the keys of the S3 server."""
    path = tmp_path_factory.mktemp("git") / "line.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(path)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield path


@pytest.fixture(scope="module")
def first(prepared, origin, s3, mlflow_server, tmp_path_factory) -> Checkout:
    """The checkout of somebody who adds captures. It has registered version 1."""
    checkout = prepared.copy(tmp_path_factory.mktemp("first") / "line")
    checkout.set_param("register", tracking_uri=mlflow_server)
    checkout.set_param("promote", **LENIENT)
    shutil.copy(ROOT / FILE, checkout.root)
    add_remote(checkout, s3)
    checkout.must("dvc", "add", "data/captures/images")
    checkout.must("dvc", "repro")
    checkout.commit()
    checkout.must("git", "remote", "add", "origin", f"file://{origin}")
    checkout.must("dvc", "push")
    checkout.must("git", "push", "--quiet", "--set-upstream", "origin", "HEAD")
    return checkout


@pytest.fixture(scope="module")
def home(first, prefect_api, tmp_path_factory) -> Path:
    """The home of a worker's user, empty when the worker starts."""
    pool = ("--type", "process", "--overwrite", "--base-job-template", "flows/job_template.json")
    first.must("prefect", "work-pool", "create", POOL, *pool)
    first.must("prefect", "--no-prompt", "deploy", "--prefect-file", FILE, "--all")
    folder = tmp_path_factory.mktemp("worker")
    command = ("prefect", "worker", "start", "--pool", POOL)
    with working(Checkout(folder), folder.parent / f"{folder.name}.log", command, HOME=str(folder)):
        yield folder


@pytest.fixture(scope="module")
def result(first, home):
    """The run after the first checkout has added three captures: its state, and the name of the experiment."""
    drop(first.root / "incoming", captures()[11:14])
    first.must("pinspect", "add", "incoming")
    shutil.rmtree(first.root / "incoming")
    share(first)
    state = run_deployment(DEPLOYMENT, timeout=SECONDS).state
    assert state.name == "Completed", state.message
    return state, re.search(r"Result: experiment (elsewhere-[-0-9a-f]+)\.$", state.message)[1]


@pytest.fixture(scope="module")
def second(result, origin, tmp_path_factory) -> Checkout:
    """A colleague's checkout, on another path, of the state before the result."""
    root = tmp_path_factory.mktemp("second") / "another name"
    subprocess.run(["git", "clone", "--quiet", f"file://{origin}", str(root)], check=True)
    return Checkout(root)


@pytest.fixture
def client(mlflow_server) -> MlflowClient:
    return MlflowClient(mlflow_server, mlflow_server)


def share(checkout: Checkout) -> None:
    """Commit and push, data first."""
    checkout.commit()
    checkout.must("dvc", "push")
    checkout.must("git", "push", "--quiet")


def aliases(checkout: Checkout) -> dict:
    status = json.loads(checkout.must("pinspect", "status", "--json"))
    assert status["registry_error"] is None
    return status["aliases"]


def inspection(checkout: Checkout, *options: str) -> dict:
    image = min((checkout.root / "data/captures/images").iterdir())
    done = checkout.run("pinspect", "inspect", "--json", *options, str(image))
    record = json.loads(done.stdout)
    assert record["error"] is None, done.stderr
    return record


def experiments(repository: Path) -> dict[str, str]:
    """Return name -> commit."""
    listed = ["git", "for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/exps"]
    done = subprocess.run(listed, cwd=repository, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


def test_a_worker_without_a_checkout_retrains_and_the_first_checkout_gets_the_result(result, first, origin, client):
    _, name = result
    version = client.get_model_version_by_alias(NAME, "challenger")
    assert version.version == "2"
    assert version.tags[LINEAGE_TAG] == experiments(origin)[name]
    assert adapter_sha256(first.root / "models/adapter") != version.tags[ADAPTER_TAG]

    first.must("dvc", "exp", "pull", "origin", name)
    first.must("dvc", "exp", "apply", name)
    first.must("dvc", "pull")
    assert adapter_sha256(first.root / "models/adapter") == version.tags[ADAPTER_TAG]
    assert [line for line in first.stale().splitlines() if not line.startswith("\t")] == ["register:"]
    first.must("dvc", "repro")
    assert first.stale() == ""
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2, "registering it again made no version"
    assert inspection(first, "--alias", "challenger")["model_version"] == "2"
    assert len((first.root / "data/splits.csv").read_text().splitlines()) == 1 + 14


def test_two_checkouts_on_different_paths_share_a_registry(result, first, second, client, tmp_path):
    """Nothing that a command answers depends on where the version was registered: here, on a path that is gone."""
    second.must("dvc", "pull")
    second.must("dvc", "repro", "--single-item", "register")  # of the state before the result: version 1
    assert aliases(second) == {"champion": None, "challenger": "2", "previous": None}
    second.must("pinspect", "promote")
    assert aliases(first) == aliases(second) == {"champion": "2", "challenger": None, "previous": None}
    assert inspection(first)["model_version"] == inspection(second)["model_version"] == "2"
    first.must("pinspect", "rollback", "--to", "1", "--why", "a test")
    assert aliases(second)["champion"] == "1"
    assert inspection(second)["model_version"] == "1"

    second.must("dvc", "exp", "pull", "origin", result[1])
    second.must("pinspect", "reproduce", "2", str(tmp_path / "again"))
    tags = client.get_model_version(NAME, "2").tags
    assert adapter_sha256(tmp_path / "again/models/adapter") == tags[ADAPTER_TAG]

    versions = client.search_model_versions(f"name = '{NAME}'")
    runs = [client.get_run(version.run_id) for version in versions]
    assert all(run.info.artifact_uri.startswith("mlflow-artifacts:") for run in runs)
    written = json.dumps([[each.tags for each in versions], [[run.data.tags, run.data.params] for run in runs]])
    assert not [root for root in (first.root, second.root) if str(root) in written]


def test_a_result_whose_push_is_refused_is_kept_and_the_next_run_pushes_it(first, home, origin, client):
    first.set_param("report", bootstrap_samples=120)
    share(first)
    hook = origin / "hooks/update"
    hook.write_text('#!/bin/sh\ncase $1 in refs/exps/*) echo "not now"; exit 1;; esac\n')
    hook.chmod(0o755)
    before = experiments(origin)
    state = run_deployment(DEPLOYMENT, parameters={"retries": 0}, timeout=SECONDS).state
    assert state.name == "Failed"
    kept = home / "pinspect" / NAME
    reason = r"git push: ! \[remote rejected\] .* \(hook declined\)"
    assert re.fullmatch(
        rf"{reason}; the result is kept in {kept} on .*, and the next run there pushes it", state.message
    )
    assert experiments(origin) == before
    (name,) = waiting = experiments(kept / "results.git")

    hook.unlink()
    state = run_deployment(DEPLOYMENT, parameters={"retries": 0}, timeout=SECONDS).state
    assert (state.name, state.message) == ("Skipped", f"Nothing has changed since {name}.")
    assert experiments(origin) == before | waiting
    assert experiments(kept / "results.git") == {}
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("keys", r"dvc pull: failed to connect to s3 .* Unable to locate credentials"),
        ("s3", r"dvc pull: failed to connect to s3 .* Could not connect to the endpoint URL.*"),
        ("git", r"git fetch: fatal: .* does not appear to be a git repository"),
        ("registry", r"versions would be lost with the clone; set register\.tracking_uri .*"),
    ],
)
def test_a_run_that_cannot_get_its_data_fails_with_one_line(problem, message, first, origin, tmp_path, monkeypatch):
    clone = Checkout(tmp_path / "clone")
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{origin}", str(clone.root)], check=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # where there is no such service, it is waited for
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if problem == "keys":
        for name in KEYS:
            monkeypatch.delenv(name)
    elif problem == "s3":
        address = f"http://127.0.0.1:{free_port()}"
        clone.must("dvc", "remote", "modify", "--local", "storage", "endpointurl", address)
    elif problem == "git":
        clone.must("git", "remote", "set-url", "origin", str(tmp_path / "gone.git"))
    else:
        clone.set_param("register", tracking_uri="")
    state = retrain(str(clone.root), retries=0, keep="~/kept", return_state=True)
    assert state.name == "Failed"
    assert re.fullmatch(message, state.message)
