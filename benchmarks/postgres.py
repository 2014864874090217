"""Races two checkouts and two stations that share a real PostgreSQL server, and counts what went wrong.

    python -m benchmarks.postgres [ROUNDS] [RESULTS]     # 20 raced promotions each way, 2,000 results a station

Promotions: `directly` the registry is the database; `by a server` an MLflow server stands in front of it, and
`register.lock_database` names it; `without a lock` the server alone. Results: two processes write them as stations do
that answer requests (pictures, results, deliveries), with records made beforehand; one is killed halfway and started
again. Writes benchmarks/results/postgres.json.
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


@contextlib.contextmanager
def registry(way: str, server: PostgresServer, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the section `register` of both checkouts for one way to share a registry."""
    url = server.new_database()
    if way == "directly":
        client = MlflowClient(with_driver(url), with_driver(url))
        client.create_experiment("pinspect", artifact_location=(folder / "artifacts").as_uri())
        yield {"tracking_uri": url}
        return
    with running_server(folder, with_driver(url)) as uri:
        yield {"tracking_uri": uri} | ({"lock_database": url} if way == "by a server" else {})


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


def main(rounds: str = "20", results: str = "2000") -> None:
    """Run all races and write the result."""
    environment.apply()
    with postgres_server() as server, tempfile.TemporaryDirectory(prefix="pinspect-postgres-") as folder:
        evaluated = Path(folder) / "evaluated"
        evaluated.mkdir()
        writers = write_from_two(Path(folder), server.new_database(), int(results))
        make_project(evaluated)
        raced = {
            way: promotions(way, server, evaluated, int(rounds))
            for way in ("directly", "by a server", "without a lock")
        }
        ((version,),) = server.execute("SHOW server_version")
    result = {"postgresql": version, "results_of_two_stations": {"each": int(results), **writers}, "promotions": raced}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    consistent = all(raced[way]["consistent"] == int(rounds) for way in ("directly", "by a server"))
    sys.exit(not (consistent and writers["lost"] == writers["doubled"] == 0))


if __name__ == "__main__":
    main(*sys.argv[1:])
