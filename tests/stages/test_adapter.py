"""Training an adapter: whatever the memory, the number of processes or the interruptions, it learns the same."""

import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from pinspect.chat.dataset import build_chat, write_chat
from pinspect.core.errors import ModelError, ParamsError
from pinspect.core.params import Params, load_params
from pinspect.core.rows import read_chat
from pinspect.model import adapter
from pinspect.model.backends import adapted_modules, open_backend
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_base, load_inspector, load_processor
from pinspect.model.rows import RowEncoder
from tests.support import chat_line
from tests.support.sample import ROOT, stage_environment

FEW_STEPS = {"batch_size": 4, "maximum_steps": 4, "epochs": 9.0, "rank": 4}


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """A project with a small line's composites and chat dataset, and the shipped base for its model."""
    root = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_line, "CELL", 64)
        chat_line.make_line(root, inspected=8)
    found = yaml.safe_load((root / "params.yaml").read_text())
    found["model"]["checkpoint"] = str(ROOT / "models/base")
    found["train"] |= FEW_STEPS
    (root / "params.yaml").write_text(yaml.safe_dump(found))
    params, stages = load_params(root / "params.yaml"), (root / f"data/{name}" for name in ("raw", "dst", "composited"))
    dataset = build_chat(*stages, params.contract(), params.chat)
    for split, count in (("train", 24), ("validation", 4)):  # the shorter prompts, and few: what is slow is the model
        short = [row for row in dataset.rows[split] if row["shot"] == "zero_shot"]
        dataset.rows[split] = short[:: len(short) // count][:count]
    write_chat(dataset, root / "data/chat")
    return root


def asked(root: Path, **train: object) -> Params:
    params = load_params(root / "params.yaml")
    return params.model_copy(update={"train": params.train.model_copy(update=train)})


def train(root: Path, out: Path, **changes: object) -> adapter.TrainedAdapter:
    params = asked(root, **changes)
    data, work = root / "data", out.parent / "work"
    return adapter.train_adapter(params, checkpoint_of(params.model), data / "chat", data / "composited", out, work)


def losses(folder: Path) -> np.ndarray:
    curve = np.genfromtxt(folder / "learning_curve.csv", delimiter=",", names=True)
    return curve["loss"]


@pytest.fixture(scope="module")
def plain(line, tmp_path_factory) -> Path:
    """An adapter of four steps, trained in one go."""
    out = tmp_path_factory.mktemp("plain") / "adapter"
    train(line, out, precision="float32")
    return out


def project_at(line: Path, root: Path, checkpoint: Path = ROOT / "models/base", **train: object) -> Path:
    """The line in a folder of its own, for programs that are started there."""
    found = yaml.safe_load((line / "params.yaml").read_text())
    found["model"]["checkpoint"] = str(checkpoint)
    found["train"] |= train
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(found))
    (root / "data").symlink_to(line / "data")
    return root


def test_training_learns_and_tells_what_it_trained(line, tmp_path):
    facts = train(line, tmp_path / "adapter", maximum_steps=15, epochs=20.0, learning_rate=0.003)
    curve = (tmp_path / "adapter/learning_curve.csv").read_text().splitlines()
    assert curve[0] == ",".join(adapter.CURVE_COLUMNS)
    assert len(curve) == 1 + facts.steps == 16
    found = losses(tmp_path / "adapter")
    assert found[-3:].mean() < 0.5 * found[:3].mean()
    told = json.loads((tmp_path / "adapter/training.json").read_text())
    base = checkpoint_of(asked(line).model)
    assert told["base_sha256"] == base_digest(base)
    assert (told["family"], told["backend"], told["processes"]) == ("pinspect", "transformers", 1)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert told["trainable_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert told["trainable_share"] == pytest.approx(facts.trainable / facts.parameters, abs=1e-6)
    assert told["adapter_bytes"] == (tmp_path / "adapter/adapter_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"language": False, "mlp": False}, {"visual.*qkv", "visual.*attn.proj"}),
        ({"vision": False, "attention": False}, {"language_model.*gate_proj", "language_model.*down_proj"}),
    ],
)
def test_the_four_switches_choose_what_is_adapted(line, switches, expected):
    params = asked(line, **switches)
    model, _ = load_base(checkpoint_of(params.model))
    names = adapted_modules(model, params.train)
    part = "visual" if "language" in switches else "language_model"
    assert names and all(part in name for name in names)
    assert all(any(re.search(pattern, name) for name in names) for pattern in expected)


def test_camera_captures_keep_their_share_beside_a_large_virtual_line(line):
    params = asked(line, maximum_steps=99, epochs=1.0)
    encoder = RowEncoder(load_processor(checkpoint_of(params.model)), line / "data/composited")
    camera = read_chat(line / "data/chat/train.jsonl")[:10]
    virtual = [row | {"id": f"v{number}-{row['id']}", "source": "virtual"} for number in range(9) for row in camera]
    batches = adapter.plan_batches(camera + virtual, encoder, params.contract(), params.train)
    drawn = [row["source"] for batch in batches for row in batch]
    assert len(drawn) == 100
    assert drawn.count("camera") == 50


def test_plus_trains_about_four_times_the_parameters_of_standard(line):
    def pairs(**changes: object) -> int:
        params = asked(line, **changes).train
        backend = open_backend("transformers")
        model = backend.adapt(backend.load(checkpoint_of(asked(line).model), params)[0], params, ())
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    presets = {name: Params.model_validate(_shipped(name)).train for name in ("standard", "plus")}
    assert (presets["standard"].rank, presets["standard"].alpha) == (16, 32)
    standard, plus = (pairs(rank=preset.rank, alpha=preset.alpha) for preset in presets.values())
    assert plus == 4 * standard


