"""A real S3 server on loopback for tests, and what a checkout needs to use it."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.checkout import Checkout
from tests.support.mlflow_server import free_port

KEYS = {"AWS_ACCESS_KEY_ID": "line", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
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


def add_remote(checkout: Checkout, s3: str) -> None:
    """Let a checkout keep its data on the server, as docs/operations.md shows."""
    checkout.must("dvc", "remote", "add", "--default", "storage", "s3://pinspect/line")
    checkout.must("dvc", "remote", "modify", "storage", "endpointurl", s3)
