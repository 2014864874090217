"""What the retrain flow costs over plain `dvc repro`: the same project, run by both in turn, in one run of this script.

    python benchmarks/flow_overhead.py [--rounds 3]

A small project (the tests' own: 11 captures, an adapter of two steps) is run to its end once. Then, in each round, the
training's seed changes and `dvc repro` runs what follows from it; it changes again, and the flow does, on a Prefect
server that is up, as with `make server`. Which of the two comes first alternates. Last come runs in which nothing has
changed. Writes benchmarks/results/flow_overhead.json; times are seconds of the wall clock, process start to exit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from flow_stack import Checkout, make_checkout  # noqa: E402
from mlflow_server import free_port, running  # noqa: E402

RESULT = ROOT / "benchmarks/results/flow_overhead.json"
BOUND_SECONDS = 20
COMMANDS = {"dvc": ("dvc", "repro"), "flow": (sys.executable, "-m", "flows.retrain")}


def measure(checkout: Checkout, rounds: int) -> dict:
    """Seconds of each run, by who ran it: `dvc` and `flow` with something changed, `... unchanged` without."""
    found: dict[str, list[float]] = {name: [] for kind in COMMANDS for name in (kind, f"{kind} unchanged")}
    for number in range(2 * rounds):
        kind = ("dvc", "flow")[(number + number // 2) % 2]
        checkout.set_param("train", seed=1000 + number)
        found[kind].append(_seconds(checkout, kind))
    for _ in range(rounds):
        for kind in COMMANDS:
            found[f"{kind} unchanged"].append(_seconds(checkout, kind))
    return found


def summary(found: dict[str, list[float]]) -> dict:
    """Medians, the flow's overhead in seconds and as a ratio, and whether it keeps the bound."""
    median = {name: round(statistics.median(times), 2) for name, times in found.items()}
    overhead = round(median["flow"] - median["dvc"], 2)
    return {
        "medians": median,
        "overhead_seconds": overhead,
        "ratio": round(median["flow"] / median["dvc"], 3),
        "bound_seconds": BOUND_SECONDS,
        "keeps_the_bound": overhead < BOUND_SECONDS,
    }


def _seconds(checkout: Checkout, kind: str) -> float:
    began = time.monotonic()
    checkout.must(*COMMANDS[kind])
    return round(time.monotonic() - began, 2)


def _machine() -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    load = os.getloadavg()[0]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    machine = _machine()
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        place = Path(folder)
        os.environ["PREFECT_HOME"] = str(place / "prefect")
        server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(free_port())]
        with running(server, place / "server.log", "/api/health") as uri:
            checkout = make_checkout(place / "line", f"{uri}/api")
            checkout.must("dvc", "repro")
            found = measure(checkout, rounds)
    result = {**summary(found), "seconds": found, **machine}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary(found), indent=2))


if __name__ == "__main__":
    main()
