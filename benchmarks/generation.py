"""Measure the time that answers take on this machine.

    python benchmarks/generation.py

Reads models/adapter, models/operating_point.json, data/chat, data/composited, data/raw and data/dst as `dvc repro`
leaves them, and writes benchmarks/results/generation.json and generation.md: answers per second, batched with a
key-value cache, length grouping and fast-forward, against Hugging Face's `generate` one row at a time, on the same rows
in one run; and the time of one zero-shot inspection, from the file to the parsed answer. Takes a few minutes on two
cores.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pinspect.core import environment
from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.manifests import read_manifest
from pinspect.core.operating_point import read_operating_point
from pinspect.core.params import Params, load_params
from pinspect.core.product_files import read_product
from pinspect.core.prompts import answer_kind_of
from pinspect.core.question import Question
from pinspect.core.rows import read_chat
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.records import Photograph, Task
from pinspect.model.families import checkpoint_of
from pinspect.model.generation import GeneratedAnswer, answer_rows
from pinspect.model.loading import Inspector, load_inspector
from pinspect.registry.package import pack_line

ROOT = Path(__file__).parents[1]
BATCH, ROUNDS, WARM_UP = 32, 3, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of a project, after `dvc repro`")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--rows", type=int, default=64, help="rows answered in batches; half of them one at a time")
    arguments = parser.parse_args()
    params = load_params(arguments.root / "params.yaml")
    inspector = load_inspector(checkpoint_of(params.model, arguments.root), arguments.root / "models/adapter")
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {inspector.device.type}",
        "python": platform.python_version(),
        "batch": BATCH,
        "throughput": throughput(arguments.root, params, inspector, arguments.rows),
        "latency": latency(arguments.root, params, inspector, arguments.rows),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "generation.json").write_text(json.dumps(figures, indent=2) + "\n")
    (arguments.out / "generation.md").write_text(as_markdown(figures))
    print(as_markdown(figures))


def throughput(root: Path, params: Params, inspector: Inspector, count: int) -> dict:
    """Measure answers per second of each way (median of `ROUNDS` rounds in turn) and whether all answers are equal."""
    rows = Question.of(params.evaluate).rows(read_chat(root / "data/chat/test.jsonl"))[:count]
    half = rows[: max(1, len(rows) // 2)]  # the time of a single row does not depend on the others
    answer = partial(answer_rows, inspector, pictures=root / "data/composited", contract=params.contract())
    ways: dict[str, tuple[list[dict], Callable[[list[dict]], list[GeneratedAnswer]]]] = {
        "batched, fast-forward": (rows, lambda batch: answer(batch, batch_size=BATCH)),
        "batched, token by token": (rows, lambda batch: answer(batch, batch_size=BATCH, fast_forward=False)),
        "one by one, fast-forward": (half, lambda batch: answer(batch, batch_size=1)),
        "one by one, generate": (half, lambda batch: answer(batch, batch_size=1, fast_forward=False)),
        "one by one, generate without grammar": (half, lambda batch: answer(batch, batch_size=1, constrained=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for _, way in ways.values():
        way(rows[:2])  # warm-up
    for _ in range(ROUNDS):
        for name, (way_rows, way) in ways.items():
            start = time.perf_counter()
            texts[name] = [answer.text for answer in way(way_rows)]
            seconds[name].append((time.perf_counter() - start) / len(way_rows))
    reference = texts["one by one, generate"]
    constrained = [name for name in ways if "without" not in name]
    rates = {name: 1 / float(np.median(times)) for name, times in seconds.items()}
    return {
        "rows": len(rows),
        "prompt": f"{params.evaluate.kind}, zero-shot, {params.evaluate.view}",
        "answers_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "times_one_by_one": round(rates["batched, fast-forward"] / rates["one by one, generate"], 2),
        "times_one_by_one_without_grammar": round(
            rates["batched, fast-forward"] / rates["one by one, generate without grammar"], 2
        ),
        "same_answers": all(texts[name][: len(reference)] == reference for name in constrained),
    }


def latency(root: Path, params: Params, inspector: Inspector, count: int) -> dict:
    """Measure seconds from an image file to its parsed answer, one file at a time, for captures of the test split."""
    raw = read_manifest(root / "data/raw/manifest.csv", ("file", "role", "split", "source"))
    files = raw[(raw["role"] == "inspected") & (raw["split"] == "test")].sort_values(["source", "file"])["file"]
    point = read_operating_point(root / "models/operating_point.json", root / "models/adapter")
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        pack_line(root, params.answers.shapes, Path(folder))
        production = CaptureInspector(inspector, Path(folder), params, point.threshold)
        contract, kind = params.contract(), answer_kind_of(params.evaluate.kind)
        images = [root / "data/raw" / file for file in files[: count + WARM_UP]]
        seconds = [inspect_file(production, image, contract, kind) for image in images][WARM_UP:]
    return {
        "files": len(seconds),
        "p50_s": round(float(np.quantile(seconds, 0.5)), 4),
        "p95_s": round(float(np.quantile(seconds, 0.95)), 4),
    }


def inspect_file(production: CaptureInspector, path: Path, contract: AnswerContract, kind: AnswerKind) -> float:
    """Return the seconds of one inspection."""
    start = time.perf_counter()
    (record,) = production.inspect([Task(Photograph(path.name, read_product(path)))])
    contract.parse(record["answer"], kind)
    return time.perf_counter() - start


def as_markdown(figures: dict) -> str:
    speed, latency_figures = figures["throughput"], figures["latency"]
    lines = [
        "# Answering: figures",
        "",
        (
            f"Command: `python benchmarks/generation.py`. Machine: {figures['machine']}; Python {figures['python']}. "
            "The same numbers as JSON: `generation.json`."
        ),
        "",
        (
            f"Answers per second ({speed['prompt']}; {speed['rows']} rows in batches of {figures['batch']}, half of "
            f"them one at a time; median of {ROUNDS} rounds in turn):"
        ),
        "",
        "| way | answers/s |",
        "| --- | --- |",
        *(f"| {name} | {rate:.2f} |" for name, rate in speed["answers_per_second"].items()),
        "",
        (
            f"Batched with fast-forward is **{speed['times_one_by_one']:.1f} times** as fast as `generate` under the "
            f"grammar one row at a time, and {speed['times_one_by_one_without_grammar']:.1f} times as fast as plain "
            f"`generate`. All constrained answers are equal: {'yes' if speed['same_answers'] else 'NO'}."
        ),
        "",
        (
            f"One zero-shot inspection, from the file to the parsed answer ({latency_figures['files']} files, one at a "
            f"time): p50 **{latency_figures['p50_s']:.3f} s**, p95 {latency_figures['p95_s']:.3f} s."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    environment.apply()
    main()
