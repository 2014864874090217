"""Training an adapter: memory, number of processes and interruptions do not change the result."""

import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from pinspect.chat.dataset import build_chat, write_chat
from pinspect.core.digests import file_sha256
from pinspect.core.errors import ModelError, ParamsError
from pinspect.core.params import Params, load_params
from pinspect.core.rows import read_chat
from pinspect.core.runs import read_run_facts
from pinspect.core.start import start_folder
from pinspect.model import adapter
from pinspect.model.backends import adapted_modules, open_backend
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import checkpoint_of
from pinspect.model.live_log import Point, live_log
from pinspect.model.loading import load_base, load_inspector, load_processor
from pinspect.model.rows import RowEncoder
from tests.support import chat_line
from tests.support.sample import ROOT, stage_environment
from tests.support.waiting import until

EXPERIMENT = "line"
FEW_STEPS = {"batch_size": 4, "maximum_steps": 4, "epochs": 9.0, "rank": 4, "vision": True, "validations": 12}


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """A project with the composites and chat dataset of a small line, and the shipped base."""
    root = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_line, "CELL", 64)
        chat_line.make_line(root, inspected=8)
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["model"] |= {"checkpoint": str(ROOT / "models/base"), "threads": torch.get_num_threads()}
    settings["train"] |= FEW_STEPS
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    params, stages = load_params(root / "params.yaml"), (root / f"data/{name}" for name in ("raw", "dst", "composited"))
    dataset = build_chat(*stages, params.contract(), params.chat)
    for split, count in (
        ("train", 24),
        ("validation", 4),
    ):  # few rows with short prompts: the model takes most of the time
        short = [row for row in dataset.rows[split] if row["shot"] == "zero_shot"]
        dataset.rows[split] = short[:: len(short) // count][:count]
    write_chat(dataset, root / "data/chat")
    return root


def params_of(root: Path, model: dict[str, object] | None = None, **train: object) -> Params:
    params = load_params(root / "params.yaml")
    changed = {"train": params.train.model_copy(update=train), "model": params.model.model_copy(update=model or {})}
    return params.model_copy(update=changed)


def train(root: Path, out: Path, start: Path | None = None, report=None, **changes: object) -> adapter.TrainedAdapter:
    params = params_of(root, **changes)
    data, base, work = root / "data", checkpoint_of(params.model), out.parent / "work"
    folders = data / "chat", data / "composited", out, work
    return adapter.train_adapter(params, base, *folders, start=start, report=report)


def losses(folder: Path) -> np.ndarray:
    curve = np.genfromtxt(folder / "learning_curve.csv", delimiter=",", names=True)
    return curve["loss"]


@pytest.fixture(scope="module")
def tracking(tmp_path_factory) -> MlflowClient:
    """A client of MLflow's database for trainings."""
    client = MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}")
    client.create_experiment(EXPERIMENT)
    return client


@pytest.fixture(scope="module")
def plain(line, tracking, tmp_path_factory) -> Path:
    """An adapter of four steps, trained without interruption in this process, logged while it is trained."""
    out = tmp_path_factory.mktemp("plain") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        with live_log("line") as log:

            def report(step: int, point: Point) -> None:
                log(step, point)
                if step == 4:  # the training waits for the server, which so far has heard of a part of it
                    until(lambda: logged_losses(tracking), "the first point on the tracking server")

            train(line, out, report=report)
    return out


def logged_losses(tracking: MlflowClient) -> dict[int, float]:
    """Return the loss of each step on the tracking server."""
    experiment = tracking.get_experiment_by_name(EXPERIMENT)
    runs = tracking.search_runs([experiment.experiment_id])
    points = tracking.get_metric_history(runs[0].info.run_id, "train.loss") if runs else []
    return {point.step: point.value for point in points}


def test_a_training_is_logged_live_and_completely(plain, tracking):
    assert logged_losses(tracking) == pytest.approx(dict(enumerate(losses(plain), start=1)), abs=1e-4)


