"""Measure how long processes take to start and to end: `python benchmarks/startup.py [--rounds 5]`.

In turns, five processes run: one that imports all that a training needs (PyTorch, transformers, peft), as Python sets
the garbage collector and as `environment.apply` sets it, and three commands in this folder. Writes
benchmarks/results/startup.json: the median CPU seconds of each, user and system. One minute.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from pinspect.core import environment

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/startup.json"
BIN = Path(sys.executable).parent
IMPORT = "import pinspect.model.learner"
PROCESSES = {
    "imports": (sys.executable, "-c", IMPORT),
    "imports, collector tuned": (
        *(sys.executable, "-c"),
        f"from pinspect.core import environment; environment.tune_garbage_collector(); {IMPORT}",
    ),
    "pinspect --help": (BIN / "pinspect", "--help"),
    "pinspect status": (BIN / "pinspect", "status"),
    "dvc status": (BIN / "dvc", "status"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    environment.apply()
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(rounds):
        for name, command in PROCESSES.items():
            seconds[name].append(cpu_seconds(command))
    medians = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}"
    RESULT.write_text(json.dumps({"seconds": medians, "rounds": rounds, "machine": machine}, indent=2) + "\n")
    print(RESULT.read_text())


def cpu_seconds(command: tuple[str | Path, ...]) -> float:
    """Run a command that must end with 0, and return its CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
