"""A merged adapter is an ordinary checkpoint and gives the answers of the adapter."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from pinspect.chat.dataset import build_chat, write_chat
from pinspect.cli.export import export_version
from pinspect.cli.main import app
from pinspect.core.digests import dvc_directory_hash
from pinspect.core.errors import ModelError, RegistryError
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.inspection import registered_model as pyfunc_model
from pinspect.model.adapter import train_adapter
from pinspect.model.families import Checkpoint, checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import load_inspector
from pinspect.model.merging import export_merged
from pinspect.registry.connection import experiment_id, open_registry
from pinspect.registry.settings import load_register_settings
from tests.support import chat_line
from tests.support.sample import ROOT


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Checkpoint]:
    """A project with a small line and an adapter of some steps on the shipped base, and that base."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_line, "CELL", 64)
        chat_line.make_line(root, inspected=8)
    content = yaml.safe_load((root / "params.yaml").read_text())
    content["model"]["checkpoint"] = str(ROOT / "models/base")
    content["train"] |= {"batch_size": 4, "maximum_steps": 5, "rank": 4, "learning_rate": 0.01}
    (root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    params = load_params(root / "params.yaml")
    base, data = checkpoint_of(params.model), root / "data"
    stages = (data / "raw", data / "dst", data / "composited")
    write_chat(build_chat(*stages, params.contract(), params.chat), data / "chat")
    train_adapter(params, base, data / "chat", data / "composited", root / "models/adapter", root / "work")
    return root, base


def answers(root: Path, base: Checkpoint, adapter: Path | None = None) -> list:
    params, data = load_params(root / "params.yaml"), root / "data"
    rows = read_chat(data / "chat/test.jsonl")[:3]
    inspector = load_inspector(base, adapter)
    return answer_rows(inspector, rows, data / "composited", params.contract(), batch_size=3)


def test_an_export_answers_as_its_adapter_does(trained, tmp_path):
    root, base = trained
    adapted, bare = answers(root, base, root / "models/adapter"), answers(root, base)
    merged = answers(root, base.at(export_merged(base, root / "models/adapter", tmp_path / "merged")))
    assert [answer.text for answer in merged] == [answer.text for answer in adapted]
    scores = np.array([[answer.p_defective for answer in group] for group in (merged, adapted, bare)])
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert np.abs(scores[1] - scores[2]).max() > 1e-3, "the adapter must change the base's answers"


def test_an_export_is_a_whole_checkpoint_for_transformers_alone(trained, tmp_path):
    root, base = trained
    out = export_merged(base, root / "models/adapter", tmp_path / "merged")
    names = {path.name for path in base.folder.iterdir() if path.is_file()}
    assert names <= {path.name for path in out.iterdir()}
    model, loading = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert next(model.parameters()).dtype == torch.float32
    assert json.loads((out / "pinspect.json").read_text())["family"] == "pinspect"


def test_an_export_overwrites_nothing(trained, tmp_path):
    root, base = trained
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match="the folder is not empty; choose a new folder"):
        export_merged(base, root / "models/adapter", tmp_path)


def test_a_registered_version_is_exported_by_its_alias_or_number(trained, tmp_path, monkeypatch):
    root, base = trained
    shutil.copy(ROOT / "settings.yaml", root)
    settings = load_register_settings(root)
    packed = {"adapter": root / "models/adapter", "base": base.folder, "params": root / "params.yaml"}
    with open_registry(root, settings) as client, mlflow.start_run(experiment_id=experiment_id(client, root, settings)):
        model = mlflow.pyfunc.log_model(
            name="inspector",
            python_model=pyfunc_model.__file__,
            artifacts={name: str(path) for name, path in packed.items()},
            signature=pyfunc_model.signature(),
            pip_requirements=[],
        )
        client.create_registered_model(settings.model_name)
        version = client.create_model_version(settings.model_name, model.model_uri)
        client.set_registered_model_alias(settings.model_name, "champion", str(version.version))
    monkeypatch.chdir(root)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "by-alias")])
    assert done.exception is None, repr(done.exception)
    assert (done.exit_code, done.output) == (0, f"version 1 merged into {tmp_path / 'by-alias'}\n")
    export_version(root, settings, "1", tmp_path / "by-number")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("by-alias", "by-number")]
    card = ModelCard.load(tmp_path / "by-alias/README.md")
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)
    assert dvc_directory_hash(root / "data/chat") in card.text
    assert weights[0] == weights[1] != (base.folder / "model.safetensors").read_bytes()
    with pytest.raises(RegistryError, match="no version 7 of"):
        export_version(root, settings, "7", tmp_path / "none")
