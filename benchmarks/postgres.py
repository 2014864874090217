"""Races two checkouts and two stations that share a real PostgreSQL server, and counts what went wrong.

    python -m benchmarks.postgres [PART ...]     # results, direct, server, no-lock; all by default

Promotions, 20 rounds each: `direct`, the registry is the database; `server`, an MLflow server stands in front of it,
and `register.lock_database` names it; `no-lock`, the server alone. Results, 2,000 a station: two processes write them
as stations do that answer requests (pictures and results), with records made beforehand; one is killed halfway
and started again. Writes its parts of benchmarks/results/postgres.json.
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
from pathlib import Path

from mlflow import MlflowClient

from pinspect.core import environment
from pinspect.core.postgres import with_driver
from tests.support.evaluated_project import make_project
from tests.support.mlflow_server import running_server
from tests.support.postgres import PostgresServer, postgres_server
from tests.support.promotion_race import NAMES, promoters, race, register_two
from tests.support.result_writers import write_from_two

RESULT = Path(__file__).parent / "results/postgres.json"
WAYS = ("direct", "server", "no-lock")
ROUNDS, RESULTS = 20, 2000


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


def measure(parts: tuple[str, ...], evaluated: Path) -> bool:
    """Run parts, write their results, and return whether nothing was lost, doubled or inconsistent."""
    result: dict = {}
    with postgres_server() as server, tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as folder:
        ((result["postgresql"],),) = server.execute("SHOW server_version")
        for part in parts:
            if part == "results":
                counts = write_from_two(Path(folder), server.new_database(), RESULTS, deliver=False)
                result[part] = {"each": RESULTS, **counts}
            else:
                result[part] = promotions(part, server, evaluated, ROUNDS)
    result = (json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}) | result
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    locked = [result[part]["consistent"] == ROUNDS for part in ("direct", "server") if part in parts]
    return all(locked) and not ("results" in parts and (result["results"]["lost"] or result["results"]["doubled"]))


def main(*parts: str) -> None:
    """Run parts, by default all."""
    environment.apply()
    with tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as folder:
        evaluated = Path(folder)
        if set(parts) != {"results"}:
            make_project(evaluated)
        sys.exit(not measure(parts or ("results", *WAYS), evaluated))


if __name__ == "__main__":
    main(*sys.argv[1:])
