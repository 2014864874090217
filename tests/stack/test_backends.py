"""Unsloth trains what transformers trains: the same parameters from the same start, with the same losses and answers.

Unsloth runs on a CPU here. Each backend trains in its own process, and the second answers with the adapters of both.
This process answers with Unsloth's adapters, in libraries that Unsloth has not patched.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from pinspect.model.loading import load_base, load_inspector
from pinspect.model.merging import export_merged
from pinspect.registry.registration import requirements
from tests.support.backend_training import TRAININGS, answers, checkpoint, keep_trainable
from tests.support.chat_rows import write_rows
from tests.support.sample import ROOT, stage_environment
from tests.support.tiny_families import TINY_FAMILIES, WIDE

BACKENDS = ("transformers", "unsloth")
WORDS = "trainable_tokens_delta"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder in which both backends have trained."""
    root = tmp_path_factory.mktemp("backends")
    write_rows(root)
    for tiny in (WIDE, TINY_FAMILIES["LLaVA-1.5"]):
        tiny.save(root / "bases" / tiny.family)
    # Compiling takes minutes on a CPU. On a GPU it is what makes Unsloth fast.
    environment = stage_environment(TORCH_COMPILE_DISABLE="1", UNSLOTH_ALLOW_CPU="1")
    for backend in BACKENDS:
        command = [sys.executable, "-m", "tests.support.backend_training", backend, str(root)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    keep_trainable()
    return root


@pytest.fixture(params=TRAININGS)
def title(request) -> str:
    return request.param


def results(root: Path, title: str) -> tuple[dict, dict]:
    """Return what the two backends report about a training."""
    plain, unsloth = (json.loads((root / backend / f"{title}.json").read_text()) for backend in BACKENDS)
    assert (plain["facts"]["backend"], unsloth["facts"]["backend"]) == BACKENDS
    assert set(plain["code"]) <= {"layer.py", "bnb.py"}
    assert set(unsloth["code"]) <= {"Linear_peft_forward.py", "Linear4bit_peft_forward.py"}, "not Unsloth's own code"
    return plain, unsloth


def curve(root: Path, backend: str, title: str) -> np.ndarray:
    return np.genfromtxt(root / backend / title / "learning_curve.csv", delimiter=",", names=True)


def test_both_train_the_same_parameters_from_the_same_start(root, title):
    plain, unsloth = results(root, title)
    assert unsloth["trainable"] == plain["trainable"]
    assert unsloth["facts"]["lora_modules"] == plain["facts"]["lora_modules"]
    assert any("visual" in name or "vision" in name for name in plain["facts"]["lora_modules"])
    assert any("language_model" in name for name in plain["facts"]["lora_modules"])


def test_both_have_the_same_losses_over_five_steps(root, title):
    plain, unsloth = (curve(root, backend, title) for backend in BACKENDS)
    assert len(plain) == len(unsloth) == (2 if "impatient" in title else 5)
    for column in ("loss", "validation_loss"):
        np.testing.assert_allclose(unsloth[column], plain[column], atol=1e-2)
    assert "impatient" in title or plain["loss"][-1] < plain["loss"][0] - 0.1


def test_both_save_the_same_pairs_and_words(root, title):
    plain, unsloth = (load_file(root / backend / title / "adapter_model.safetensors") for backend in BACKENDS)
    assert unsloth.keys() == plain.keys()
    for name in plain:
        np.testing.assert_allclose(unsloth[name], plain[name], atol=2e-2)
    (words,) = [name for name in plain if name.endswith(WORDS)]
    config = json.loads((root / "unsloth" / title / "adapter_config.json").read_text())
    base = load_base(checkpoint(TRAININGS[title], root))[0].get_input_embeddings().weight
    moved = (unsloth[words] - base[config["trainable_token_indices"]].detach()).abs().max()
    assert "impatient" in title or moved > 0.05


def test_validation_answers_end_a_training_without_gain_in_both(root):
    for title, steps in (("llava, impatient", 2), ("default", 5)):
        plain, unsloth = results(root, title)
        assert plain["facts"]["steps"] == unsloth["facts"]["steps"] == steps
        assert plain["facts"]["stopped_early"] == unsloth["facts"]["stopped_early"] == (steps == 2)
        matches = [curve(root, backend, title)["validation_exact_match"] for backend in BACKENDS]
        assert matches[0].tolist() == matches[1].tolist() and not np.isnan(matches[0]).any()


def test_each_backend_answers_alike_with_the_adapter_of_the_other(root, title):
    plain, unsloth = results(root, title)
    expected = plain["answers"]["transformers"]
    here = answers(TRAININGS[title], root, root / "unsloth" / title)
    for given in (unsloth["answers"]["transformers"], unsloth["answers"]["unsloth"], here):
        assert given["texts"] == expected["texts"]
        assert given["p_defective"] == pytest.approx(expected["p_defective"], abs=1e-2)


def test_what_was_trained_is_what_answers(root, title):
    for result in results(root, title):
        trained = result["facts"]["validation_loss"]
        assert result["answers"][result["facts"]["backend"]]["loss"] == pytest.approx(trained, abs=1e-5)


def test_an_adapter_of_4_bit_weights_answers_on_them_and_its_export_alike(root, tmp_path):
    training, folder = TRAININGS["wide, 4 bits"], root / "unsloth/wide, 4 bits"
    forms = [json.loads((root / backend / folder.name / "training.json").read_text()) for backend in BACKENDS]
    assert forms[0]["four_bits"] == forms[1]["four_bits"] and forms[0]["four_bits"]["bnb_4bit_quant_type"] == "nf4"
    assert json.loads((root / "unsloth/wide/training.json").read_text())["four_bits"] is None
    assert [name for name in requirements(folder) if name.startswith("bitsandbytes==")]
    assert not [name for name in requirements(root / "unsloth/wide") if "bitsandbytes" in name]
    base = checkpoint(training, root)
    layers = dict(load_inspector(base, folder).base_model.named_modules())
    small = {name for name, layer in layers.items() if type(layer).__name__ == "Linear4bit"}
    assert small and all("language_model" in name for name in small)
    adapted = answers(training, root, folder)
    exported = answers(training, root, None, base.at(export_merged(base, folder, tmp_path / "export")))
    assert exported["texts"] == adapted["texts"]
    assert exported["loss"] == pytest.approx(adapted["loss"], abs=1e-5)


def test_bases_that_cannot_be_loaded_have_one_line_in_both(root):
    plain, unsloth = (json.loads((root / backend / "errors.json").read_text()) for backend in BACKENDS)
    assert unsloth == plain
    missing, lacking = plain
    assert "download it once with `HF_HUB_OFFLINE=0 hf download Qwen/Qwen2-VL-2B-Instruct`" in missing
    assert "DAMAGED: the base model lacks 1 tensors, the first is model.language_model.layers.1" in lacking
    assert "\n" not in missing + lacking
