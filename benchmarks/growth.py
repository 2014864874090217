"""Measure how a run without a change grows with the number of captures: `python benchmarks/growth.py FOLDER`.

For 200, 2,000 and 20,000 virtual captures (`--captures` changes them), a clone of this checkout in FOLDER runs the
stages up to chat once. Then two runs are timed, each three times: `dvc repro chat`, which finds that nothing has
changed, and a forced run, in which each stage checks that all its products are whole. FOLDER keeps the clones, so that
a second call measures at once; 20,000 captures take about half an hour and 8 GB.

Writes benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

from pinspect.core import environment

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/growth.json"
STAGES = ("raw", "dst", "composite", "chat")
RUNS = {"unchanged": ("dvc", "repro", "chat"), "forced": ("dvc", "repro", "--single-item", "--force", *STAGES)}
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captures", type=int, nargs="+", default=(200, 2_000, 20_000))
    arguments = parser.parse_args()
    environment.apply()
    clones = {count: prepare(arguments.folder.resolve() / str(count), count) for count in arguments.captures}
    figures = {str(count): measure(clone) for count, clone in clones.items()}
    smallest, largest = figures[str(min(clones))], figures[str(max(clones))]
    ratio = {name: round(largest[name] / smallest[name], 2) for name in RUNS}
    machine = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}"
    RESULT.write_text(json.dumps({"seconds": figures, "ratio": ratio, "machine": machine}, indent=2) + "\n")
    print(RESULT.read_text())


def prepare(clone: Path, count: int) -> Path:
    """Return a clone of this checkout whose stages up to chat have run on `count` virtual captures."""
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        params = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
        params["raw"]["virtual"].update(train=count, validation=0, test=0)
        (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    run(clone, "dvc", "repro", "chat")
    return clone


def measure(clone: Path) -> dict[str, float]:
    """Return the median seconds of each kind of run."""
    return {
        name: round(statistics.median(run(clone, *command) for _ in range(ROUNDS)), 2) for name, command in RUNS.items()
    }


def run(folder: Path, *command: str) -> float:
    """Run a command in a folder and return its seconds of wall clock."""
    start = time.perf_counter()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
