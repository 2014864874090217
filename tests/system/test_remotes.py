"""Storage and tracking elsewhere, with real parts: an S3 server and an MLflow server on loopback."""

import json
import subprocess
import sys

import boto3
import pytest
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from tests.support.checkout import Checkout
from tests.support.mlflow_server import free_port, running_server
from tests.support.sample import contents

KEYS = {"AWS_ACCESS_KEY_ID": "line", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3():
    """The address of an S3 server with the bucket `pinspect`."""
    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    credentials = {
        "aws_access_key_id": KEYS["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": KEYS["AWS_SECRET_ACCESS_KEY"],
    }
    boto3.client("s3", endpoint_url=address, region_name=KEYS["AWS_DEFAULT_REGION"], **credentials).create_bucket(
        Bucket="pinspect"
    )
    yield address
    server.stop()


def test_data_and_adapter_come_back_from_an_s3_remote_into_a_fresh_clone(s3, prepared, tmp_path):
    here = prepared.copy(tmp_path / "here")
    here.must("dvc", "remote", "add", "--default", "storage", "s3://pinspect/line")
    here.must("dvc", "remote", "modify", "storage", "endpointurl", s3)
    here.must("git", "add", "--all")
    here.must("git", "-c", "user.name=line", "-c", "user.email=line@example.com", "commit", "--quiet", "-m", "trained")
    here.must("dvc", "push", **KEYS)

    subprocess.run(["git", "clone", "--quiet", str(here.root), str(tmp_path / "there")], check=True)
    there = Checkout(tmp_path / "there")
    there.must("dvc", "pull", **KEYS)
    for made in ("data/raw", "data/chat", "models/adapter", "reports/eval"):
        assert contents(there.root / made) == contents(here.root / made)
    # What is left is the registration: each checkout has its own registry, unless a team's server is named.
    assert list(json.loads(there.must("dvc", "status", "--json", **KEYS))) == ["register"]


@pytest.mark.usefixtures("prefect_api")
def test_a_registry_that_is_down_fails_only_the_register_stage(prepared, tmp_path):
    checkout = prepared.copy(tmp_path / "line")
    address = f"http://127.0.0.1:{free_port()}"
    checkout.set_param("register", tracking_uri=address)
    flow = "from flows.retrain import retrain, run, run_here; run(lambda: run_here(retrain, '.', retries=0))"
    down = checkout.run(sys.executable, "-c", flow)
    assert down.returncode == 75, down.stderr
    assert f"{address}: no MLflow server answers" in down.stderr
    assert "Traceback" not in down.stderr

    with running_server(tmp_path) as uri:
        assert running_stages(checkout.must("dvc", "repro", MLFLOW_TRACKING_URI=uri)) == ["register"]
        version = MlflowClient(uri, uri).get_model_version_by_alias("pin-inspector", "challenger").version
        image = next((checkout.root / "data/captures/images").iterdir())
        done = checkout.run("pinspect", "inspect", "--json", str(image), MLFLOW_TRACKING_URI=uri)
        inspected = json.loads(done.stdout)
        assert (inspected["error"], inspected["model_version"]) == (None, str(version)), done.stderr


def running_stages(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]
