"""Measure how the stages grow with the number of captures: `python benchmarks/scale.py FOLDER`.

For 1,000, 10,000, 25,000 and 100,000 small captures (`--captures` changes them), a clone of this checkout in FOLDER
keeps its products in archives (`raw.shards`) and runs the stages from raw to check one by one under DVC. Then `dvc
status`, `dvc repro chat` without a change, and `dvc repro chat` after ten more captures are timed. A few renderings of
the virtual line are the captures' pattern; each capture has its own shift, light and noise.

FOLDER keeps what is done, so a stopped run is resumed, and a second call only writes the tables again. 100,000 captures
take about 25 minutes on two cores and 12 GB, all four numbers 35 minutes.

Writes benchmarks/results/scale.json and scale.md, with the model of the cost and what it predicts for 1,000,000.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import psutil
import yaml
from rich.progress import track

from pinspect.captures.table import LABEL_COLUMNS
from pinspect.core import environment
from pinspect.core.digests import git_commit
from pinspect.core.manifests import WINDOW
from pinspect.core.params import VirtualParams, load_params
from pinspect.core.runs import read_run_facts
from pinspect.virtual_line import VirtualCapture, render_line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
STAGES = ("raw", "dst", "composite", "chat", "check")
RUNS = {"dvc status": ("dvc", "status"), "dvc repro, no change": ("dvc", "repro", "chat")}
SHAPE = "CYLN"
PATTERNS, REFERENCES, ADDED = 64, 10, 10
SIZE = (320, 128)  # px of a capture
CELL = 16  # px of a pin in a composite
PREDICTED = 1_000_000
_MB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captures", type=int, nargs="+", default=(1_000, 10_000, 25_000, 100_000))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of scale.json and scale.md")
    arguments = parser.parse_args()
    environment.apply()
    measured = {}
    for count in sorted(arguments.captures):
        measured[count] = Project(arguments.folder.resolve() / str(count), count).measure()
    machine = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}"
    result = {"captures": measured, "model": model_of(measured), "machine": machine, "commit": git_commit(ROOT)}
    (arguments.out / "scale.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (arguments.out / "scale.md").write_text(as_markdown(result), encoding="utf-8")
    print(as_markdown(result))


class Project:
    """A clone of this checkout with virtual captures, and what has been measured in it."""

    def __init__(self, root: Path, count: int):
        self.root = root
        self.count = count
        self._record = root.with_name(f"{root.name}.json")
        self._done: dict[str, dict[str, float]] = (
            json.loads(self._record.read_text(encoding="utf-8")) if self._record.exists() else {}
        )

    def measure(self) -> dict[str, dict[str, float]]:
        """Return seconds and memory of each step; steps that are recorded already are not run again."""
        self._once("captures", self._prepare)
        for stage in STAGES:
            self._once(stage, lambda stage=stage: self._run_stage(stage))
        for name, command in RUNS.items():
            self._once(name, lambda command=command: min(self._run(command) for _ in range(3)))
        self._once("ten more", self._add)
        return self._done

    def _once(self, name: str, step: Callable[[], dict[str, float] | float]) -> None:
        if name not in self._done:
            print(f"{self.count:,} captures: {name}", file=sys.stderr, flush=True)
            figures = step()
            self._done[name] = figures if isinstance(figures, dict) else {"seconds": figures}
            self._record.write_text(json.dumps(self._done, indent=2), encoding="utf-8")
            print(f"    {self._done[name]}", file=sys.stderr, flush=True)

    def _prepare(self) -> float:
        start = time.perf_counter()
        shutil.rmtree(self.root, ignore_errors=True)
        subprocess.run(["git", "clone", "--quiet", ROOT, self.root], check=True)
        params = yaml.safe_load((self.root / "params.yaml").read_text(encoding="utf-8"))
        params["answers"]["shapes"] = [SHAPE]
        params["raw"]["shards"] = shards_for(self.count)
        params["raw"]["virtual"].update(train=0, validation=0, test=0)
        params["composite"].update(cell=CELL, token_aligned=False)
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        (self.root / "data/splits.csv").unlink(missing_ok=True)
        shutil.rmtree(self.root / "data/captures")
        write_captures(self.root / "data/captures", range(self.count))
        return round(time.perf_counter() - start, 2)

    def _run_stage(self, stage: str) -> dict[str, float]:
        memory = Memory(stage)
        whole = self._run(("dvc", "repro", "--single-item", stage), memory)
        files = [path for path in (self.root / "data").rglob("*") if path.is_file()]
        return {
            "seconds": float(str(read_run_facts(self.root, stage)["stage_seconds"])),
            "with_dvc_seconds": whole,
            "memory_mb": memory.stage,
            "all_processes_mb": memory.all,
            "files_in_data": len(files),
            "data_mb": sum(path.stat().st_size for path in files) // _MB,
        }

    def _add(self) -> float:
        write_captures(self.root / "data/captures", range(self.count, self.count + ADDED))
        return self._run(("dvc", "repro", "chat"))

    def _run(self, command: tuple[str, ...], memory: Memory | None = None) -> float:
        return run_command(command, self.root, memory)


def run_command(
    command: tuple[str, ...], root: Path, memory: Memory | None = None, variables: Mapping[str, str] | None = None
) -> float:
    """Run a command in a project and return its seconds of wall clock.

    Args:
        command: A program of this Python's environment, and its arguments.
        root: The project.
        memory: What watches the processes.
        variables: Environment variables beside those of this process.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.perf_counter()
    environment_of_command = os.environ | {"PATH": path} | dict(variables or {})
    process = subprocess.Popen(command, cwd=root, env=environment_of_command, stdout=sys.stderr)
    if memory:
        memory.watch(process.pid)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed in {root}; correct it and run this again")
    return round(time.perf_counter() - start, 2)


