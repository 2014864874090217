"""The retrain flow on a real Prefect server and a real DVC repository of a few tiny stages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.recovery import CheckoutBusyError, CheckoutError, one_per_checkout
from flows.retrain import InfrastructureError, read_plan, retrain, run_stage
from pinspect.core import environment as quiet

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("deployed")  # whose schedule starts its first run meanwhile, on another core


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


@pytest.mark.usefixtures("prefect_api")
def test_stages_run_in_the_order_of_the_pipeline_and_a_second_run_does_nothing(repository):
    root = repository(
        # In the file the last comes first: the order is the pipeline's, not the file's.
        score=("open('reports.txt', 'w').write(open('model.txt').read())", ["model.txt"], ["reports.txt"]),
        train=("open('model.txt', 'w').write(open('data.txt').read() + '!')", ["data.txt"], ["model.txt"]),
        gather=("open('data.txt', 'w').write('captures')", [], ["data.txt"]),
    )
    assert read_plan(root).stages == ("gather", "train", "score")

    first = retrain(str(root))
    assert [(outcome.stage, outcome.result) for outcome in first] == [
        ("gather", "ran"),
        ("train", "ran"),
        ("score", "ran"),
    ]
    assert (root / "reports.txt").read_text() == "captures!"
    again = retrain(str(root), return_state=True)
    assert (again.name, again.is_completed()) == ("Skipped", True)
    assert [outcome.result for outcome in again.result()] == ["unchanged"] * 3


@pytest.mark.usefixtures("prefect_api")
def test_stages_before_the_change_are_not_even_asked_and_the_cache_gives_back_what_was_made_before(repository):
    root = repository(
        gather=("open('data.txt', 'w').write('captures')", [], ["data.txt"]),
        train=("open('model.txt', 'w').write(open('rate.txt').read())", ["data.txt", "rate.txt"], ["model.txt"]),
    )
    (root / "rate.txt").write_text("fast")
    retrain(str(root))
    (root / "rate.txt").write_text("slow")
    assert [(outcome.stage, outcome.result) for outcome in retrain(str(root))] == [
        ("gather", "unchanged"),
        ("train", "ran"),
    ]
    (root / "rate.txt").write_text("fast")
    assert read_plan(root).stale == {"train"}
    assert [outcome.result for outcome in retrain(str(root))] == ["unchanged", "restored"]
    assert (root / "model.txt").read_text() == "fast"


@pytest.mark.usefixtures("prefect_api")
def test_a_pipeline_that_dvc_cannot_read_is_told_in_its_words(repository):
    root = repository(gather=("pass", [], []))
    (root / "dvc.yaml").write_text("stages: {gather: {deps: [a]}}")
    state = retrain(str(root), return_state=True)
    assert state.is_failed()
    assert "dvc.yaml" in state.message


@pytest.mark.usefixtures("prefect_api")
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


def test_a_kill_of_the_flow_leaves_no_stage_writing(repository):
    root = repository(
        train=("import os, time\nprint('pid', os.getpid(), flush=True)\nwhile True: time.sleep(0.05)", [], [])
    )
    code = "from flows.retrain import Path, run_stage; run_stage('train', Path(), lambda line: print(line, flush=True))"
    flow = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": str(PROJECT)}, stdout=-1, text=True
    )
    started = next(int(line.split()[1]) for line in flow.stdout if line.startswith("pid "))
    flow.kill()
    assert is_gone(started)
    flow.wait()
    flow.stdout.close()


@pytest.mark.usefixtures("prefect_api")
def test_two_runs_never_work_in_one_checkout(repository):
    root = repository(gather=("pass", [], []))
    refused = pytest.raises(CheckoutBusyError, match="another run works in this checkout")
    with one_per_checkout(root), refused, one_per_checkout(root):
        pass
    with one_per_checkout(root):
        state = retrain(str(root), return_state=True)
    assert state.is_cancelled()
    assert "another run works in this checkout" in state.message
    assert retrain(str(root), return_state=True).is_completed()


def test_a_folder_that_is_no_project_is_named_and_left_alone(tmp_path):
    with pytest.raises(CheckoutError, match="no DVC project"), one_per_checkout(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


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