def project_at(line: Path, root: Path, checkpoint: Path = ROOT / "models/base", **train: object) -> Path:
    """Create a project with the data of the line, for programs that run in its folder."""
    settings = yaml.safe_load((line / "params.yaml").read_text())
    settings["model"]["checkpoint"] = str(checkpoint)
    settings["train"] |= train
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (root / "data").symlink_to(line / "data")
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_training_learns_and_records_what_it_trained(line, tmp_path):
    facts = train(line, tmp_path / "adapter", maximum_steps=15, epochs=20.0, learning_rate=0.003)
    curve = (tmp_path / "adapter/learning_curve.csv").read_text().splitlines()
    assert curve[0] == ",".join(adapter.CURVE_COLUMNS)
    assert len(curve) == 1 + facts.steps == 16
    loss = losses(tmp_path / "adapter")
    assert loss[-3:].mean() < 0.5 * loss[:3].mean()
    record = json.loads((tmp_path / "adapter/training.json").read_text())
    base = checkpoint_of(params_of(line).model)
    assert (record["family"], record["base_sha256"]) == ("pinspect", base_digest(base))
    assert (record["rows"], record["steps"]) == (len(read_chat(line / "data/chat/train.jsonl")), 15)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert record["trainable_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert record["trainable_share"] == pytest.approx(facts.trainable / facts.parameters, abs=1e-6)
    assert record["adapter_bytes"] == (tmp_path / "adapter/adapter_model.safetensors").stat().st_size
    assert sum(record["lora_modules"].values()) == len(adapted_modules(load_base(base)[0], params_of(line).train))
    assert sum(record["lora_modules"].values()) == sum(name.endswith("lora_A.weight") for name in weights)
    assert record["lora_modules"]["visual.blocks.*.attn.qkv"] == 4
    assert record["lora_modules"]["language_model.layers.*.self_attn.q_proj"] == 5
    keys = {"seconds", "tokens_per_second", "backend", "processes", "device", "torch", "step_times"}
    assert facts.run_facts().keys() == keys
    assert len(facts.step_times) == facts.steps and facts.step_times == tuple(sorted(facts.step_times))
    assert not facts.run_facts().keys() & record.keys(), "facts about the run are not among the outputs"


def test_two_trainings_write_the_same_bytes(line, plain, tmp_path):
    train(line, tmp_path / "another/adapter")
    assert files_of(tmp_path / "another/adapter") == files_of(plain)
    assert files_of(plain).keys() == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "learning_curve.csv", "training.json"),
    }


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"language": False, "mlp": False}, {"visual.*qkv", "visual.*attn.proj"}),
        ({"vision": False, "attention": False}, {"language_model.*gate_proj", "language_model.*down_proj"}),
    ],
)
def test_the_four_switches_choose_what_is_adapted(line, switches, expected):
    params = params_of(line, **switches)
    model, _ = load_base(checkpoint_of(params.model))
    names = adapted_modules(model, params.train)
    part = "visual" if "language" in switches else "language_model"
    assert names and all(part in name for name in names)
    assert all(any(re.search(pattern, name) for name in names) for pattern in expected)


def test_a_switch_that_matches_no_layer_is_an_error(line):
    params = params_of(line).train
    blind = torch.nn.ModuleDict({"language_model": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(2, 2)})})
    with pytest.raises(ModelError, match=r"^params.yaml: train.vision is true, but no layer of this model matches it;"):
        adapted_modules(blind, params)
    with pytest.raises(ModelError, match=r"train.mlp is true, but no layer"):
        adapted_modules(blind, params.model_copy(update={"vision": False}))
    only_attention = params.model_copy(update={"vision": False, "mlp": False})
    assert adapted_modules(blind, only_attention) == ["language_model.q_proj"]


