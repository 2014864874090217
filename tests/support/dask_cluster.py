"""A Dask cluster of two worker processes, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client

PROGRAM = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


class Cluster:
    """A cluster that runs.

    Attributes:
        address: Address of the scheduler.
        process: The process of the scheduler, whose children are the workers.
    """

    def __init__(self, process: subprocess.Popen, address: str):
        self.process, self.address = process, address

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        with Client(self.address) as client:
            return sorted(client.run(os.getpid).values())


@contextmanager
def running_cluster(folder: Path, source: Path) -> Iterator[Cluster]:
    """Run a cluster whose workers work in a new folder.

    Args:
        folder: The folder, which also gets the log.
        source: Folder with the package `pinspect` that the workers import.
    """
    folder.mkdir()
    (folder / "cluster.py").write_text(PROGRAM)
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "cluster.py"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        assert address, (folder / "log").read_text()
        try:
            yield Cluster(process, address)
        finally:
            process.stdin.close()
            process.wait()
