"""Storage elsewhere, with a real S3 server on loopback."""

import json
import subprocess

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.checkout import Checkout
from tests.support.mlflow_server import free_port
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
    here.commit()
    here.must("dvc", "push", **KEYS)

    subprocess.run(["git", "clone", "--quiet", str(here.root), str(tmp_path / "there")], check=True)
    there = Checkout(tmp_path / "there")
    there.must("dvc", "pull", **KEYS)
    for made in ("data/raw", "data/chat", "models/adapter", "reports/eval"):
        assert contents(there.root / made) == contents(here.root / made)
    # What is left is the registration: each checkout has its own registry, unless a team's server is named.
    assert list(json.loads(there.must("dvc", "status", "--json", **KEYS))) == ["register"]
