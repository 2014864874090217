"""Races two checkouts and two stations that share a real PostgreSQL server, and counts what went wrong.

    python -m benchmarks.postgres [PART ...]     # stations, results, direct, server, no-lock; all by default

`stations`: two stations of this checkout's registered version (`dvc repro`) inspect 2,000 captures each for eight
clients; one is killed halfway and started again, and its clients repeat what was not answered. `results`: two processes
write 2,000 results each as stations do, with records made beforehand; one is killed halfway and started again.
Promotions, 20 rounds each: `direct`, the registry is the database; `server`, an MLflow server stands in front of it,
and `register.lock_database` names it; `no-lock`, the server alone.

Writes its parts of benchmarks/results/postgres.json.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from mlflow import MlflowClient

from benchmarks.station import station
from pinspect.core import environment
from pinspect.core.postgres import with_driver
from pinspect.station.results import ResultsTable
from pinspect.station.settings import load_station_settings
from tests.support.evaluated_project import make_project
from tests.support.mlflow_server import running_server
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.promotion_race import NAMES, promoters, race, register_two
from tests.support.result_writers import write_from_two
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/postgres.json"
WAYS = ("direct", "server", "no-lock")
ROUNDS, RESULTS, CLIENTS = 20, 2000, 4


@contextlib.contextmanager
def registry(way: str, server: PostgresServer, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the section `register` of both checkouts for one way to share a registry."""
    url = server.new_database()
    if way == "direct":
        client = MlflowClient(with_driver(url), with_driver(url))
        client.create_experiment("pinspect", artifact_location=(folder / "artifacts").as_uri())
        yield {"tracking_uri": url}
        return
    with running_server(folder, with_driver(url)) as uri:
        yield {"tracking_uri": uri} | ({"lock_database": url} if way == "server" else {})


def promotions(way: str, server: PostgresServer, evaluated: Path, rounds: int) -> dict:
    """Race promotions of two checkouts, and return the counts."""
    with tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as name:
        folder = Path(name)
        project = shutil.copytree(evaluated, folder / "project")
        with registry(way, server, folder) as register:
            roots = register_two(project, folder, **register)
            uri = with_driver(register["tracking_uri"])
            faults, winners, seconds = [], Counter(), []
            with promoters(roots) as processes:
                for _ in range(rounds):
                    start = time.monotonic()
                    answers, wrong = race(MlflowClient(uri, uri), processes)
                    seconds.append(time.monotonic() - start)
                    winners.update(answer["promoted_by"] for answer in answers if "promoted_by" in answer)
                    faults += wrong[:1]
    return {
        "rounds": rounds,
        "consistent": rounds - len(faults),
        "won_by": {name: winners[name] for name in NAMES},
        "seconds_a_round": round(sum(seconds) / rounds, 1),
        "first_fault": faults[0] if faults else None,
    }


def stations(server: PostgresServer, folder: Path, count: int) -> dict:
    """Let two stations inspect `count` captures each, kill the first one halfway, and return what was counted."""
    url, start = server.new_database(), time.monotonic()
    captures = sorted((ROOT / "data/captures/images").glob("*.jpg"))
    addresses: dict[str, str] = {}
    answered: dict[str, list[str]] = {"first": [], "second": []}

    def inspect(name: str, number: int) -> None:
        path = captures[number % len(captures)]
        while True:  # a client repeats a request that was not answered
            with contextlib.suppress(httpx.TransportError):
                answer = http.post(
                    f"{addresses[name]}/inspect",
                    files={"images": (path.name, path.read_bytes())},
                    headers={"Idempotency-Key": f"{name}-{number}"},
                )
                if answer.status_code == httpx.codes.OK:
                    (result,) = answer.json()["results"]
                    answered[name].append(result["id"])
                    return
            time.sleep(0.5)

    with (
        httpx.Client(timeout=300) as http,
        ThreadPoolExecutor(2 * CLIENTS) as clients,
        station(ROOT, folder / "second", results=url) as second,
    ):
        addresses["second"] = second.address
        with station(ROOT, folder / "first", results=url) as first:
            addresses["first"] = first.address
            requests = [clients.submit(inspect, name, number) for number in range(count) for name in addresses]
            until(lambda: len(answered["first"]) >= count // 2, "half of the answers", 3600)
            first.process.kill()
        before = len(answered["first"])
        with station(ROOT, folder / "first", results=url) as again:
            addresses["first"] = again.address
            for request in requests:
                request.result()
    with contextlib.closing(
        ResultsTable.of_project(folder / "first", load_station_settings(folder / "first"))
    ) as table:
        stored = list(table.each())
    names = [inspection.id for inspection in stored]
    ids = {id for of_station in answered.values() for id in of_station}
    return {
        "each": count,
        "answered_by_the_first_before_the_restart": before,
        "answered": len(ids),
        "stored": len(stored),
        "lost": len(ids - set(names)),
        "doubled": len(names) - 2 * count,
        "numbered_without_a_gap": sorted(each.sequence or 0 for each in stored) == [*range(1, 2 * count + 1)],
        "seconds": round(time.monotonic() - start, 1),
    }


def measure(parts: tuple[str, ...], evaluated: Path) -> bool:
    """Run parts, write their results, and return whether nothing was lost, doubled or inconsistent."""
    result: dict = {}
    with postgres_server() as server, tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as folder:
        ((result["postgresql"],),) = server.execute("SHOW server_version")
        for part in parts:
            if part == "stations":
                result[part] = stations(server, Path(folder), RESULTS)
            elif part == "results":
                counts = write_from_two(Path(folder), server.new_database(), RESULTS, deliver=False)
                result[part] = {"each": RESULTS, **counts}
            else:
                result[part] = promotions(part, server, evaluated, ROUNDS)
    result = (json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}) | result
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    locked = [result[part]["consistent"] == ROUNDS for part in ("direct", "server") if part in parts]
    written = [
        result[part]["lost"] == result[part]["doubled"] == 0 for part in ("stations", "results") if part in parts
    ]
    return all((*locked, *written))


def main(*parts: str) -> None:
    """Run parts, by default all."""
    environment.apply()
    with tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as folder:
        evaluated = Path(folder)
        parts = parts or ("stations", "results", *WAYS)
        if set(parts) & set(WAYS):
            make_project(evaluated)
        sys.exit(not measure(parts, evaluated))


if __name__ == "__main__":
    main(*sys.argv[1:])
