"""Imaging on a Dask cluster: the files are those of the process pool, and no worker's end loses or doubles one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.dask_cluster import Cluster, running_cluster
from tests.support.sample import ROOT, drop, line, set_values, stage_environment, stage_process
from tests.support.waiting import until

CAPTURES = 90
STAGES = ("raw", "dst", "composite")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("dask") / "cluster", ROOT / "src") as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project whose captures make several batches in each stage."""
    root = tmp_path_factory.mktemp("projects") / "pool"
    root.mkdir()
    for name in ("params.yaml", "settings.yaml"):
        shutil.copy(ROOT / name, root)
    virtual = {"train": 2, "validation": 1, "test": 1, "references": 3, "defective_share": 0.5, "seed": 3}
    set_values(root, "raw", virtual=virtual)
    set_values(root, "dst", minimum_references=3)
    drop(root / "data/captures", line(train=CAPTURES, references=3))
    return root


@pytest.fixture(scope="module")
def by_processes(project) -> Path:
    """A project whose stages have run with the process pool."""
    for stage in STAGES:
        done = stage_process(stage, project)
        assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def by_cluster(by_processes, cluster) -> tuple[Path, list[dict], str]:
    """A project whose stages have run on the cluster; a worker was killed in dst.

    Returns:
        The project, the journal of dst, and what dst has printed.
    """
    root = by_processes.with_name("cluster")
    shutil.copytree(by_processes, root, ignore=shutil.ignore_patterns("raw*", "dst*", "composited*", "splits.csv"))
    done = stage_process("raw", root, DASK_SCHEDULER_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    journal = root / "data/dst.partial/products.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "stages.dst"],
        cwd=root,
        env=stage_environment(DASK_SCHEDULER_ADDRESS=cluster.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        until(lambda: journal.exists() and "images/" in journal.read_text(), "the first batch", longest=0.05)
        (root / "journal").hardlink_to(journal)  # the stage removes its own link at the end
        victim = psutil.Process(cluster.workers()[0])
        victim.kill()
        output = process.communicate()[0]
    assert process.returncode == 0, output
    assert not victim.is_running()
    done = stage_process("composite", root, DASK_SCHEDULER_ADDRESS=cluster.address)
    assert done.returncode == 0, done.stderr
    return root, [json.loads(line) for line in (root / "journal").read_text().splitlines()], output


def products(root: Path) -> dict[str, bytes]:
    """Return every file of the stages with its bytes, without the times of files that were read."""
    files = [path for path in (root / "data").rglob("*") if path.is_file() and "captures" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if ".states." not in path.name}


def test_the_files_are_those_of_the_process_pool_though_a_worker_was_killed(by_processes, by_cluster):
    expected, made = products(by_processes), products(by_cluster[0])
    assert {Path(name).parts[1] for name in expected} >= {"raw", "dst", "composited", "splits.csv"}
    assert sorted(made) == sorted(expected)
    assert [name for name in expected if made[name] != expected[name]] == []


def test_each_item_is_in_the_journal_once(by_processes, by_cluster):
    _, journal, _ = by_cluster
    names = [product["name"] for product in journal]
    assert len(names) == len(set(names))
    parts = (by_processes / "data/dst/products").iterdir()
    complete = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert sorted(names) == sorted(product["name"] for product in complete if "name" in product)


def test_the_throughput_of_each_worker_is_shown(by_cluster):
    views = sum(product["name"].startswith("images/") for product in by_cluster[1])
    report = next(line for line in by_cluster[2].splitlines() if line.startswith(f"DST views: {views} in "))
    shares = [int(share.split(" at ")[0].split(" ")[-1]) for share in report.split("/s: ")[1].split(", ")]
    assert len(shares) >= 2 and sum(shares) == views


def test_a_run_on_the_cluster_after_one_by_processes_makes_nothing_again(by_processes, tmp_path):
    root = tmp_path / "again"
    shutil.copytree(by_processes, root)
    done = stage_process("dst", root, DASK_SCHEDULER_ADDRESS="tcp://127.0.0.1:9")  # nothing to make: nobody is asked
    assert done.returncode == 0, done.stderr
    assert "0 captures compared" in done.stdout


@pytest.fixture
def unmade(by_processes, tmp_path) -> Path:
    """A project in which dst has not run."""
    root = tmp_path / "unmade"
    shutil.copytree(by_processes, root, ignore=shutil.ignore_patterns("dst*", "composited*"))
    return root


def test_a_scheduler_that_does_not_answer_is_one_line(unmade):
    timeout = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
    set_values(unmade, "imaging", engine="dask")
    done = stage_process("dst", unmade, DASK_SCHEDULER_ADDRESS="tcp://127.0.0.1:9", **timeout)
    assert done.returncode == 75, done.stderr  # a flow tries again
    assert done.stderr.splitlines()[-1].startswith("tcp://127.0.0.1:9: no Dask scheduler answers (Timed out")
    assert "Traceback" not in done.stderr
    assert not (unmade / "data/dst").exists()


def test_a_worker_with_other_code_is_refused(unmade, tmp_path):
    shutil.copytree(ROOT / "src/pinspect", tmp_path / "src/pinspect", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "src/pinspect/nsoartc/dst.py").open("a") as module:
        module.write("# edited\n")
    with running_cluster(tmp_path / "cluster", tmp_path / "src") as other:
        done = stage_process("dst", unmade, DASK_SCHEDULER_ADDRESS=other.address)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("worker tcp://")]
    assert len(lines) == 2 and all(": pinspect.nsoartc " in line for line in lines)
    assert not (unmade / "data/dst").exists()


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from pinspect.captures.engines import BatchMaker
from pinspect.core.errors import run

HERE = Path(__file__).parent

def die(batch):
    os.kill(os.getpid(), signal.SIGKILL)

def write_late(batch):
    (HERE / f"began-{batch[0]}").touch()
    while batch[0] == "slow" and not (HERE / "go").exists():
        time.sleep(0.05)
    return write(batch)

def meet(batch):
    (HERE / f"met-{batch[0]}").touch()
    while len(list(HERE.glob("met-*"))) < 2:
        time.sleep(0.05)
    return write(batch)

def write(batch):
    return [{"files": {batch[0]: ""}}], {batch[0]: b""}

if __name__ == "__main__":
    _, work, folder, *words = sys.argv
    Path(folder).mkdir(exist_ok=True)
    made = BatchMaker("dask", Path(folder)).make(globals()[work], [[word] for word in words], None)
    run(lambda: print(len(list(made))))
"""


class Script:
    """A program whose batches a cluster makes."""

    def __init__(self, folder: Path, address: str):
        self.folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "DASK_SCHEDULER_ADDRESS": address}
        (folder / "script.py").write_text(SCRIPT)

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "script.py", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, *arguments: str) -> tuple[int, str, str]:
        """Run it; return its exit code, output and errors."""
        with self.start(*arguments) as process:
            output, errors = process.communicate()
        return process.returncode, output, errors


@pytest.fixture
def script(tmp_path, cluster) -> Script:
    return Script(tmp_path, cluster.address)


def test_a_folder_that_a_worker_does_not_share_is_refused(script):
    code, _, errors = script.end("write", "/proc/self/cwd/out", "a", "b")  # the worker's own working folder has no out
    assert code == 2
    assert [line.split(": ", 1)[1] for line in errors.splitlines()] == 2 * [
        "/proc/self/cwd/out is not there, or is another folder; share it among all machines under the same path"
    ]


def test_a_batch_that_ends_every_worker_stops_the_run_with_one_line(script):
    code, _, errors = script.end("die", "out", "a", "b")
    assert code == 2
    assert "ended, and so did others that got the same batch" in errors
    assert len(errors.splitlines()) == 1


def test_a_worker_that_works_on_for_a_killed_run_changes_nothing(script):
    out = script.folder / "out"
    with script.start("write_late", "out", "slow", "quick") as killed:
        until((script.folder / "began-slow").exists, "the slow batch", longest=0.05)
        until((out / "quick").exists, "the quick batch", longest=0.05)
        (run,) = out.glob(".run-*")
        killed.send_signal(signal.SIGKILL)
    with script.start("write", "out", "a", "b") as following:
        until(lambda: not run.exists(), "the next run", longest=0.05)
        (script.folder / "go").touch()
        assert following.communicate()[0] == "2\n"
    assert script.end("meet", "out", "c", "d")[0] == 0  # on both workers at once: the slow batch has ended
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c", "d", "quick"]
