"""Measure the station under load: `python benchmarks/station.py [--root PROJECT] [--inspections 2000]`.

Needs a project with a registered version (`dvc repro`). Two stations serve it, one with the shipped settings and one
with batches of one capture, each in a temporary folder that shares the project's data and registry and has its own
results table. Clients in this process send captures of `data/captures/images`, one per request and without pauses; they
share the cores with the stations.

Writes benchmarks/results/station.json: captures per second and latency at 1, 4 and 16 clients, latency of the page
meanwhile, gain from batching at 16 clients, seconds without a model after its process was killed, resident memory over
many inspections, and whether any result was lost or duplicated.

With `--before PROJECT`, a checkout of an earlier commit in which `dvc repro` has registered a version, stations of both
commits take turns under the same load, and the result goes to benchmarks/results/station_compared.json. It takes about
four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.mlflow_server import free_port, wait_for

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/station.json"
COMPARED = RESULT.with_name("station_compared.json")
CLIENTS = (1, 4, 16)
CAPTURES_PER_ROUND = 160  # a quarter of it for one client
ROUNDS = 3
COMPARED_ROUNDS = 2
MEMORY_STEP = 200  # inspections
GOAL = 3.0  # gain from batching
PAGE = "/history"
_PAGE_PAUSE_SECONDS = 0.3
_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Station:
    """A running station.

    Attributes:
        address: Its URL.
        process: The page's process, parent of the model process.
        answered: Ids of its results.
    """

    address: str
    process: psutil.Process
    answered: list[str]

    def model_process(self) -> psutil.Process:
        """Return the child with the most memory."""
        return max(self.process.children(recursive=True), key=lambda child: child.memory_info().rss)

    def memory(self) -> dict[str, float]:
        """Measure the resident memory (MB) of both processes."""
        return {"station": _megabytes(self.process), "model": _megabytes(self.model_process())}


@contextlib.contextmanager
def station(root: Path, folder: Path, **settings: object) -> Iterator[Station]:
    """Run `pinspect station` for a project in `folder`, again if it has run there, with changed `settings`."""
    if not folder.exists():
        (folder / "data").mkdir(parents=True)
        for path in root.iterdir():
            if path.name not in ("data", "settings.yaml"):
                (folder / path.name).symlink_to(path)
        for path in (root / "data").iterdir():
            if path.name != "station":
                (folder / "data" / path.name).symlink_to(path)
    source = root / "src" if (root / "src").is_dir() else ROOT / "src"
    port = free_port()
    content = yaml.safe_load((root / "settings.yaml").read_text())
    content["station"] |= {"port": port, "requests_a_minute": 1_000_000} | settings
    (folder / "settings.yaml").write_text(yaml.safe_dump(content))
    environment = os.environ | {"PYTHONPATH": str(source.resolve())}
    with (folder / "station.log").open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("pinspect")), "station"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", process, folder / "station.log")
        yield Station(address, psutil.Process(process.pid), [])
    finally:
        process.terminate()
        process.wait()


async def load(target: Station, captures: Sequence[Path], clients: int, count: int) -> dict:
    """Send `count` captures without pauses; return captures per second and quantiles of latencies (s)."""
    waiting = iter(list(itertools.islice(itertools.cycle(captures), count)))
    inspections: list[float] = []
    pages: list[float] = []
    limits = httpx.Limits(max_connections=clients + 1)
    async with httpx.AsyncClient(base_url=target.address, timeout=_TIMEOUT_SECONDS, limits=limits) as http:

        async def inspect() -> None:
            for path in waiting:
                start = time.perf_counter()
                answer = await http.post("/inspect", files={"images": (path.name, path.read_bytes())})
                inspections.append(time.perf_counter() - start)
                (result,) = answer.raise_for_status().json()["results"]
                if result["file"] != path.name or result["error"]:
                    raise AssertionError(f"{path.name}: unexpected result {result}")
                target.answered.append(result["id"])

        async def read_page() -> None:
            while True:
                start = time.perf_counter()
                (await http.get(PAGE)).raise_for_status()
                pages.append(time.perf_counter() - start)
                await asyncio.sleep(_PAGE_PAUSE_SECONDS)

        start = time.perf_counter()
        reader = asyncio.create_task(read_page())
        await asyncio.gather(*(inspect() for _ in range(clients)))
        wall = time.perf_counter() - start
        reader.cancel()
    return {
        "captures": count,
        "captures_per_second": round(count / wall, 3),
        **_quantiles(inspections, "", (50, 95, 99)),
        **_quantiles(pages, "page_", (50, 95)),
    }


def batching(shipped: Station, single: Station, captures: Sequence[Path]) -> dict:
    """Compare captures per second of both stations at the most clients, in turns; `ratio` is that of the medians."""
    rates: dict[str, list[float]] = {"shipped": [], "batches of one": []}
    for number in range(ROUNDS):
        pair = [("shipped", shipped), ("batches of one", single)]
        for name, target in pair[:: 1 if number % 2 else -1]:
            measured = asyncio.run(load(target, captures, CLIENTS[-1], CAPTURES_PER_ROUND // 2))
            rates[name].append(measured["captures_per_second"])
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = round(medians["shipped"] / medians["batches of one"], 2)
    return {"clients": CLIENTS[-1], "captures_per_second": rates, "ratio": ratio, "goal": GOAL, "meets": ratio >= GOAL}


def compare(sides: dict[str, Station], captures: Sequence[Path]) -> dict:
    """Load the stations `before` and `now` in turns; return medians of all rounds, their ratios, and memory (MB)."""
    for target in sides.values():
        asyncio.run(load(target, captures, CLIENTS[-1], 2 * CLIENTS[-1]))  # warm up
    compared: dict[str, dict] = {}
    for clients in CLIENTS:
        measured: dict[str, list[dict]] = {side: [] for side in sides}
        for number in range(COMPARED_ROUNDS):
            for side in list(sides)[:: 1 if number % 2 else -1]:
                count = CAPTURES_PER_ROUND // (4 if clients == 1 else 1)
                measured[side].append(asyncio.run(load(sides[side], captures, clients, count)))
        medians = {
            side: {
                name: round(statistics.median(each[name] for each in rounds), 4)
                for name in ("captures_per_second", "p50_s", "p95_s")
            }
            for side, rounds in measured.items()
        }
        ratios = {name: round(medians["now"][name] / value, 3) for name, value in medians["before"].items()}
        compared[str(clients)] = medians | {"ratio": ratios}
    memory = {side: target.memory() for side, target in sides.items()}
    return {"rounds": COMPARED_ROUNDS, "clients": compared, "memory_mb": memory}


def crash(target: Station) -> dict[str, float]:
    """Kill the model process; return the slowest page (s) until a model answers again, and the seconds until then."""
    target.model_process().kill()
    start, slowest, is_up = time.perf_counter(), 0.0, False
    with httpx.Client(base_url=target.address, timeout=_TIMEOUT_SECONDS) as http:
        while not is_up:
            page = time.perf_counter()
            http.get(PAGE).raise_for_status()
            slowest = max(slowest, time.perf_counter() - page)
            is_up = http.get("/health").json()["version"] is not None
    return {"seconds_without_model": round(time.perf_counter() - start, 2), "slowest_page_s": round(slowest, 3)}


def memory(target: Station, captures: Sequence[Path], inspections: int) -> list[dict]:
    """Measure resident memory (MB) at the start and after every `MEMORY_STEP` inspections."""
    measured: list[dict] = [{"inspections": 0, **target.memory()}]
    for done in range(MEMORY_STEP, inspections + 1, MEMORY_STEP):
        rate = asyncio.run(load(target, captures, CLIENTS[-1], MEMORY_STEP))["captures_per_second"]
        measured.append({"inspections": done, **target.memory(), "captures_per_second": rate})
    return measured


def accounted(target: Station) -> dict:
    """Check that the results table has every answered inspection once, and no others."""
    stored: list[str] = []
    with httpx.Client(base_url=target.address, timeout=60) as http:
        page: dict = {"next": None}
        while page["next"] or not stored:
            query = {"limit": 100} | ({"before": page["next"]} if page["next"] else {})
            page = http.get("/results", params=query).raise_for_status().json()
            stored += [result["id"] for result in page["results"]]
    return {
        "answered": len(target.answered),
        "stored": len(stored),
        "lost": len(set(target.answered) - set(stored)),
        "duplicated": len(stored) - len(set(stored)) + len(target.answered) - len(set(target.answered)),
        "unknown": len(set(stored) - set(target.answered)),
    }


def mean_batch(target: Station) -> float:
    """Return the mean number of captures per forward pass."""
    health = httpx.get(f"{target.address}/health", timeout=60).json()
    return round(health["mean_batch"], 2)


def _quantiles(seconds: Sequence[float], prefix: str, percents: Sequence[int]) -> dict[str, float]:
    return {f"{prefix}p{percent}_s": round(float(np.quantile(seconds, percent / 100)), 4) for percent in percents}


def _megabytes(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 1e6, 1)


def _commit(checkout: Path) -> str:
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    source = (checkout / "src").resolve()
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False).stdout.strip()


def _machine() -> dict:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(ROOT),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description="Measure the station under load.")
    parser.add_argument("--root", type=Path, default=ROOT, help="a project with a registered version")
    parser.add_argument("--captures", type=Path, default=ROOT / "data/captures/images", help="images to send")
    parser.add_argument("--inspections", type=int, default=2000, help="number of inspections for the memory")
    parser.add_argument("--before", type=Path, help="a project of an earlier commit, with a registered version")
    parser.add_argument("--out", type=Path, help="file to write")
    options = parser.parse_args()
    out = options.out or (COMPARED if options.before else RESULT)
    root, captures = options.root.resolve(), sorted(options.captures.iterdir())
    measured = _machine()
    if options.before:
        before = options.before.resolve()
        measured |= {"before": _commit(before)}
        with (
            tempfile.TemporaryDirectory(prefix="pinspect-") as folder,
            station(before, Path(folder) / "before") as earlier,
            station(root, Path(folder) / "now") as present,
        ):
            measured |= compare({"before": earlier, "now": present}, captures)
            measured["results"] = {"before": accounted(earlier), "now": accounted(present)}
        _write(out, measured)
        return
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        shipped, single = Path(folder) / "shipped", Path(folder) / "single"
        with station(root, shipped) as batched, station(root, single, batch_size=1) as alone:
            for target in (batched, alone):
                asyncio.run(load(target, captures, CLIENTS[-1], CLIENTS[-1]))  # warm up
            measured["load"] = {
                str(clients): asyncio.run(
                    load(batched, captures, clients, CAPTURES_PER_ROUND // (4 if clients == 1 else 1))
                )
                for clients in CLIENTS
            }
            measured["batching"] = batching(batched, alone, captures) | {"mean_batch": mean_batch(batched)}
            measured["crash"] = crash(batched)
            measured["results"] = {"shipped": accounted(batched), "batches of one": accounted(alone)}
        if options.inspections:
            with station(root, Path(folder) / "long") as batched:
                asyncio.run(load(batched, captures, CLIENTS[-1], CLIENTS[-1]))
                measured["memory"] = memory(batched, captures, options.inspections)
                measured["results"]["long"] = accounted(batched)
    _write(out, measured)


def _write(out: Path, measured: dict) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