def test_camera_captures_keep_their_share_beside_a_large_virtual_line(line):
    params = params_of(line, maximum_steps=99, epochs=1.0)
    encoder = RowEncoder(load_processor(checkpoint_of(params.model)), line / "data/composited")
    camera = read_chat(line / "data/chat/train.jsonl")[:10]
    virtual = [row | {"id": f"v{number}-{row['id']}", "source": "virtual"} for number in range(9) for row in camera]
    batches = adapter.plan_batches(camera + virtual, encoder, params.contract(), params.train)
    drawn = [row["source"] for batch in batches for row in batch]
    assert len(drawn) == 100
    assert drawn.count("camera") == 50


def test_plus_trains_about_four_times_the_parameters_of_standard(line):
    def pairs(**changes: object) -> int:
        params = params_of(line, **changes).train
        backend = open_backend("transformers")
        model = backend.adapt(backend.load(checkpoint_of(params_of(line).model), params)[0], params, ())
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    presets = {name: Params.model_validate(_shipped(name)).train for name in ("standard", "plus")}
    assert (presets["standard"].rank, presets["standard"].alpha) == (16, 32)
    standard, plus = (pairs(rank=preset.rank, alpha=preset.alpha) for preset in presets.values())
    assert plus == 4 * standard


def test_rank_and_alpha_outrank_the_preset():
    settings = _shipped("plus")
    settings["train"]["rank"] = 8
    train = Params.model_validate(settings).train
    assert (train.rank, train.alpha) == (8, 128)


def _shipped(preset: str) -> dict:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["train"]["preset"] = preset
    return settings


