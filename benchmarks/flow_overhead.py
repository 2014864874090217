"""Measures what the retrain flow costs over plain `dvc repro`, on the same project, by turns.

    python benchmarks/flow_overhead.py [--rounds 3]

A small project (the tests' own: 11 captures, an adapter of two steps) runs to its end once. In each round the seed of
the training changes and `dvc repro` runs what depends on it; then the seed changes again and the flow runs. A Prefect
server is up, as with `make server`. The order alternates. Runs in which nothing has changed come last. Writes
benchmarks/results/flow_overhead.json; times are seconds of wall clock, from process start to exit.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.checkout import Checkout, make_checkout
from tests.support.mlflow_server import free_port, running

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/flow_overhead.json"
BOUND_SECONDS = 20
COMMANDS = {"dvc": ("dvc", "repro"), "flow": (sys.executable, "-m", "flows.retrain")}


def measure(checkout: Checkout, rounds: int) -> dict:
    """Return the seconds of each run, by command: `dvc` and `flow` after a change, `... unchanged` without one."""
    seconds: dict[str, list[float]] = {name: [] for kind in COMMANDS for name in (kind, f"{kind} unchanged")}
    for number in range(2 * rounds):
        kind = ("dvc", "flow")[(number + number // 2) % 2]
        checkout.set_param("train", seed=1000 + number)
        seconds[kind].append(_seconds(checkout, kind))
    for _ in range(rounds):
        for kind in COMMANDS:
            seconds[f"{kind} unchanged"].append(_seconds(checkout, kind))
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict:
    """Return the medians, the flow's overhead in seconds and as a ratio, and whether it keeps the bound."""
    median = {name: round(statistics.median(times), 2) for name, times in seconds.items()}
    overhead = round(median["flow"] - median["dvc"], 2)
    return {
        "medians": median,
        "overhead_seconds": overhead,
        "ratio": round(median["flow"] / median["dvc"], 3),
        "bound_seconds": BOUND_SECONDS,
        "keeps_the_bound": overhead < BOUND_SECONDS,
    }


def _seconds(checkout: Checkout, kind: str) -> float:
    start = time.monotonic()
    checkout.must(*COMMANDS[kind])
    return round(time.monotonic() - start, 2)


def _machine() -> dict:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
            os.environ["PREFECT_API_URL"] = f"{uri}/api"
            checkout = make_checkout(place / "line")
            checkout.must("dvc", "repro")
            seconds = measure(checkout, rounds)
    result = {**summary(seconds), "seconds": seconds, **machine}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary(seconds), indent=2))


if __name__ == "__main__":
    main()
