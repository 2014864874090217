"""Two stations that write into one database, without a model: pictures, results and deliveries as `Intake` makes them.

python -m tests.support.result_writers PROJECT FIRST COUNT     # prints the number of each stored result
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from pinspect.core import environment
from pinspect.station.delivery import delivering
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import STATION, ResultsTable
from pinspect.station.settings import StationSettings, load_station_settings
from tests.support.receivers import http_receiver
from tests.support.results import BEND
from tests.support.waiting import until

_REPEATED = 10  # results that a client of a killed station sends again, although they may be stored


def write_from_two(folder: Path, url: str, count: int, *, deliver: bool = True) -> dict:
    """Let two stations write `count` results each; kill the first one halfway, and start it again.

    Args:
        folder: An empty folder for both.
        url: Their results table.
        count: Results of each.
        deliver: Let the first one deliver all results to a receiver, before the kill and after it.

    Returns:
        What was counted, and the duration until the last result was stored.
    """
    start = time.monotonic()
    with http_receiver() as receiver:
        roots = [folder / "station-1", folder / "station-2"]
        receivers = {"mes": receiver.url} if deliver else {}
        for root, addresses in zip(roots, (receivers, {}), strict=True):
            root.mkdir()
            (root / "settings.yaml").write_text(yaml.safe_dump({"station": {"results": url, "receivers": addresses}}))
        first = _start(roots[0], 0, count)
        assert first.stdout
        acknowledged = [first.stdout.readline()]  # a receiver gets what is stored after the first start with its name
        second = _start(roots[1], 0, count)
        acknowledged += [first.stdout.readline() for _ in range(count // 2)]
        if deliver:
            until(lambda: receiver.documents, "a delivery before the kill")
        first.kill()
        acknowledged += [line for line in first.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
        again = _start(roots[0], max(0, len(acknowledged) - _REPEATED), count)
        outputs = [process.communicate()[0].splitlines() for process in (again, second)]
        assert [again.returncode, second.returncode] == [0, 0]
        seconds = time.monotonic() - start
        ids = {line.strip() for line in acknowledged}.union(*outputs)
        with contextlib.closing(ResultsTable.of_project(roots[0], load_station_settings(roots[0]))) as table:
            stored = list(table.each())
            with delivering(roots[0], StationSettings(results=url, receivers=receivers), finish=True):
                pass
            taken: list[int] = []
            for document in receiver.documents:  # a receiver ignores numbers that it has seen
                if not taken or document["sequence"] > taken[-1]:
                    taken.append(document["sequence"])
    numbers = sorted(inspection.sequence or 0 for inspection in stored)
    names = [inspection.id for inspection in stored]
    return {
        "acknowledged_before_the_kill": len(acknowledged),
        "acknowledged": len(ids),
        "stored": len(stored),
        "lost": len(ids - set(names)),
        "doubled": len(names) - len(set(names)),
        "numbered_without_a_gap": numbers == [*range(1, 2 * count + 1)],
        "seconds": round(seconds, 1),
    } | ({"delivered_once_and_in_order": taken == numbers} if deliver else {})


def _start(root: Path, first: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-m", __name__, str(root), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main(root: str, first: str, count: str) -> None:
    """Write results as a station does when it answers requests, and print the id of each."""
    environment.apply()
    project = Path(root)
    settings = load_station_settings(project)
    pictures = PictureStore(project, settings.keep_days, settings.keep_bytes)
    with (
        contextlib.closing(ResultsTable.of_project(project, settings)) as table,
        delivering(project, settings, finish=True),
    ):
        for number in range(int(first), int(count)):
            id = f"{project.name}-{number}"
            sha256 = pictures.put(id.encode(), ".jpg")
            record = {"file": f"{id}.jpg", "image_type": "CYLN_RAW", "p_defective": 0.9, "pin_map": [0.5] * 27, **BEND}
            table.record(record, id=id, sha256=sha256, source=STATION, received=datetime.now(UTC))
            print(id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