def shards_for(captures: int) -> int:
    """Return the number of archives that docs/operations.md recommends: nearest to one for 1,000 captures."""
    return min((16, 256, 4096), key=lambda shards: abs(math.log(shards * 1000 / captures)))


class Memory:
    """The highest memory of a stage, sampled: of its first process, and of all processes with that of DVC."""

    def __init__(self, stage: str):
        self.stage = 0.0
        self.all = 0.0
        self._module = f"stages.{stage}"

    def watch(self, process: int) -> None:
        """Watch a process and its children until it ends."""
        threading.Thread(target=self._sample, args=(psutil.Process(process),), daemon=True).start()

    def _sample(self, process: psutil.Process) -> None:
        while True:
            try:
                processes = [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            sizes = {each: _resident(each) for each in processes}
            first = [size for each, size in sizes.items() if self._is_stage(each)]
            self.stage = max([self.stage, *first])
            self.all = max(self.all, sum(sizes.values()))
            time.sleep(0.5)  # looking costs CPU, too

    def _is_stage(self, process: psutil.Process) -> bool:
        try:
            return self._module in process.cmdline()
        except psutil.Error:
            return False


def _resident(process: psutil.Process) -> float:
    try:
        return round(process.memory_info().rss / _MB)
    except psutil.Error:
        return 0.0


def write_captures(folder: Path, numbers: range) -> None:
    """Write captures and their rows of labels.csv; the same number gives the same capture."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    patterns = render_patterns()
    pictures = [cv2.resize(picture, SIZE, interpolation=cv2.INTER_AREA) for picture, _ in patterns]
    labels = folder / "labels.csv"
    is_new = not labels.exists()
    with labels.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(LABEL_COLUMNS)
        for number in track(numbers, description="captures"):
            index = number if number < REFERENCES else REFERENCES + number % PATTERNS
            label = patterns[index][1]
            name = f"{number:07d}.jpg"
            (folder / "images" / name).write_bytes(vary(pictures[index], number))
            row = {"file": name, "role": label.role} | {
                column: getattr(label, column) for column in LABEL_COLUMNS if column not in ("file", "role")
            }
            writer.writerow([row[column] for column in LABEL_COLUMNS])


def render_patterns() -> list[tuple[np.ndarray, VirtualCapture]]:
    """Return references and inspected captures of the virtual line as BGR pictures, with their labels."""
    contract = load_params(ROOT / "params.yaml").contract()
    virtual = VirtualParams(train=PATTERNS, test=0, references=REFERENCES, defective_share=0.5, seed=5)
    line = render_line(contract.layout, (SHAPE,), contract.drawings, virtual)
    return [(cv2.imdecode(np.frombuffer(each.jpeg, np.uint8), cv2.IMREAD_COLOR), each) for each in line]


def vary(picture: np.ndarray, number: int) -> bytes:
    """Return a picture with its own shift, uneven light and noise, as JPEG."""
    random = np.random.default_rng([9, number])
    shift = np.array([[1, 0, random.uniform(-2, 2)], [0, 1, random.uniform(-2, 2)]], np.float32)
    moved = cv2.warpAffine(picture, shift, SIZE, borderMode=cv2.BORDER_REPLICATE)
    light = cv2.resize(random.normal(0, 5, (16, 16)).astype(np.float32), SIZE, interpolation=cv2.INTER_CUBIC)
    noise = random.normal(0, 2, moved.shape[:2]).astype(np.float32)
    changed = (moved + (light + noise)[..., None]).clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", changed, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()


def model_of(measured: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Fit a fixed part and a part per capture to each step, by least squares of the relative error.

    Memory is fitted to those numbers of captures that fill two windows (`manifests.WINDOW`); below, it grows with the
    windows.

    Returns:
        Step -> `fixed`, `per_capture`, and what they make of `PREDICTED` captures; seconds, and MB for memory.
    """
    model = {}
    for step in (*STAGES, *RUNS, "ten more"):
        for name in ("seconds", "memory_mb", "data_mb"):
            values = {count: steps[step][name] for count, steps in measured.items() if name in steps.get(step, {})}
            if name == "memory_mb":
                values = {count: value for count, value in values.items() if count > 2 * WINDOW}
            if len(values) > 1:
                counts, figures = np.array(list(values), float), np.array(list(values.values()), float)
                per_capture, fixed = np.polyfit(counts, figures, 1, w=1 / figures.clip(0.1))
                predicted = fixed + per_capture * PREDICTED
                figures_of_model = {"fixed": fixed, "per_capture": per_capture, str(PREDICTED): predicted}
                model[f"{step}: {name}"] = {key: float(f"{value:.4g}") for key, value in figures_of_model.items()}
    return model


def as_markdown(result: dict) -> str:
    """Return the figures as tables."""
    measured, model = result["captures"], result["model"]
    counts = [*measured]
    steps = (*STAGES, *RUNS, "ten more")
    lines = [
        "# Cost of a number of captures",
        "",
        f"Made by `python benchmarks/scale.py FOLDER` on {result['machine']}; commit {result['commit'][:7]}.",
        f"Captures of {SIZE[0]} x {SIZE[1]} px; archives: {', '.join(str(shards_for(count)) for count in counts)}.",
        "",
        "Seconds (milliseconds per capture):",
        "",
        f"| step | {' | '.join(f'{count:,}' for count in counts)} | model | {PREDICTED:,} by the model |",
        f"| --- | {'--- | ' * len(counts)}--- | --- |",
    ]
    for step in steps:
        seconds = {count: measured[count][step]["seconds"] for count in counts if step in measured[count]}
        shown = {count: f"{value:,.1f} ({value / count * 1000:.2f})" for count, value in seconds.items()}
        cells = [shown.get(count, "") for count in counts]
        lines.append(f"| {step} | {' | '.join(cells)} | {_words(model, f'{step}: seconds', 's')} |")
    further = [*itertools.pairwise(counts)]
    lines += [
        "",
        "Milliseconds of each further capture, without what a start costs:",
        "",
        f"| stage | {' | '.join(f'{few:,} to {many:,}' for few, many in further)} |",
        f"| --- |{' --- |' * len(further)}",
    ]
    for stage in STAGES:
        seconds_for = {count: measured[count][stage]["seconds"] for count in counts}
        cells = [f"{(seconds_for[many] - seconds_for[few]) / (many - few) * 1000:.2f}" for few, many in further]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Highest memory of a stage in MB (its first process); model of numbers above {2 * WINDOW:,} (two windows):",
        "",
        f"| stage | {' | '.join(f'{count:,}' for count in counts)} | model | {PREDICTED:,} by the model |",
        f"| --- | {'--- | ' * len(counts)}--- | --- |",
    ]
    for step in STAGES:
        cells = [f"{measured[count][step]['memory_mb']:,.0f}" for count in counts]
        lines.append(f"| {step} | {' | '.join(cells)} | {_words(model, f'{step}: memory_mb', 'MB')} |")
    return "\n".join([*lines, ""])


def _words(model: dict, key: str, unit: str) -> str:
    if key not in model:
        return " | "
    fit = model[key]
    formula = f"{fit['fixed']:.3g} {unit} + {fit['per_capture'] * 1000:.3g} {unit} / 1,000"
    return f"{formula} | {fit[str(PREDICTED)]:,.0f} {unit}"


if __name__ == "__main__":
    main()
