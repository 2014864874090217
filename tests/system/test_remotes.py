"""Storage elsewhere, with a real S3 server on loopback."""

import json
import subprocess

from tests.support.checkout import Checkout
from tests.support.s3 import KEYS, add_remote
from tests.support.sample import contents


def test_data_and_adapter_come_back_from_an_s3_remote_into_a_fresh_clone(s3, prepared, tmp_path):
    here = prepared.copy(tmp_path / "here")
    add_remote(here, s3)
    here.commit()
    here.must("dvc", "push", **KEYS)

    subprocess.run(["git", "clone", "--quiet", str(here.root), str(tmp_path / "there")], check=True)
    there = Checkout(tmp_path / "there")
    there.must("dvc", "pull", **KEYS)
    for made in ("data/raw", "data/chat", "models/adapter", "reports/eval"):
        assert contents(there.root / made) == contents(here.root / made)
    # What is left is the registration: each checkout has its own registry, unless a team's server is named.
    assert list(json.loads(there.must("dvc", "status", "--json", **KEYS))) == ["register"]
