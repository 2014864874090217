"""Compare the speed of answers with an earlier commit on this machine.

    git worktree add --detach /tmp/before COMMIT
    python benchmarks/answers.py --before /tmp/before

Reads models, data/chat, data/composited, data/raw and data/dst as `dvc repro` leaves them with `raw.shards: 0`: the
same code of this file runs at both commits, and earlier ones know no archives. Processes with the earlier
and with the present code take turns, on the same rows and photographs. Writes benchmarks/results/answers.json: answers
per second by rows in a batch and seconds from an image file to its answer, by the clock of the wall and by that of the
process (the second is less moved by other programs), and how far the answers differ. Takes about four minutes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import pinspect
from pinspect.core import environment
from pinspect.core.manifests import read_manifest
from pinspect.core.operating_point import read_operating_point
from pinspect.core.params import Params, load_params
from pinspect.core.question import Question
from pinspect.core.rows import read_chat
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.records import Photograph, Task
from pinspect.model.families import checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import Inspector, load_inspector
from pinspect.registry.package import pack_line

ROOT = Path(__file__).parents[1]
BATCHES = {1: 48, 8: 96, 32: 192, 64: 256}  # rows in a batch -> rows
ROUNDS, FILES, WARM_UP = 2, 24, 4
MIXED = 20  # rows of every kind whose answers are compared, too
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of a project, after `dvc repro`")
    parser.add_argument("--before", type=Path, help="checkout of the earlier commit")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/answers.json")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        arguments.measure.write_text(json.dumps(measure(arguments.root.resolve())))
        return
    if not arguments.before:
        parser.error("--before: expected the checkout of an earlier commit")
    sides = {"before": arguments.before.resolve(), "now": ROOT}
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, checkout in sides.items():
            runs[side].append(in_process(checkout, arguments.root))
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commits": {side: commit(checkout) for side, checkout in sides.items()},
        "rounds": ROUNDS,
        "load_before": round(os.getloadavg()[0], 2),
    } | compare(runs["before"], runs["now"])
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def in_process(checkout: Path, root: Path) -> dict:
    """Measure the code of a checkout in a new process."""
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        out = Path(folder) / "measured.json"
        subprocess.run(
            [sys.executable, __file__, "--root", str(root), "--measure", str(out)],
            check=True,
            env=os.environ | {"PYTHONPATH": str(checkout / "src")},
        )
        return json.loads(out.read_text())


def commit(checkout: Path) -> str:
    """Return the commit of a checkout, with `+` if files were changed since."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def measure(root: Path) -> dict:
    """Measure the code that this process imports."""
    params = load_params(Path(pinspect.__file__).parents[2] / "params.yaml")  # of the checkout that is measured
    inspector = load_inspector(checkpoint_of(params.model, root), root / "models/adapter")
    every = read_chat(root / "data/chat/test.jsonl")
    rows = Question.of(params.evaluate).rows(every)
    contract, composites = params.contract(), root / "data/composited"
    answer_rows(inspector, rows[:2], composites, contract, batch_size=2)  # warm-up
    rates = {}
    for size, count in BATCHES.items():
        start = now()
        answers = answer_rows(inspector, rows[:count], composites, contract, batch_size=size)
        rates[str(size)] = [count / seconds for seconds in now() - start]
    answers += answer_rows(inspector, every[:MIXED], composites, contract, batch_size=16)
    return {
        "rates": rates,
        "seconds": latency(root, params, inspector),
        "answers": [[each.if_defective, each.p_defective, each.address_probabilities] for each in answers],
    }


def now() -> np.ndarray:
    """Read each of `CLOCKS`."""
    return np.array([clock() for clock in CLOCKS.values()])


def latency(root: Path, params: Params, inspector: Inspector) -> list[list[float]]:
    """Return the seconds from an image file to its answer, one file at a time, for captures of the test split."""
    raw = read_manifest(root / "data/raw/manifest.csv", ("file", "role", "split", "source"))
    files = raw[(raw["role"] == "inspected") & (raw["split"] == "test")].sort_values(["source", "file"])["file"]
    point = read_operating_point(root / "models/operating_point.json", root / "models/adapter")
    seconds = []
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        pack_line(root, params.answers.shapes, Path(folder))
        production = CaptureInspector(inspector, Path(folder), params, point.threshold)
        for file in files[: FILES + WARM_UP]:
            start = now()
            production.inspect([Task(Photograph(file, (root / "data/raw" / file).read_bytes()))])
            seconds.append((now() - start).tolist())
    return seconds[WARM_UP:]


def compare(before: list[dict], after: list[dict]) -> dict:
    """Return the figures of both sides, medians over the rounds, and their ratios."""
    pairs = list(zip(before[0]["answers"], after[0]["answers"], strict=True))
    figures: dict[str, dict] = {}
    for number, clock in enumerate(CLOCKS):
        figures[f"answers_per_second_{clock}"] = {
            size: ratio([[run["rates"][size][number] for run in side] for side in (before, after)])
            for size in map(str, BATCHES)
        }
        figures[f"file_to_answer_s_{clock}"] = {
            f"p{percent}": ratio(
                [
                    [np.percentile(np.array(run["seconds"])[:, number], percent) for run in side]
                    for side in (before, after)
                ]
            )
            for percent in (50, 95)
        }
    return figures | {
        "answers": {
            "compared": len(pairs),
            "same_texts": sum(old[0] == new[0] for old, new in pairs),
            "largest_difference": {
                "p_defective": max(abs(old[1] - new[1]) for old, new in pairs),
                "address_probabilities": max(float(np.abs(np.subtract(old[2], new[2])).max()) for old, new in pairs),
            },
        },
    }


def ratio(sides: list[list[float]]) -> dict[str, float]:
    """Return the medians of both sides, and the second divided by the first."""
    old, new = (float(np.median(values)) for values in sides)
    return {"before": round(old, 4), "now": round(new, 4), "ratio": round(new / old, 3)}


if __name__ == "__main__":
    environment.apply()
    getattr(environment, "keep_freed_memory", environment.apply)()  # commits before November 2026 lack it
    main()
