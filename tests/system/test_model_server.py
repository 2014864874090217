"""A registered adapter and servers: MLflow's registry over HTTP, and the packed model in MLflow's model server."""

import base64
import json
import os
import sys
import tempfile

import pytest
import requests

from pinspect.core.answers import FIELDS
from pinspect.core.errors import RegistryUnreachableError
from pinspect.core.params import load_params
from pinspect.core.runs import read_run_facts
from pinspect.registry.connection import open_registry
from pinspect.registry.leaderboard import leaderboard
from pinspect.registry.promotion import promote
from pinspect.registry.settings import load_registry_settings
from pinspect.registry.start import fetch_start
from pinspect.registry.versions import load_registered
from tests.support.evaluated_project import run_stage
from tests.support.mlflow_server import free_port, running

NAME = "pin-inspector"


@pytest.fixture(scope="module")
def registered(project, mlflow_server):
    """The project, its adapter registered on a server. Gives (project, uri)."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        run_stage("register", project)
        yield project, mlflow_server


def test_a_team_registers_promotes_and_inspects_by_a_server(registered, tmp_path_factory, monkeypatch):
    project, uri = registered
    temporary = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    params, settings = load_params(project / "params.yaml"), load_registry_settings(project)
    assert read_run_facts(project, "register")["registry"] == uri
    (line,) = leaderboard(project, settings.register)
    assert (line["version"], line["aliases"]) == ("1", ["challenger"])
    # The adapter of two steps does not meet the bounds, as the answers stored on the server show.
    decision = promote(project, params, settings)
    assert not decision.promoted
    with open_registry(project, settings.register) as client:
        assert json.loads(client.get_model_version(NAME, "1").tags["promotion"]) == decision.to_dict()
    inspector = load_registered(project, settings.register)
    assert inspector(next((project / "data/captures/images").iterdir())).model_version == "1"
    assert fetch_start(project, settings.register, "1") == f"{NAME}/1"
    (copy,) = temporary.iterdir()
    assert (copy / "MLmodel").is_file()
    inspector.close()
    assert list(temporary.iterdir()) == []


def test_mlflow_serves_the_packed_model_offline(registered, tmp_path):
    _, uri = registered
    image = next((registered[0] / "data/captures/images").iterdir())
    encoded = base64.b64encode(image.read_bytes()).decode()
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@challenger"),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(free_port())),
    ]
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    with running(command, tmp_path / "serve.log", "/ping") as served:
        payload = {
            "dataframe_split": {"columns": ["inspected", "reference"], "data": [[encoded, encoded], ["x", None]]}
        }
        predictions = requests.post(f"{served}/invocations", json=payload, timeout=120).json()["predictions"]
    contract = load_params(registered[0] / "params.yaml").contract()
    assert contract.parse(predictions[0]["answer"]).values() == {name: predictions[0][name] for name in FIELDS}
    assert predictions[0]["error"] is None
    assert predictions[1]["answer"] is None
    assert "expected the path of an image file, or its bytes as base64" in predictions[1]["error"]


def test_a_server_that_is_down_is_reported_in_one_line_with_the_next_step(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    before = (project / "reports/registration.json").read_bytes()
    with pytest.raises(RegistryUnreachableError, match=r"no MLflow server answers.*only this stage is left") as caught:
        run_stage("register", project)
    assert caught.value.exit_code == 75
    assert "\n" not in str(caught.value)
    assert (project / "reports/registration.json").read_bytes() == before
