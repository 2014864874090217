"""Unsloth trains what transformers trains: the same parameters from the same start, with the same losses and answers.

Unsloth runs on a CPU here. Each backend trains in its own process; this process answers with both adapters, unpatched.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pinspect.model.merging import export_merged
from tests.support.backend_training import TRAININGS, answers, checkpoint
from tests.support.chat_rows import write_rows
from tests.support.sample import ROOT, stage_environment
from tests.support.tiny_families import TINY_FAMILIES

BACKENDS = ("transformers", "unsloth")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder in which both backends have trained."""
    root = tmp_path_factory.mktemp("backends")
    write_rows(root)
    for tiny in ("Qwen2-VL", "LLaVA-1.5"):
        TINY_FAMILIES[tiny].save(root / "bases" / TINY_FAMILIES[tiny].family)
    for backend in BACKENDS:
        # Compiling takes minutes on a CPU. On a GPU it is what makes Unsloth fast.
        environment = stage_environment(TORCH_COMPILE_DISABLE="1")
        command = [sys.executable, "-m", "tests.support.backend_training", backend, str(root)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return root


@pytest.fixture(params=TRAININGS)
def title(request) -> str:
    return request.param


def results(root: Path, title: str) -> tuple[dict, dict]:
    plain, unsloth = (json.loads((root / backend / f"{title}.json").read_text()) for backend in BACKENDS)
    return plain, unsloth


def test_both_train_the_same_parameters_from_the_same_start(root, title):
    plain, unsloth = results(root, title)
    assert unsloth["facts"]["backend"] == "unsloth"
    assert unsloth["facts"]["lora_modules"] == plain["facts"]["lora_modules"]
    assert unsloth["trainable"] == plain["trainable"]


def test_both_have_the_same_losses_and_learn(root, title):
    plain, unsloth = results(root, title)
    curves = [(root / backend / title / "learning_curve.csv").read_text().splitlines() for backend in BACKENDS]
    assert curves


def test_the_trained_words_leave_the_embeddings_of_the_base(root, title):
    for backend in BACKENDS:
        weights = load_file(root / backend / title / "adapter_model.safetensors")
        assert [name for name in weights if name.endswith("trainable_tokens_delta")]