def test_rank_and_alpha_outrank_the_preset():
    found = _shipped("plus")
    found["train"]["rank"] = 8
    train = Params.model_validate(found).train
    assert (train.rank, train.alpha) == (8, 128)


def _shipped(preset: str) -> dict:
    found = yaml.safe_load((ROOT / "params.yaml").read_text())
    found["train"]["preset"] = preset
    return found


def test_a_batch_in_parts_teaches_what_it_teaches_whole(line, plain, tmp_path):
    train(line, tmp_path / "adapter", precision="float32", accumulation=3)
    assert losses(tmp_path / "adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_gradient_checkpointing_saves_memory_and_changes_nothing(line, plain, tmp_path):
    train(line, tmp_path / "adapter", precision="float32", gradient_checkpointing=True)
    assert losses(tmp_path / "adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_bf16_teaches_what_float32_does(line, plain, tmp_path):
    """Rounding sends both on ways of their own: alike is where they start, and that they arrive."""
    train(line, tmp_path / "adapter", precision="bf16")
    found, expected = losses(tmp_path / "adapter"), losses(plain)
    assert found[0] == pytest.approx(expected[0], rel=0.01)
    assert max(found[-1], expected[-1]) < 0.9 * expected[0]
    assert found[-1] == pytest.approx(expected[-1], rel=0.1)


def test_two_processes_learn_what_one_does(line, plain, tmp_path):
    """Started by torchrun, as `accelerate launch` starts one process for each card; on CPUs it would want MPI."""
    root = project_at(line, tmp_path / "project", precision="float32")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "stages.train"],
        cwd=root,
        capture_output=True,
        text=True,
        env=stage_environment(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1, "one of the processes tells the result"
    assert json.loads((root / "models/adapter/training.json").read_text())["processes"] == 2
    assert losses(root / "models/adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_a_training_killed_at_any_step_ends_like_one_that_was_not(line, tmp_path):
    whole = project_at(line, tmp_path / "whole")
    cut = project_at(line, tmp_path / "cut")
    stage = [sys.executable, "-m", "stages.train"]
    running = subprocess.Popen(stage, cwd=cut, env=stage_environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list((cut / "build").glob("train/checkpoint-*.pt")):
        assert running.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (cut / "models/adapter/adapter_model.safetensors").exists()
    for root in (whole, cut):
        subprocess.run(stage, cwd=root, env=stage_environment(), check=True, capture_output=True)
    assert losses(cut / "models/adapter")[-1] == pytest.approx(losses(whole / "models/adapter")[-1], abs=1e-4)
    first, second = (root / "models/adapter/adapter_model.safetensors" for root in (whole, cut))
    assert first.read_bytes() == second.read_bytes()
    assert not list((cut / "build/train").iterdir())


def test_training_stops_when_validation_answers_get_no_better_and_keeps_the_best(line, tmp_path):
    """Without a learning rate to speak of, no check is better than the first."""
    facts = train(line, tmp_path / "adapter", learning_rate=1e-12, maximum_steps=12, patience=2)
    assert facts.stopped_early
    assert facts.steps == facts.kept_step == 3
    told = json.loads((tmp_path / "adapter/training.json").read_text())
    assert told["stopped_early"] and told["validation_exact_match"] == facts.validation_exact_match


def test_an_adapter_answers_with_the_weights_that_were_trained(line, plain):
    inspector = load_inspector(checkpoint_of(asked(line).model), plain)
    loaded = {name for name, parameter in inspector.model.named_parameters() if "lora_" in name}
    assert len(loaded) == sum("lora_" in name for name in load_file(plain / "adapter_model.safetensors"))


def test_unsloth_without_a_gpu_is_refused_in_one_line():
    with pytest.raises(ModelError, match=r"^params.yaml: model.backend: unsloth needs an NVIDIA GPU.*$"):
        open_backend("unsloth")
    assert open_backend("auto").name == "transformers"


def test_four_bits_without_a_gpu_are_refused_in_one_line(line, tmp_path):
    with pytest.raises(ModelError, match=r"^params.yaml: train.quantization: 4bit needs an NVIDIA GPU.*$"):
        train(line, tmp_path / "adapter", quantization="4bit")


def test_an_unknown_preset_is_refused(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(_shipped("enormous")))
    with pytest.raises(ParamsError, match=r"train.preset: input should be 'standard' or 'plus', found 'enormous'"):
        load_params(tmp_path / "params.yaml")


def test_the_gpu_benchmark_measures_whatever_can_run_here(line, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    work = project_at(line, tmp_path / "work", tmp_path / "work/base")
    tiny = {"hidden_size": 64, "intermediate_size": 96}
    gpu.make_base(
        work / "base",
        {
            "text": tiny | {"num_hidden_layers": 2, "heads": 2},
            "vision": tiny | {"depth": 2, "num_heads": 2},
        },
    )
    told = gpu.measure(work, steps=3)
    gpu.write_results(told, tmp_path)
    ways = told["ways"]
    assert ways["unsloth"] == {"left_out": "unsloth needs an NVIDIA GPU, and this machine has none"}
    assert ways["transformers"]["captures_per_second"] > 0
    assert ways["transformers"]["ratio"] > 0 and ways["plain"]["ratio"] == 1
    assert json.loads((tmp_path / "gpu.json").read_text()) == told
    blank = next(line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("| unsloth"))
    assert blank.startswith("| unsloth |  |  |  |  |")
