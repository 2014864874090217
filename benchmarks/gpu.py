"""Measure the speed of a model made from a config on an NVIDIA GPU; benchmarks/gpu.sh runs this script.

    python benchmarks/gpu.py prepare --work build/gpu     a small project of virtual captures and an untrained model
    python benchmarks/gpu.py measure --work build/gpu     training and answering with each backend, and plainly

Every way is measured in its own process, because Unsloth patches the libraries of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from pinspect.core import environment

# isort: split
import torch
from training import our_turn, plain_turn, planned
from transformers import AutoConfig, AutoModelForImageTextToText

from pinspect.core.errors import PinspectError, run
from pinspect.core.params import load_params
from pinspect.core.prompts import ZERO_SHOT
from pinspect.core.rows import read_chat
from pinspect.model.adapter import train_adapter
from pinspect.model.backends import open_backend, unsloth_obstacle
from pinspect.model.families import checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import inspecting_device, load_inspector, load_processor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
WAYS = ("plain", "transformers", "unsloth")
LARGE = {  # about 150 million parameters
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "heads": 12},
    "vision": {"hidden_size": 512, "intermediate_size": 2048, "depth": 12, "num_heads": 8},
}


def make_base(out: Path, sizes: dict) -> float:
    """Save an untrained Qwen3-VL of `sizes` with the shipped base's processor; return its parameters in millions."""
    shipped = ROOT / "models/base"
    config = AutoConfig.from_pretrained(shipped)
    text, vision = config.text_config, config.vision_config
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        setattr(text, name, sizes["text"][name])
    text.num_attention_heads = text.num_key_value_heads = sizes["text"]["heads"]
    text.head_dim = text.hidden_size // sizes["text"]["heads"]
    third = text.head_dim // 6  # rotated pairs for time, height and width
    text.rope_parameters["mrope_section"] = [text.head_dim // 2 - 2 * third, third, third]
    for name, value in sizes["vision"].items():
        setattr(vision, name, value)
    vision.out_hidden_size = text.hidden_size
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(out)
    shown = checkpoint_of(load_params(ROOT / "params.yaml").model.model_copy(update={"checkpoint": str(shipped)}))
    load_processor(shown).save_pretrained(out)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def prepare(work: Path) -> None:
    """Create a project in `work`: virtual captures, processed by the stages raw to check, and the large base."""
    work.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["raw"]["virtual"] |= {"train": 120, "validation": 0, "test": 60, "references": 10}
    settings["train"] |= {"maximum_steps": 60, "learning_rate": 0.0003}
    settings["model"]["checkpoint"] = str((work / "base").resolve())
    (work / "params.yaml").write_text(yaml.safe_dump(settings))
    print(f"model: {make_base(work / 'base', LARGE):.0f} million parameters")
    (work / "data/captures").mkdir(parents=True, exist_ok=True)
    for stage in ("raw", "dst", "composite", "chat", "check"):
        variables = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=work, env=variables, check=True)


def turn(work: Path, way: str, steps: int) -> dict:
    """Measure tokens per second in training, captures per second in answering (not plainly), and peak memory in GB."""
    params = load_params(work / "params.yaml")
    batches = planned(params, work, steps)
    if way == "plain":
        tokens, seconds = plain_turn(params, work, batches)
        return {"tokens_per_second": round(tokens / seconds, 1), "peak_gb": _peak()}
    tokens, seconds = our_turn(params, work, batches, way)
    figures = {"tokens_per_second": round(tokens / seconds, 1), "peak_gb": _peak()}
    base, data, out = checkpoint_of(params.model, work), work / "data", work / f"{way}-adapter"
    few = params.model_copy(update={"train": params.train.model_copy(update={"maximum_steps": 2})})
    train_adapter(few, base, data / "chat", data / "composited", out, work / f"{way}-steps", open_backend(way))
    rows = [row for row in read_chat(data / "chat/test.jsonl") if row["shot"] == ZERO_SHOT]
    inspector, contract = load_inspector(base, out), params.contract()
    options = {"pictures": data / "composited", "contract": contract, "batch_size": params.evaluate.batch_size}
    answer_rows(inspector, rows[:2], **options)  # warm-up
    start = time.perf_counter()
    answer_rows(inspector, rows, **options)
    return figures | {"captures_per_second": round(len(rows) / (time.perf_counter() - start), 2)}


def measure(work: Path, steps: int) -> dict:
    """Measure every way in its own process; ways that cannot run on this machine get a reason instead of figures."""
    ways: dict[str, dict] = {}
    for way in WAYS:
        obstacle = unsloth_obstacle() if way == "unsloth" else ""
        if obstacle:
            ways[way] = {"left_out": f"unsloth {obstacle}"}
            continue
        command = [sys.executable, __file__, "turn", "--work", str(work), "--way", way, "--steps", str(steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise PinspectError(f"benchmarks/gpu.py: measuring {way} failed; see above")
        ways[way] = json.loads(done.stdout.splitlines()[-1])
    plain = ways["plain"]["tokens_per_second"]
    for figures in ways.values():
        if "tokens_per_second" in figures:
            figures["ratio"] = round(figures["tokens_per_second"] / plain, 2)
    device = inspecting_device()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"device": card, "torch": torch.__version__, "steps": steps, "ways": ways}


def write_results(results: dict, folder: Path) -> None:
    """Write the figures as JSON and as a table; cells without a measurement stay blank."""
    lines = [
        f"# Speed on {results['device']}",
        "",
        f"`benchmarks/gpu.sh`: {results['steps']} steps, torch {results['torch']}.",
        "",
        "| way | training tokens/s | captures/s | peak GB | against plain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, figures in results["ways"].items():
        cells = [figures.get(name, "") for name in ("tokens_per_second", "captures_per_second", "peak_gb", "ratio")]
        lines.append(f"| {way} | {' | '.join(map(str, cells))} |")
        if "left_out" in figures:
            lines[-1] += f" {figures['left_out']}"
    (folder / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def _peak() -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_available() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "measure", "turn"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20, help="steps per turn; the first is not timed")
    parser.add_argument("--way", choices=WAYS, default="transformers")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.work)
    elif arguments.what == "turn":
        print(json.dumps(turn(arguments.work, arguments.way, arguments.steps)))
    else:
        results = measure(arguments.work, arguments.steps)
        write_results(results, arguments.results)
        print(json.dumps(results["ways"], indent=2))


if __name__ == "__main__":
    environment.apply()
    run(main)
