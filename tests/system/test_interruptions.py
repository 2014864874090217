"""Kill -9 of flow, dvc or training at random moments: files stay complete, and the next run succeeds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client

from flows.recovery import secure_lock_file
from pinspect.core.digests import adapter_sha256
from tests.support.checkout import Checkout
from tests.support.waiting import until

SESSION = "-S"  # part of the command line of flows/session.py, which contains dvc's
RETRAIN = (sys.executable, "-c", "from flows.retrain import retrain; retrain('.', 2, 0)")

pytestmark = pytest.mark.usefixtures("prefect_api")

# The flow retries a killed stage; after a killed flow another flow is started. benchmarks/kills.py kills 40 times.
KILLS = ("flow", "training", "dvc")


class Round:
    """A checkout with a change, and the processes to kill in it."""

    def __init__(self, checkout: Checkout):
        self.checkout = checkout
        self.random = random.Random(0)
        self.log = checkout.root.with_suffix(".log")
        self.killed: list[str] = []
        self.orphans: list[str] = []
        self.died: list[str] = []

    def play(self) -> subprocess.CompletedProcess:
        """Kill the processes one after the other while a flow runs; return the run that follows, once it has ended."""
        longest = 6.0  # seconds from a process's start to its kill
        flow = self._start()
        try:
            for kind in KILLS:
                while not self._kill(kind, flow, longest):  # the process ended before the kill
                    longest /= 2
                    flow.kill()
                    flow.wait()
                    self._all_gone()
                    flow = self._start()
                self.killed.append(kind)
                if kind == "flow" and len(self.killed) < len(KILLS):
                    flow.wait()
                    self._all_gone()
                    flow = self._start()
        finally:
            flow.kill()
            flow.wait()
        self._all_gone()
        before = self.checkout.files()
        time.sleep(1)
        self.orphans = [name for name, when in self.checkout.files().items() if before.get(name) != when]
        return self.checkout.run(*RETRAIN)

    def _start(self) -> subprocess.Popen:
        """Start a flow in a checkout whose training is out of date."""
        self.checkout.set_param("train", seed=self.random.randrange(10**6))
        return self.checkout.start_retrain(self.log)

    def _kill(self, kind: str, flow: subprocess.Popen, longest: float) -> bool:
        """Kill -9 at a random moment; return False if the flow or the training had ended before."""
        begun = until(lambda: self._victim(kind) or flow.poll() is not None, f"{kind} to begin", longest=0.5)
        time.sleep(self.random.uniform(0, longest))
        victim = begun if kind == "training" else self._victim(kind)
        if flow.poll() is not None or not victim or not victim.is_running():
            return False
        if kind == "flow":
            note = self.checkout.root / ".dvc/tmp/retrain/run.json"
            self.died.append(json.loads(note.read_text())["flow_run"])
            victim = psutil.Process(flow.pid)
        victim.send_signal(signal.SIGKILL)
        return True

    def _victim(self, kind: str) -> psutil.Process | None:
        """Return the training process, or else dvc's process while a stage runs."""
        word = "stages.train" if kind == "training" else "--single-item"
        for process in self.checkout.processes():
            with suppress(psutil.Error):
                words = process.cmdline()
                if word in words and SESSION not in words:
                    return process
        return None

    def _all_gone(self) -> None:
        until(lambda: not self.checkout.processes(), "the end of all that the flow had started")


@pytest.fixture(scope="module")
def killed(prefect_api, prepared, tmp_path_factory) -> tuple[Round, subprocess.CompletedProcess]:
    """The round, and the run that followed."""
    played = Round(prepared.copy(tmp_path_factory.mktemp("killed") / "line"))
    return played, played.play()


def test_the_next_run_completes(killed):
    played, end = killed
    assert tuple(played.killed) == KILLS
    assert end.returncode == 0, end.stdout + end.stderr + played.log.read_text()
    assert played.checkout.stale() == ""


def test_no_orphan_keeps_writing(killed):
    assert killed[0].orphans == []


def test_no_version_is_half_registered(killed):
    root = killed[0].checkout.root
    client = MlflowClient(*[f"sqlite:///{root}/mlruns/mlflow.db"] * 2)
    registration = json.loads((root / "reports/registration.json").read_text())
    versions = client.search_model_versions("name = 'pin-inspector'")
    for version in versions:
        assert client.get_run(version.run_id).info.status == "FINISHED"
        assert {"adapter_sha256", "dataset_digest", "zero_shot.exact_match"} <= set(version.tags)
        assert version.status == "READY"
    adapters = [version.tags["adapter_sha256"] for version in versions]
    assert len(set(adapters)) == len(adapters)
    challenger = client.get_model_version_by_alias("pin-inspector", "challenger")
    sha256 = adapter_sha256(root / "models/adapter")
    assert challenger.tags["adapter_sha256"] == sha256 == registration["adapter_sha256"]


def test_the_run_after_a_killed_one_reports_it_to_the_server(killed):
    with get_client(sync_client=True) as client:
        for dead_run in killed[0].died:
            assert client.read_flow_run(dead_run).state.name == "Crashed"


def test_a_lock_file_and_a_lock_that_a_kill_cut_off_are_put_right(prepared, tmp_path):
    checkout = prepared.copy(tmp_path / "cut")
    secure_lock_file(checkout.root)  # as before each stage
    whole = (checkout.root / "dvc.lock").read_text()
    cut = whole.index("md5:", len(whole) // 2) + len("md5")  # in a key: what is left is no YAML
    (checkout.root / "dvc.lock").write_text(whole[:cut])
    out = str(checkout.root / "models/adapter")
    with subprocess.Popen(["sleep", "3600"]) as other:  # its process id was that of a killed dvc
        held = {"write": {out: {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}
        (checkout.root / ".dvc/tmp/rwlock").write_text(json.dumps(held))
        end = checkout.run(*RETRAIN)
        other.kill()
    assert end.returncode == 0, end.stderr
    assert "Skipped" in end.stdout + end.stderr
    assert (checkout.root / "dvc.lock").read_text() == whole
    assert "models/adapter" not in (checkout.root / ".dvc/tmp/rwlock").read_text()
    (checkout.root / ".dvc/tmp/rwlock").write_text('{"write": {')
    assert checkout.run(*RETRAIN).returncode == 0
