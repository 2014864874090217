"""The station under load, measured on this machine.

    python benchmarks/station.py [--root PROJECT] [--inspections 2000]

Needs a project with a registered version, as `dvc repro` leaves it. `pinspect station` serves it, once as it is shipped
and once with batches of one, each in a temporary folder that shares the project's data and registry and has a results
table of its own. Clients send captures of data/captures/images, one a request, each the next as soon as it has its
answer, from this process: they share the machine's cores with the stations.

Writes benchmarks/results/station.json: captures a second and latency at 1, 4 and 16 clients; what batching gives at 16
clients, the two stations in turn; resident memory over many inspections; and whether any result was lost or doubled.
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from mlflow_server import free_port, wait_for  # noqa: E402

RESULT = ROOT / "benchmarks/results/station.json"
CLIENTS = (1, 4, 16)
A_ROUND = 160  # captures; those of one client a quarter of it
ROUNDS = 3
MEMORY_STEP = 200  # inspections
GOAL = 3.0
_SECONDS_TO_ANSWER = 300


@dataclass(frozen=True)
class Station:
    """A station that runs. address: its URL. process: the one that was started. answered: ids of its results."""

    address: str
    process: psutil.Process
    answered: list[str]

    def memory(self) -> dict[str, float]:
        """Resident memory (MB) of the station's own process and of the model process."""
        children = self.process.children(recursive=True)
        model = max(children, key=lambda child: child.memory_info().rss)
        return {"station": _megabytes(self.process), "model": _megabytes(model)}


@contextlib.contextmanager
def station(root: Path, folder: Path, **settings: object) -> Iterator[Station]:
    """`pinspect station` for the project in `root`, with `settings` in its section of settings.yaml."""
    (folder / "data").mkdir(parents=True)
    for path in root.iterdir():
        if path.name not in ("data", "settings.yaml"):
            (folder / path.name).symlink_to(path)
    for path in (root / "data").iterdir():
        if path.name != "station":
            (folder / "data" / path.name).symlink_to(path)
    port = free_port()
    content = yaml.safe_load((root / "settings.yaml").read_text())
    # Neither the rate nor the length of the queue is what is measured.
    content["station"] |= {"port": port, "requests_a_minute": 1_000_000} | settings
    (folder / "settings.yaml").write_text(yaml.safe_dump(content))
    with (folder / "station.log").open("w") as log:
        started = subprocess.Popen(
            [str(Path(sys.executable).with_name("pinspect")), "station"], cwd=folder, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/health", started, folder / "station.log")
        yield Station(address, psutil.Process(started.pid), [])
    finally:
        started.terminate()
        started.wait()


async def load(target: Station, captures: Sequence[Path], clients: int, count: int) -> dict:
    """`count` captures by `clients` that never pause: captures a second, and quantiles of the latency (s)."""
    waiting, seconds = iter(list(itertools.islice(itertools.cycle(captures), count))), []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=target.address, timeout=_SECONDS_TO_ANSWER, limits=limits) as http:

        async def ask() -> None:
            for path in waiting:
                began = time.perf_counter()
                answer = await http.post("/inspect", files={"images": (path.name, path.read_bytes())})
                seconds.append(time.perf_counter() - began)
                (result,) = answer.raise_for_status().json()["results"]
                if result["file"] != path.name or result["error"]:
                    raise AssertionError(f"{path.name} was answered with {result}")
                target.answered.append(result["id"])

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        wall = time.perf_counter() - began
    quantiles = {f"p{share}_s": round(float(np.quantile(seconds, share / 100)), 4) for share in (50, 95, 99)}
    return {"captures": count, "captures_per_second": round(count / wall, 3), **quantiles}


def batching(shipped: Station, single: Station, captures: Sequence[Path]) -> dict:
    """Captures a second of both stations at the most clients, in turn, and the ratio of their medians."""
    rates: dict[str, list[float]] = {"shipped": [], "batches of one": []}
    for number in range(ROUNDS):
        pair = [("shipped", shipped), ("batches of one", single)]
        for name, target in pair[:: 1 if number % 2 else -1]:
            found = asyncio.run(load(target, captures, CLIENTS[-1], A_ROUND // 2))
            rates[name].append(found["captures_per_second"])
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = round(median["shipped"] / median["batches of one"], 2)
    return {"clients": CLIENTS[-1], "captures_per_second": rates, "ratio": ratio, "goal": GOAL, "meets": ratio >= GOAL}


def memory(target: Station, captures: Sequence[Path], inspections: int) -> list[dict]:
    """Resident memory (MB) at the start, and after every `MEMORY_STEP` of so many inspections."""
    found = [{"inspections": 0, **target.memory()}]
    for done in range(MEMORY_STEP, inspections + 1, MEMORY_STEP):
        rate = asyncio.run(load(target, captures, CLIENTS[-1], MEMORY_STEP))["captures_per_second"]
        found.append({"inspections": done, **target.memory(), "captures_per_second": rate})
    return found


def accounted(target: Station) -> dict:
    """Whether the results table has every answered inspection once, and nothing else."""
    stored: list[str] = []
    with httpx.Client(base_url=target.address, timeout=60) as http:
        page: dict = {"next": None}
        while page["next"] or not stored:
            asked = {"limit": 100} | ({"before": page["next"]} if page["next"] else {})
            page = http.get("/results", params=asked).raise_for_status().json()
            stored += [result["id"] for result in page["results"]]
    return {
        "answered": len(target.answered),
        "stored": len(stored),
        "lost": len(set(target.answered) - set(stored)),
        "doubled": len(stored) - len(set(stored)) + len(target.answered) - len(set(target.answered)),
        "unasked": len(set(stored) - set(target.answered)),
    }


def mean_batch(target: Station) -> float:
    health = httpx.get(f"{target.address}/health", timeout=60).json()
    return round(health["mean_batch"], 2)


def _megabytes(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 1e6, 1)


def _machine() -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="a project with a registered version")
    parser.add_argument("--captures", type=Path, default=ROOT / "data/captures/images", help="what the clients send")
    parser.add_argument("--inspections", type=int, default=2000, help="over which memory is watched")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    root, captures = given.root.resolve(), sorted(given.captures.iterdir())
    found = _machine()
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        shipped, single = Path(folder) / "shipped", Path(folder) / "single"
        with station(root, shipped) as batched, station(root, single, batch_size=1) as alone:
            for target in (batched, alone):
                asyncio.run(load(target, captures, CLIENTS[-1], CLIENTS[-1]))  # what is done once a process
            found["load"] = {
                str(clients): asyncio.run(load(batched, captures, clients, A_ROUND // (4 if clients == 1 else 1)))
                for clients in CLIENTS
            }
            found["batching"] = batching(batched, alone, captures) | {"mean_batch": mean_batch(batched)}
            found["results"] = {"shipped": accounted(batched), "batches of one": accounted(alone)}
        with station(root, Path(folder) / "long") as batched:
            asyncio.run(load(batched, captures, CLIENTS[-1], CLIENTS[-1]))
            found["memory"] = memory(batched, captures, given.inspections)
            found["results"]["long"] = accounted(batched)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
