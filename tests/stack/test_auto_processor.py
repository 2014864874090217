"""transformers alone opens the default base and an export, and builds the same model inputs as pinspect."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model

from pinspect.core.rows import read_chat
from pinspect.model.families import FAMILIES, Checkpoint
from pinspect.model.loading import load_base, load_processor
from pinspect.model.merging import export_merged
from pinspect.model.rows import RowEncoder
from tests.support.sample import ROOT

BASE = Checkpoint(FAMILIES["pinspect"], "models/base", ROOT / "models/base")
ALONE = """
import sys
import numpy as np
from datasets import load_dataset
from transformers import AutoProcessor
folder, dataset, out = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
row = load_dataset(dataset, "default", split="test")[2]
text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text], images=[row["images"]], return_tensors="np")
assert not [name for name in sys.modules if name.partition(".")[0] == "pinspect"]
np.savez(out, name=type(processor).__name__, **inputs)
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """An untrained adapter merged into the base."""
    folder = tmp_path_factory.mktemp("merged")
    model, _ = load_base(BASE)
    get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
    return export_merged(BASE, folder / "adapter", folder / "export")


@pytest.mark.parametrize("kind", ["base", "export"])
def test_a_process_without_pinspect_builds_the_same_inputs(kind, chat_project, export, tmp_path):
    folder = {"base": BASE.folder, "export": export}[kind]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-c", ALONE, folder, chat_project / "dataset", tmp_path / "inputs.npz"]
    subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, env=environment)
    alone = np.load(tmp_path / "inputs.npz")
    encoder = RowEncoder(load_processor(BASE), chat_project / "data/composited")
    ours = encoder.batch([read_chat(chat_project / "data/chat/test.jsonl")[2]], answers=False)
    assert str(alone["name"]) == "Qwen3VLProcessor"
    assert alone["input_ids"].tolist() == ours["input_ids"].tolist()
    assert alone["image_grid_thw"].tolist() == ours["image_grid_thw"].tolist()
    np.testing.assert_allclose(alone["pixel_values"], ours["pixel_values"].numpy(), atol=1e-5)