def test_small_parts_of_a_batch_give_the_same_training(line, plain, tmp_path):
    train(line, tmp_path / "adapter", part_tokens=400)
    assert losses(tmp_path / "adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_gradient_checkpointing_saves_memory_and_changes_nothing(line, plain, tmp_path):
    train(line, tmp_path / "adapter", gradient_checkpointing=True)
    assert losses(tmp_path / "adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_bf16_training_follows_float32_training(line, plain, tmp_path):
    """Rounding errors grow with the steps, so the first losses are closer than the last."""
    train(line, tmp_path / "adapter", model={"precision": "bf16"})
    bf16, float32 = losses(tmp_path / "adapter"), losses(plain)
    assert bf16[0] == pytest.approx(float32[0], rel=0.01)
    assert max(bf16[-1], float32[-1]) < 0.9 * float32[0]
    assert bf16[-1] == pytest.approx(float32[-1], rel=0.1)


def test_two_processes_train_the_same_adapter_as_one(line, plain, tmp_path):
    """torchrun starts the processes as `accelerate launch` does for several GPUs; on CPUs accelerate would need MPI."""
    root = project_at(line, tmp_path / "project")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "stages.train"],
        cwd=root,
        capture_output=True,
        text=True,
        env=stage_environment(OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 steps") == 1, "one of the processes prints the result"
    assert read_run_facts(root, "train")["processes"] == 2
    assert losses(root / "models/adapter") == pytest.approx(losses(plain), abs=1e-4)


def test_a_killed_and_resumed_training_writes_the_same_bytes_in_another_process(line, plain, tmp_path):
    """The other process has another order of sets, by its hash seed, and a machine with more cores."""
    root = project_at(line, tmp_path / "project")
    stage = [sys.executable, "-m", "stages.train"]
    environment = stage_environment(OMP_NUM_THREADS=str(torch.get_num_threads() + 1), PYTHONHASHSEED="7")
    running = subprocess.Popen(stage, cwd=root, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list((root / "build").glob("train/checkpoint-*.pt")):
        assert running.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL
    assert not (root / "models/adapter/adapter_model.safetensors").exists()
    subprocess.run(stage, cwd=root, env=environment, check=True, capture_output=True)
    assert files_of(root / "models/adapter") == files_of(plain)
    assert not list((root / "build/train").iterdir())
    facts = read_run_facts(root, "train")
    assert (facts["backend"], facts["processes"]) == ("transformers", 1)
    assert facts["seconds"] > 0 and facts["device"].startswith("CPU, ") and "git_commit" in facts


def test_training_stops_without_improvement_and_keeps_the_best_weights(line, tmp_path):
    """At a learning rate near zero no check is better than the first."""
    facts = train(line, tmp_path / "adapter", learning_rate=1e-12, maximum_steps=12, patience=2)
    assert facts.stopped_early
    assert facts.steps == facts.kept_step == 3
    record = json.loads((tmp_path / "adapter/training.json").read_text())
    assert record["stopped_early"] and record["validation_exact_match"] == facts.validation_exact_match


def start_with_fewer_words(plain: Path, folder: Path) -> tuple[Path, int]:
    """Copy an adapter without the first of its words; return the folder and that word."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    word = config["trainable_token_indices"].pop(0)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if name.endswith("trainable_tokens_delta"))
    save_file(weights | {name: weights[name][1:].clone()}, folder / "adapter_model.safetensors")
    return folder, word


def test_training_starts_from_another_adapter_and_takes_the_words_that_both_have(line, plain, tmp_path):
    start, new_word = start_with_fewer_words(plain, tmp_path / "start")
    train(line, tmp_path / "adapter", start, maximum_steps=1, learning_rate=1e-12)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (plain, tmp_path / "adapter"))
    words = next(name for name in before if name.endswith("trainable_tokens_delta"))
    for name in before.keys() - {words}:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    np.testing.assert_allclose(after[words][1:], before[words][1:], atol=1e-6)
    embeddings = load_base(checkpoint_of(params_of(line).model))[0].get_input_embeddings().weight
    np.testing.assert_allclose(after[words][0], embeddings[new_word].float().detach(), atol=1e-6)
    record = json.loads((tmp_path / "adapter/training.json").read_text())
    assert record["start_sha256"] == file_sha256(start / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda start: (start / "adapter_model.safetensors").write_bytes(b"{"), "cannot be read"),
        (lambda start: (start / "training.json").write_text('{"base_sha256": "0"}'), "trained on another base"),
        (lambda start: None, "LoRA pairs of another size"),
    ],
)
def test_an_adapter_that_cannot_be_a_start_is_refused_in_one_line(line, plain, tmp_path, damage, message):
    shutil.copytree(plain, tmp_path / "start")
    damage(tmp_path / "start")
    with pytest.raises(ModelError, match=message) as error:
        train(line, tmp_path / "adapter", tmp_path / "start", rank=8)
    assert "\n" not in str(error.value)


def test_a_start_is_the_version_that_the_parameters_name(tmp_path):
    assert start_folder(tmp_path, "") is None
    with pytest.raises(ModelError, match=r"found no adapter, train\.start .* is champion; run pinspect start"):
        start_folder(tmp_path, "champion")
    (tmp_path / "models/start").mkdir(parents=True)
    (tmp_path / "models/start/start.json").write_text('{"reference": "3"}')
    assert start_folder(tmp_path, "3") == tmp_path / "models/start"
    with pytest.raises(ModelError, match=r"found 3, train\.start"):
        start_folder(tmp_path, "champion")


def test_an_adapter_answers_with_the_weights_that_were_trained(line, plain):
    inspector = load_inspector(checkpoint_of(params_of(line).model), plain)
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
    figures = gpu.measure(work, steps=2)
    gpu.write_results(figures, tmp_path)
    ways = figures["ways"]
    assert ways["unsloth"] == {"left_out": "unsloth needs an NVIDIA GPU, and this machine has none"}
    assert ways["transformers"]["captures_per_second"] > 0
    assert ways["transformers"]["ratio"] > 0 and ways["plain"]["ratio"] == 1
    assert json.loads((tmp_path / "gpu.json").read_text()) == figures
    blank = next(line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("| unsloth"))
    assert blank.startswith("| unsloth |  |  |  |  |")
