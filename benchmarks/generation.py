"""What answering costs, measured on this machine.

    python benchmarks/generation.py

Reads models/adapter, models/operating_point.json, data/chat, data/composited, data/raw and data/dst as `dvc repro`
leaves them, and writes benchmarks/results/generation.json and generation.md: answers a second, batched with a key-value
cache, length grouping and fast-forward against Hugging Face's `generate` one row at a time, on the same rows in one
run; and how long one zero-shot inspection takes, from the file to the parsed answer. A few minutes on two cores.
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
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--root", type=Path, default=ROOT, help="the project that was run")
    asked.add_argument("--out", type=Path, default=ROOT / "benchmarks/results")
    asked.add_argument("--rows", type=int, default=64, help="rows answered in batches; one at a time: half of them")
    given = asked.parse_args()
    params = load_params(given.root / "params.yaml")
    inspector = load_inspector(checkpoint_of(params.model, given.root), given.root / "models/adapter")
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {inspector.device.type}",
        "python": platform.python_version(),
        "batch": BATCH,
        "throughput": throughput(given.root, params, inspector, given.rows),
        "latency": latency(given.root, params, inspector, given.rows),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "generation.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "generation.md").write_text(as_markdown(found))
    print(as_markdown(found))


def throughput(root: Path, params: Params, inspector: Inspector, count: int) -> dict:
    """Answers a second of each way, the median of `ROUNDS` rounds in turn; all ways must give the same answers."""
    rows = Question.of(params.evaluate).rows(read_chat(root / "data/chat/test.jsonl"))[:count]
    half = rows[: max(1, len(rows) // 2)]  # a row alone takes the same time whatever stands beside it
    answer = partial(answer_rows, inspector, images_dir=root / "data/composited", contract=params.contract())
    ways: dict[str, tuple[list[dict], Callable[[list[dict]], list[GeneratedAnswer]]]] = {
        "batched, fast-forward": (rows, lambda asked: answer(asked, batch_size=BATCH)),
        "batched, token by token": (rows, lambda asked: answer(asked, batch_size=BATCH, fast_forward=False)),
        "one by one, fast-forward": (half, lambda asked: answer(asked, batch_size=1)),
        "one by one, generate": (half, lambda asked: answer(asked, batch_size=1, fast_forward=False)),
        "one by one, generate without grammar": (half, lambda asked: answer(asked, batch_size=1, constrained=False)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    told: dict[str, list[str]] = {}
    for _, way in ways.values():
        way(rows[:2])  # what is done once a process
    for _ in range(ROUNDS):
        for name, (asked, way) in ways.items():
            began = time.perf_counter()
            told[name] = [answered.text for answered in way(asked)]
            seconds[name].append((time.perf_counter() - began) / len(asked))
    reference = told["one by one, generate"]
    constrained = [name for name in ways if "without" not in name]
    rates = {name: 1 / float(np.median(spent)) for name, spent in seconds.items()}
    return {
        "rows": len(rows),
        "prompt": f"{params.evaluate.kind}, zero-shot, {params.evaluate.view}",
        "answers_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "times_one_by_one": round(rates["batched, fast-forward"] / rates["one by one, generate"], 2),
        "times_one_by_one_without_grammar": round(
            rates["batched, fast-forward"] / rates["one by one, generate without grammar"], 2
        ),
        "same_answers": all(told[name][: len(reference)] == reference for name in constrained),
    }


def latency(root: Path, params: Params, inspector: Inspector, count: int) -> dict:
    """Seconds from an image file to its parsed answer, one file at a time: captures of the test split."""
    raw = read_manifest(root / "data/raw/manifest.csv", ("file", "role", "split", "source"))
    files = raw[(raw["role"] == "inspected") & (raw["split"] == "test")].sort_values(["source", "file"])["file"]
    point = read_operating_point(root / "models/operating_point.json", root / "models/adapter")
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        pack_line(root, params.answers.shapes, Path(folder))
        production = CaptureInspector(inspector, Path(folder), params, point.threshold)
        contract, kind = params.contract(), answer_kind_of(params.evaluate.kind)
        images = [root / "data/raw" / file for file in files[: count + WARM_UP]]
        spent = [inspect_file(production, image, contract, kind) for image in images][WARM_UP:]
    return {
        "files": len(spent),
        "p50_s": round(float(np.quantile(spent, 0.5)), 4),
        "p95_s": round(float(np.quantile(spent, 0.95)), 4),
    }


def inspect_file(production: CaptureInspector, path: Path, contract: AnswerContract, kind: AnswerKind) -> float:
    """Seconds that one inspection took."""
    began = time.perf_counter()
    (record,) = production.inspect([Task(Photograph(path.name, path.read_bytes()))])
    contract.parse(record["answer"], kind)
    return time.perf_counter() - began


def as_markdown(found: dict) -> str:
    speed, wait = found["throughput"], found["latency"]
    lines = [
        "# Answering: figures",
        "",
        (
            f"Made by `python benchmarks/generation.py` on {found['machine']}; Python {found['python']}. The same "
            "numbers for machines: `generation.json`."
        ),
        "",
        (
            f"Answers a second ({speed['prompt']}; {speed['rows']} rows in batches of {found['batch']}, one at a time "
            f"half of them; median of {ROUNDS} rounds in turn):"
        ),
        "",
        "| way | answers/s |",
        "| --- | --- |",
        *(f"| {name} | {rate:.2f} |" for name, rate in speed["answers_per_second"].items()),
        "",
        (
            f"Batched with fast-forward is **{speed['times_one_by_one']:.1f} times** as fast as `generate` under the "
            f"grammar one row at a time, and {speed['times_one_by_one_without_grammar']:.1f} times as fast as plain "
            f"`generate`. Constrained answers of all ways alike: {'yes' if speed['same_answers'] else 'NO'}."
        ),
        "",
        (
            f"One zero-shot inspection from the file to the parsed answer ({wait['files']} files, one at a time): "
            f"p50 **{wait['p50_s']:.3f} s**, p95 {wait['p95_s']:.3f} s."
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    environment.apply()
    main()
