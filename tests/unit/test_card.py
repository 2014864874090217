"""Model cards of adapters and exports, and the upload of an export."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard, constants

from pinspect.cli.export import push
from pinspect.core.errors import ModelError
from pinspect.model.card import scored_card, write_adapter_card

TRAINING = {
    "family": "qwen3-vl-2b",
    "revision": "a" * 40,
    "base_sha256": "b" * 64,
    "start_sha256": "",
    "rows": 60,
    "steps": 12,
    "kept_step": 8,
    "trainable_parameters": 4315,
    "validation_loss": 0.25,
    "params": {"rank": 16, "alpha": 32, "learning_rate": 0.0015, "batch_size": 24, "seed": 3},
}
SCORES = {"zero_shot.exact_match": 0.98, "zero_shot.escape_rate": 0.04, "one_shot.exact_match": 0.96}


def card_of(folder, base) -> str:
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps(TRAINING))
    write_adapter_card(folder, "c" * 32 + ".dir", base)
    return (folder / "README.md").read_text()


def test_the_card_of_an_adapter_names_base_and_data_and_is_the_same_each_time(tmp_path):
    first, second = (card_of(tmp_path / name, "Qwen/Qwen3-VL-2B-Instruct") for name in ("first", "second"))
    assert first == second
    data = ModelCard(first).data
    assert (data.base_model, data.library_name) == ("Qwen/Qwen3-VL-2B-Instruct", "peft")
    for fact in ("b" * 64, "c" * 32 + ".dir", "a" * 40, "12, weights of step 8"):
        assert fact in first
    assert "models/base" not in (local := card_of(tmp_path / "local", None))
    assert ModelCard(local).data.base_model is None


@pytest.mark.parametrize("bare", [False, True], ids=["card", "no card"])
def test_the_card_of_an_export_has_the_scores_as_results_of_the_hub(bare, tmp_path):
    card = "" if bare else card_of(tmp_path / "adapter", "Qwen/Qwen3-VL-2B-Instruct")
    scored = ModelCard(scored_card(card, "pin-inspector version 3", SCORES, {"test_set_digest": "d" * 64}))
    results = {(result.dataset_config, result.metric_type): result for result in scored.data.eval_results}
    assert {f"{shot}.{metric}": result.metric_value for (shot, metric), result in results.items()} == SCORES
    assert {result.dataset_revision for result in results.values()} == {"d" * 64}
    assert scored.data.model_name == "pin-inspector version 3"
    assert scored.data.library_name == "transformers"
    assert scored.data.base_model == (None if bare else "Qwen/Qwen3-VL-2B-Instruct")
    assert ("weights of step 8" in scored.text) is not bare


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine that answers as the hub does to a repository of small files; it keeps what it gets."""
    requests: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            requests[self.path] = body = self.rfile.read(size) if size else _chunks(self.rfile)
            files = json.loads(body)["files"] if self.path.endswith("/preupload/main") else []
            answers = {
                "/api/repos/create": {"url": f"{address}/company/pins"},
                "/api/validate-yaml": {"errors": [], "warnings": []},
                "/api/models/company/pins/preupload/main": {
                    "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
                },
                "/api/models/company/pins/commit/main": {
                    "commitUrl": f"{address}/company/pins/commit/{'e' * 40}",
                    "commitOid": "e" * 40,
                },
            }
            answer = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield requests
    server.shutdown()
    server.server_close()


def _chunks(stream) -> bytes:
    body = b""
    while size := int(stream.readline(), 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body


def test_a_push_uploads_every_file_to_a_private_repository(hub, tmp_path):
    contents = {"README.md": card_of(tmp_path / "export", None), "config.json": "{}"}
    (tmp_path / "export/config.json").write_text("{}")
    (tmp_path / "export/training.json").unlink()
    assert push(tmp_path / "export", "company/pins").endswith(f"/company/pins/commit/{'e' * 40}")
    assert json.loads(hub["/api/repos/create"])["visibility"] == "private"
    lines = [json.loads(line) for line in hub["/api/models/company/pins/commit/main"].splitlines()]
    uploaded = [line["value"] for line in lines if line["key"] == "file"]
    assert {file["path"]: base64.b64decode(file["content"]).decode() for file in uploaded} == contents


def test_a_push_without_network_access_or_to_a_closed_port_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE=0 hf upload company/pins"):
        push(tmp_path, "company/pins")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="did not take it") as error:
        push(tmp_path, "company/pins")
    assert "\n" not in str(error.value)
