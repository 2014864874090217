"""Measures dst and composite by the process pool and by a Dask cluster: `python -m benchmarks.engines [CAPTURES]`.

The same virtual captures (2,000 by default) go through both stages three times: by the process pool, by a cluster of
two workers on this machine, and by such a cluster of which a worker is killed in dst. Each stage is a process of its
own. Writes benchmarks/results/engines.json; about five minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from pinspect.core import environment
from tests.support.dask_cluster import Cluster, running_cluster
from tests.support.sample import ROOT, set_values, stage_environment

RESULT = ROOT / "benchmarks/results/engines.json"
STAGES = ("dst", "composite")
JOURNAL = "data/dst.partial/products.jsonl"


class Memory(threading.Thread):
    """Samples the resident memory of processes and their children until it is stopped.

    Attributes:
        peaks: Highest MB of each process, and `all`: of all at one moment.
    """

    def __init__(self, **processes: int):
        super().__init__(daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._stopped = threading.Event()
        self.peaks: dict[str, float] = {}

    def run(self) -> None:
        while not self._stopped.wait(0.2):
            sizes: dict[str, float] = {}
            with suppress(psutil.Error):
                for name, process in self._processes.items():
                    sizes[name] = process.memory_info().rss / 1e6
                    children = [child.memory_info().rss / 1e6 for child in process.children()]
                    sizes[f"children of {name}"] = sum(children)
                sizes["all"] = sum(sizes.values())
            for name, size in sizes.items():
                self.peaks[name] = max(self.peaks.get(name, 0), round(size))

    def stop(self) -> dict[str, float]:
        self._stopped.set()
        self.join()
        return self.peaks


def main(captures: str = "2000") -> None:
    environment.apply()
    with tempfile.TemporaryDirectory(prefix="pinspect-engines-") as name:
        folder = Path(name)
        make_raw(folder / "processes", int(captures))
        for copy in ("dask", "killed"):
            shutil.copytree(folder / "processes", folder / copy)
        runs = {"processes": run_stages(folder / "processes")}
        start = time.perf_counter()
        with running_cluster(folder / "cluster", ROOT / "src") as cluster:
            cluster.workers()
            started = round(time.perf_counter() - start, 1)
            runs["dask"] = run_stages(folder / "dask", cluster)
            runs["dask, a worker killed"] = run_stages(folder / "killed", cluster, kill=int(captures) // 3)
        files = {run: digests(folder / place) for run, place in zip(runs, ("processes", "dask", "killed"), strict=True)}
        names = [json.loads(line)["name"] for line in (folder / "killed/journal").read_text().splitlines()]
        complete = (folder / "processes/data/dst/products.jsonl").read_text().splitlines()
    result = {
        "captures": int(captures),
        "runs": runs,
        "seconds_to_start_the_cluster": started,
        "files": len(files["processes"]),
        "identical": all(each == files["processes"] for each in files.values()),
        "after_the_kill": {
            "items": len(complete),
            "lost": len(complete) - len(set(names)),
            "twice": len(names) - len(set(names)),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}",
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


def make_raw(root: Path, captures: int) -> None:
    """Make a project with a raw folder of virtual captures, without stacked composites."""
    root.mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    virtual = {"train": captures, "validation": 0, "test": 0, "references": 5, "defective_share": 0.5, "seed": 1}
    set_values(root, "raw", virtual=virtual)
    set_values(root, "chat", kinds={"two_image": 1})
    (root / "data/captures/images").mkdir(parents=True)
    (root / "data/captures/labels.csv").write_text("file,shape,judgement,defect_mode,defect_position,role\n")
    subprocess.run([sys.executable, "-m", "stages.raw"], cwd=root, env=stage_environment(), check=True)


def run_stages(root: Path, cluster: Cluster | None = None, kill: int = 0) -> dict:
    """Run dst and composite; kill a worker when dst has made `kill` items."""
    variables = {"DASK_SCHEDULER_ADDRESS": cluster.address} if cluster else {}
    measured = {}
    for stage in STAGES:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"], cwd=root, env=stage_environment(**variables)
        )
        memory = Memory(stage=process.pid, **({"scheduler": cluster.process.pid} if cluster else {}))
        memory.start()
        if kill and cluster and stage == "dst":
            until(process, lambda: items(root / JOURNAL) > kill)
            (root / "journal").hardlink_to(root / JOURNAL)  # the stage removes its own link at the end
            psutil.Process(cluster.workers()[0]).kill()
        assert process.wait() == 0, f"{stage} ended with exit code {process.returncode}"
        measured[stage] = {"seconds": round(time.perf_counter() - start, 1), "peak_mb": memory.stop()}
    return measured


def until(process: subprocess.Popen, state: Callable[[], bool]) -> None:
    while not state():
        assert process.poll() is None, "the stage ended before the kill"
        time.sleep(0.05)


def items(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of each file of dst and composite."""
    paths = [path for name in ("dst", "composited") for path in (root / "data" / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main(*sys.argv[1:])
