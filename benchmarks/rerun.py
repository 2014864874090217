"""Measure which stages run again after an edit, and how long they take.

    python benchmarks/rerun.py           # runs the cheap ones, asks DVC which stages the others run again
    python benchmarks/rerun.py --full    # runs all of them (retrains several times)

Without --full, the seconds of an edit that is not cheap are the sum of its stages' durations in the last whole run of
this checkout (`build/runs/*.json`): for added captures an upper bound, since stages skip what they have already made.
Every edit is made in a temporary clone of this checkout, which shares its DVC cache, so the pipeline must have run here
(`make demo`) and the work must be committed. Writes benchmarks/results/rerun.json and prints a table for docs/LOG.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pinspect.core.params import VirtualParams, load_params
from pinspect.core.runs import read_run_facts
from pinspect.virtual_line import render_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/rerun.json"
NEW_CAPTURES = 10


@dataclass(frozen=True)
class Edit:
    """An edit of the project; `cheap` ones are run without --full."""

    name: str
    apply: Callable[[Clone], object]
    cheap: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an edit costs: the stages that run again, and the seconds; `measured` as the duration of `dvc repro`, or as
    the sum of the stages' durations in the last whole run."""

    edit: str
    stages: list[str]
    seconds: float
    measured: bool


class Clone:
    """A temporary clone of this checkout with the outputs of its last run."""

    def __init__(self, root: Path):
        self.root = root
        subprocess.run(["git", "clone", "--quiet", ROOT, root], check=True)
        self.run("dvc", "config", "--local", "cache.dir", str(ROOT / ".dvc/cache"))
        self.reset()

    def run(self, *command: str) -> str:
        """Run a command in the clone and return what it printed."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(command, check=False, cwd=self.root, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def reset(self) -> None:
        """Undo an edit and what ran after it."""
        self.run("git", "checkout", "--quiet", "--", ".")
        self.run("git", "clean", "--quiet", "--force", "-d", "data/captures")
        self.run("dvc", "checkout", "--quiet", "--force", "dvc.yaml")  # lines/ have caches of their own
        # Both are of this machine: DVC does not cache them.
        shutil.copy(ROOT / "reports/registration.json", self.root / "reports/registration.json")
        shutil.rmtree(self.root / "mlruns", ignore_errors=True)
        if (ROOT / "mlruns").is_dir():
            shutil.copytree(ROOT / "mlruns", self.root / "mlruns")

    def stale(self) -> list[str]:
        """Return the stages that DVC would run: changed ones, and all that follow from them."""
        code = (
            "import json; from pathlib import Path; from pinspect.cli.status import stage_states; "
            "print(json.dumps(stage_states(Path())))"
        )
        states = json.loads(self.run(sys.executable, "-c", f"import sys; sys.path.insert(0, 'src'); {code}"))
        return [stage for stage, state in states.items() if state["state"] != "unchanged"]

    def repro(self) -> tuple[list[str], float]:
        """Run `dvc repro`; return the stages that ran and the seconds."""
        begun = time.perf_counter()
        output = self.run("dvc", "repro")
        seconds = time.perf_counter() - begun
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")], seconds

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace the first `old` in a file by `new`."""
        path = self.root / name
        content = path.read_text(encoding="utf-8")
        if old not in content:
            sys.exit(f"benchmarks/rerun.py: {name} has no {old!r}; correct the edit")
        path.write_text(content.replace(old, new, 1), encoding="utf-8")


def edit_core(clone: Clone) -> None:
    """Reword a docstring in the room core."""
    clone.replace("src/pinspect/core/layout.py", '"""The pin layout', '"""The reworded pin layout')


def edit_core_and_commit(clone: Clone) -> None:
    """Reword the docstring, and record with DVC that no result has changed."""
    edit_core(clone)
    clone.run("dvc", "commit", "--force", "--quiet", "dvc.yaml")


def add_captures(clone: Clone) -> None:
    """Add captures of another virtual line by `pinspect add`."""
    params = load_params(ROOT / "params.yaml")
    contract = params.contract()
    line = VirtualParams(train=NEW_CAPTURES, test=0, references=2, defective_share=0.5, seed=4711)
    captures = [
        capture
        for capture in render_line(contract.layout, contract.shapes, contract.drawings, line)
        if capture.role == "inspected"
    ][:NEW_CAPTURES]
    columns = ("file", "shape", "judgement", "defect_mode", "defect_position", "role")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for number, capture in enumerate(captures):
                label = [getattr(capture, column) for column in columns[1:]]
                writer.writerow([f"new-{number}.jpg", *label])
                (folder / f"new-{number}.jpg").write_bytes(capture.jpeg)
        clone.run("pinspect", "add", name)


EDITS = (
    Edit(
        "a sentence of the report's template",
        lambda clone: clone.replace("src/pinspect/evaluation/templates/report.html.j2", "</body>", "<!-- --></body>"),
        cheap=True,
    ),
    Edit("a setting of the station", lambda clone: clone.replace("settings.yaml", "port: 8000", "port: 8001"), True),
    Edit(
        "a rule of promotion",
        lambda clone: clone.replace("settings.yaml", "minimum_defective: 20", "minimum_defective: 30"),
        cheap=True,
    ),
    Edit("a docstring in core, then `dvc commit`", edit_core_and_commit, cheap=True),
    Edit("a docstring in core", edit_core),
    Edit("a parameter of NSOARTC", lambda clone: clone.replace("params.yaml", "  size: 9 ", "  size: 11 ")),
    Edit(
        "a training parameter",
        lambda clone: clone.replace("params.yaml", "learning_rate: 0.0015", "learning_rate: 0.0014"),
    ),
    Edit(f"{NEW_CAPTURES} captures added", add_captures),
)


def measure(clone: Clone, edit: Edit, full: bool) -> Outcome:
    """Apply an edit, find or run the stages, and undo all of it."""
    edit.apply(clone)
    measured = full or edit.cheap
    if measured:
        stages, seconds = clone.repro()
    else:
        stages = clone.stale()
        seconds = sum(last_duration(stage) for stage in stages)
    clone.reset()
    return Outcome(edit.name, stages, round(seconds, 1), measured)


def last_duration(stage: str) -> float:
    """Return the seconds that a stage took when it last ran in this checkout."""
    seconds = read_run_facts(ROOT, stage).get("stage_seconds")
    if not isinstance(seconds, float):
        sys.exit(f"build/runs/{stage}.json has no stage_seconds; run `dvc repro --force` here first")
    return seconds


def print_table(outcomes: list[Outcome]) -> None:
    """Print the outcomes as a Markdown table."""
    print("| edit | stages that run again | seconds |")
    print("| --- | --- | --- |")
    for outcome in outcomes:
        sign = "" if outcome.measured else "sum of stages: "
        print(f"| {outcome.edit} | {', '.join(outcome.stages) or 'none'} | {sign}{outcome.seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure which stages run again after an edit.")
    parser.add_argument("--full", action="store_true", help="Run every edit for real; this retrains several times.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinspect-rerun-") as place:
        clone = Clone(Path(place) / "clone")
        if stale := clone.stale():
            sys.exit(f"the stages {', '.join(stale)} are not up to date here; run dvc repro and commit dvc.lock first")
        outcomes = [measure(clone, edit, arguments.full) for edit in EDITS]
        commit = clone.run("git", "rev-parse", "--short", "HEAD").strip()
    content = {
        "commit": commit,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "edits": [asdict(outcome) for outcome in outcomes],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print_table(outcomes)


if __name__ == "__main__":
    main()
