"""The retrain flow on a real Prefect server and a real DVC repository of a few tiny stages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.retrain import (
    InfrastructureError,
    StageFailedError,
    one_per_checkout,
    retrain,
    run_stage,
    stages_in_order,
)
from pinspect import quiet

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server():
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def repository(tmp_path):
    """A function that makes a DVC repository of stages: name -> (command, dependencies, outputs)."""

    def make(**stages):
        run = [sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"]
        subprocess.run(run, cwd=tmp_path, check=True, capture_output=True)
        told = {
            name: {"cmd": f'"{sys.executable}" {name}.py', "deps": [f"{name}.py", *needs], "outs": makes}
            for name, (_, needs, makes) in stages.items()
        }
        (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": told}))
        for name, (code, _, _) in stages.items():
            (tmp_path / f"{name}.py").write_text(code)
        return tmp_path

    return make


def tries(name: str) -> str:
    """Code that counts how often a stage was started, in a file that DVC does not know."""
    return f"tries = open('{name}.tries', 'a'); tries.write('x'); tries.close()\n"


@pytest.mark.usefixtures("server")
def test_stages_run_in_the_order_of_the_pipeline_and_a_second_run_does_nothing(repository):
    root = repository(
        # In the file the last comes first: the order is the pipeline's, not the file's.
        score=("open('reports.txt', 'w').write(open('model.txt').read())", ["model.txt"], ["reports.txt"]),
        train=("open('model.txt', 'w').write(open('data.txt').read() + '!')", ["data.txt"], ["model.txt"]),
        gather=("open('data.txt', 'w').write('captures')", [], ["data.txt"]),
    )
    assert stages_in_order(root) == ["gather", "train", "score"]
    (root / "reports/eval").mkdir(parents=True)
    (root / "reports/eval/report.html").write_text("<h1>Evaluation</h1>")
    (root / "reports/eval/metrics.json").write_text('{"zero_shot": {"exact_match": 0.9}}')

    first = retrain(str(root))
    assert [(outcome.stage, outcome.ran) for outcome in first] == [("gather", True), ("train", True), ("score", True)]
    assert (root / "reports.txt").read_text() == "captures!"
    assert not any(outcome.ran for outcome in retrain(str(root)))
    artifacts = published()
    assert (root / "reports/eval/report.html").as_uri() in artifacts["report"]
    assert '"exact_match": 0.9' in artifacts["scores"]
    assert "gather" in artifacts["stages"]


@pytest.mark.usefixtures("server")
def test_a_fault_of_the_surroundings_is_tried_again_and_bad_data_is_not(repository):
    root = repository(
        fetch=(
            tries("fetch")
            + "open('data.txt', 'w')\nimport sys; sys.exit(75 if len(open('fetch.tries').read()) < 2 else 0)",
            [],
            ["data.txt"],
        ),
        check=(tries("check") + "import sys; print('row 7: unknown mode'); sys.exit(2)", ["data.txt"], []),
    )
    state = retrain(str(root), retries=2, retry_delay_seconds=0, return_state=True)
    assert state.is_failed()
    assert "stage check failed (dvc 255, its command 2)" in state.message
    assert "row 7: unknown mode" in state.message
    assert (root / "fetch.tries").read_text() == "xx"
    assert (root / "check.tries").read_text() == "x"


def test_a_stage_that_was_killed_is_worth_another_try(repository):
    root = repository(train=("import os; os.kill(os.getpid(), 9)", [], []))
    with pytest.raises(InfrastructureError):
        run_stage("train", root, print)


def test_a_stage_that_is_cancelled_leaves_no_process_behind(repository):
    root = repository(
        train=(
            "import os, time\nprint('pid', os.getpid(), flush=True)\nwhile True: time.sleep(0.05)",
            [],
            [],
        )
    )
    started = []

    def cancel_when_started(line):
        if line.startswith("pid "):
            started.append(int(line.split()[1]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage("train", root, cancel_when_started)
    assert is_gone(started[0])


def test_a_kill_of_dvc_itself_leaves_no_stage_writing(repository):
    root = repository(
        train=(
            "import os, time\nprint('pid', os.getpid(), os.getppid(), flush=True)\nwhile True: time.sleep(0.05)",
            [],
            [],
        )
    )
    started = []

    def kill_dvc(line):
        if line.startswith("pid "):
            started.append(int(line.split()[1]))
            os.kill(os.getpgid(started[0]), signal.SIGKILL)

    with pytest.raises(InfrastructureError):
        run_stage("train", root, kill_dvc)
    assert is_gone(started[0])


def test_two_retrains_never_work_in_one_checkout(tmp_path):
    refused = pytest.raises(StageFailedError, match="another retrain works in this checkout")
    with one_per_checkout(tmp_path), refused, one_per_checkout(tmp_path):
        pass
    with one_per_checkout(tmp_path):
        pass


def test_a_fresh_process_is_quiet_and_offline_unless_told_otherwise():
    told = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "0"}
    code = "from pinspect import quiet; import os, json; print(json.dumps(dict(os.environ)))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, check=True).stdout)
    assert found["HF_HUB_OFFLINE"] == "0"
    assert {name: found[name] for name in quiet.SETTINGS if name != "HF_HUB_OFFLINE"} == {
        name: value for name, value in quiet.SETTINGS.items() if name != "HF_HUB_OFFLINE"
    }


def is_gone(pid: int) -> bool:
    """Whether the process ends within two seconds."""
    for _ in range(40):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def published() -> dict[str, str]:
    """The newest artifact of each key, as the server holds it."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/latest/filter", json={}).json()
    return {artifact["key"]: str(artifact["data"]) for artifact in found}
