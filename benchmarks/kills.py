"""Kills stages, dvc, `pinspect add`, `promote` and the station at random moments, and checks what follows.

    python -m benchmarks.kills [KILLS]     # 40 kills, by turns

After each kill -9: nothing keeps writing; the next run of the same command completes at the first try; `dvc status` is
clean; no partial file, no row without an image, no image without a row, no half version is left. Writes
benchmarks/results/kills.json.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import requests
from mlflow import MlflowClient

from pinspect.core import environment
from pinspect.station.results import ResultsTable
from pinspect.station.settings import load_station_settings
from tests.support.checkout import Checkout, captures, make_prepared
from tests.support.sample import drop, read_labels
from tests.support.station_stack import station

RESULT = Path(__file__).parent / "results/kills.json"
STAGES = ("raw", "dst", "composite", "chat", "check", "train", "answer", "evaluate", "register")
VICTIMS = (*STAGES, "dvc", "add", "promote", "station")
REPRO = (sys.executable, "-m", "dvc", "repro")


class Kills:
    """Kills in one checkout.

    Args:
        checkout: A checkout whose stages have all run.
        seed: Seed of the moments.
    """

    def __init__(self, checkout: Checkout, seed: int = 0):
        self._checkout, self._random = checkout, random.Random(seed)
        folder = checkout.root / "data/captures"
        self._labels = (folder / "labels.csv").read_bytes()
        self._images = {path.name for path in (folder / "images").iterdir()}
        self.hits: Counter[str] = Counter()  # by victim: kills, without those of processes that had ended already
        self._seconds: dict[str, float] = {}  # how long each command takes undisturbed

    def kill(self, victim: str) -> list[str]:
        """Kill a victim at a random moment, and return what was wrong afterwards."""
        if victim == "station":
            return self._kill_station()
        self._prepare(victim)
        command = self._command(victim)
        if victim not in self._seconds:
            start = time.monotonic()
            self._checkout.run(*command)
            self._seconds[victim] = time.monotonic() - start
            self._prepare(victim)
        process = subprocess.Popen(
            command,
            cwd=self._checkout.root,
            env=self._checkout.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with suppress(psutil.NoSuchProcess):  # it was faster
            target = self._target(victim, process)
            time.sleep(self._random.uniform(0, 0.7) * self._seconds[victim])
            target.kill()
            self.hits[victim] += 1
        process.wait()
        return self._writers_left() + self._next_run(victim, command)

    def _prepare(self, victim: str) -> None:
        """Take added captures out again, and make work: a line more in a stage's script, or captures to add."""
        folder = self._checkout.root / "data/captures"
        (folder / "labels.csv").write_bytes(self._labels)
        for path in (folder / "images").iterdir():
            if path.name not in self._images:
                path.unlink()
        for stage in STAGES if victim == "dvc" else (victim,) if victim in STAGES else ():
            with (self._checkout.root / f"stages/{stage}.py").open("a", encoding="utf-8") as script:
                script.write("# changed\n")
        if victim == "add":
            shutil.rmtree(self._checkout.root / "new", ignore_errors=True)
            drop(self._checkout.root / "new", captures()[11:])

    def _command(self, victim: str) -> tuple[str, ...]:
        match victim:
            case "dvc":
                return REPRO
            case "add" | "promote":
                words = ["add", "new"] if victim == "add" else ["promote"]
                return (str(Path(sys.executable).with_name("pinspect")), *words)
            case _:
                return (*REPRO, "--single-item", victim)

    def _target(self, victim: str, process: subprocess.Popen) -> psutil.Process:
        """Return the process to kill: the stage itself, once it has started, or the command."""
        while victim in STAGES and process.poll() is None:
            for each in self._checkout.processes():
                with suppress(psutil.Error):
                    if f"stages.{victim}" in each.cmdline():
                        return each
            time.sleep(0.02)
        return psutil.Process(process.pid)

    def _writers_left(self) -> list[str]:
        end = time.monotonic() + 60
        while self._checkout.processes() and time.monotonic() < end:
            time.sleep(0.1)
        before = self._checkout.files()
        time.sleep(1)
        left = [" ".join(process.cmdline()[:4]) for process in self._checkout.processes()]
        written = [name for name, when in self._checkout.files().items() if before.get(name) != when]
        return [f"still runs: {name}" for name in left] + [f"written by an orphan: {name}" for name in written]

    def _next_run(self, victim: str, command: tuple[str, ...]) -> list[str]:
        root = self._checkout.root
        done = self._checkout.run(*(REPRO if victim in (*STAGES, "dvc") else command))
        refused = victim == "promote" and done.returncode == 3  # an adapter of two steps is not good enough
        fine = not done.returncode or refused
        problems = [] if fine else [f"{victim}: {(done.stdout + done.stderr)[-600:]}"]
        if victim in (*STAGES, "dvc") and (stale := self._checkout.stale()):
            problems.append(f"not up to date: {stale[:300]}")
        problems += [f"left over: {path}" for path in root.rglob("*.partial") if ".dvc" not in path.parts]
        rows = {row["file"] for row in read_labels(root / "data/captures")}
        images = {path.name for path in (root / "data/captures/images").iterdir()}
        problems += [f"row or image alone: {name}" for name in {Path(row).name for row in rows} ^ images]
        return problems + self._half_versions()

    def _half_versions(self) -> list[str]:
        uri = f"sqlite:///{self._checkout.root}/mlruns/mlflow.db"
        client = MlflowClient(uri, uri)
        versions = client.search_model_versions("name = 'pin-inspector'")
        half = [each for each in versions if client.get_run(each.run_id).info.status != "FINISHED"]
        half += [each for each in versions if "evaluation_sha256" not in each.tags]
        return [f"half registered: version {each.version}" for each in half]

    def _kill_station(self) -> list[str]:
        """Kill the station's own process during uploads; its other processes have to end by themselves."""
        root = self._checkout.root
        photographs = [each.jpeg for each in captures()[3:]]
        answered: list[str] = []
        with station(root) as running:

            def upload() -> None:
                with suppress(requests.RequestException):
                    for number in range(10_000):
                        files = {"images": (f"{number}.jpg", photographs[number % len(photographs)])}
                        response = requests.post(f"{running.url}/inspect", files=files, timeout=600)
                        answered.extend(record["id"] for record in response.json()["results"])

            thread = threading.Thread(target=upload)
            thread.start()
            time.sleep(self._random.uniform(0.5, 4))
            running.process.kill()
            running.process.wait()
            self.hits["station"] += 1
            thread.join()
            problems = self._writers_left()
        with station(root):
            known = ResultsTable.of_project(root, load_station_settings(root)).known(answered)
        lost = [f"answered, not stored: {id}" for id in set(answered) - known]
        return problems + lost + ([] if answered else ["the station answered nothing before the kill"])


def main(kills: str = "40") -> None:
    """Kill by turns, and write the result."""
    environment.apply()
    faults: dict[str, list[str]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pinspect-kills-") as folder:
        root = Path(folder) / "line"
        make_prepared(root)
        checkout = Checkout(root)
        work = Kills(checkout)
        for victim in itertools.cycle(VICTIMS):
            if (number := sum(work.hits.values())) >= int(kills):
                break
            if problems := work.kill(victim):
                faults[f"{number + 1}: {victim}"] = problems
            print(f"{number + 1} of {kills}: {victim}: {'; '.join(problems) or 'no fault'}", flush=True)
    result = {"kills": dict(work.hits), "faults": faults, "seconds": round(time.monotonic() - start)}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main(*sys.argv[1:])
