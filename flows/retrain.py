"""Every DVC stage as a Prefect task, in DAG order: what `dvc repro` does, with logs, times and artifacts in Prefect.

    python flows/retrain.py [PROJECT]
    python -m flows.retrain [PROJECT]

No server needs to run: without PREFECT_API_URL Prefect starts one for as long as the flow takes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pinspect import quiet
from pinspect.errors import PinspectError, run

quiet.apply()

import networkx  # noqa: E402  after the settings that libraries read while they are imported
from dvc.repo import Repo  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402
from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact  # noqa: E402
from prefect.states import Failed  # noqa: E402

REPORT = Path("reports/eval/report.html")
METRICS = Path("reports/eval/metrics.json")
TRY_AGAIN_LATER = 75  # EX_TEMPFAIL: with it a stage says that its surroundings failed, not its data
SECONDS_TO_STOP = 10
_EXITED = re.compile(r"exited with (-?\d+)")
_LOCKED = "Unable to acquire lock"
_UNCHANGED = "didn't change, skipping"


class StageFailedError(PinspectError):
    """A stage failed for a reason that another try would not change."""


class InfrastructureError(StageFailedError):
    """A stage was killed, found the repository locked, or says itself that it may be tried again."""


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage. ran: False where nothing had changed (or the run cache had the result)."""

    stage: str
    ran: bool
    seconds: float


@flow(name="retrain")
def retrain(root: str = ".", retries: int = 2, retry_delay_seconds: float = 30) -> list[StageOutcome]:
    """Bring the project in `root` up to date, stage by stage; at most one such flow works in a checkout."""
    project = Path(root).resolve()
    attempt = reproduce.with_options(retries=retries, retry_delay_seconds=retry_delay_seconds)
    outcomes = []
    try:
        with one_per_checkout(project):
            for stage in stages_in_order(project):
                state = attempt(stage, str(project), return_state=True)
                if not state.is_completed():
                    raise StageFailedError(state.message or f"stage {stage} ended {state.name}")
                outcomes.append(state.result())
    except PinspectError as error:
        return Failed(message=str(error))  # raised, Prefect would log a traceback of it
    publish(project, outcomes)
    return outcomes


def _is_worth_another_try(task, task_run, state) -> bool:
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


@task(task_run_name="{stage}", retry_condition_fn=_is_worth_another_try, cache_policy=None)
def reproduce(stage: str, root: str) -> StageOutcome:
    """`dvc repro --single-item` of one stage, its output in the Prefect log."""
    try:
        return run_stage(stage, Path(root), get_run_logger().info)
    except InfrastructureError:
        raise  # Prefect tries again what was raised, not what was returned
    except StageFailedError as error:
        return Failed(message=str(error))


def stages_in_order(root: Path) -> list[str]:
    """Names of the stages that DVC knows in `root`, each after those that it depends on."""
    root = root.resolve()
    with Repo(str(root)) as repo:
        graph = repo.index.graph  # its edges lead from a stage to what it depends on
        names = {stage: _name_from(root, stage) for stage in graph if stage.cmd}
        ordered = networkx.lexicographical_topological_sort(graph.reverse(copy=False), key=lambda s: s.addressing)
        return [names[stage] for stage in ordered if stage in names]


def run_stage(stage: str, root: Path, log: Callable[[str], object]) -> StageOutcome:
    """Reproduce one stage in a session of its own, of which nothing is left when this returns or raises.

    Raises InfrastructureError when another try may help, else StageFailedError; both end with the stage's last words.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", stage],
        cwd=root,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    # A dvc that was killed leaves its stage running, which then would keep the pipe open, and write, for ever.
    threading.Thread(target=lambda: (process.wait(), _signal_group(process, signal.SIGKILL)), daemon=True).start()
    try:
        lines = list(_told(process, log))
        code = process.wait()
    finally:
        end_session(process)
    if code:
        raise _explained(stage, code, lines)
    ran = not any(_UNCHANGED in line for line in lines)
    return StageOutcome(stage, ran, round(time.monotonic() - began, 1))


def end_session(process: subprocess.Popen) -> None:
    """End `process` and all that it started: kindly where it still runs, for certain in any case."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@contextmanager
def one_per_checkout(root: Path) -> Iterator[None]:
    """Hold the checkout's lock. Raises StageFailedError at once when another flow holds it."""
    path = root / ".dvc/tmp/retrain.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StageFailedError(f"{root}: another retrain works in this checkout; wait until it is done") from None
    try:
        yield
    finally:
        lock.release()


def publish(root: Path, outcomes: list[StageOutcome]) -> None:
    """The run's artifacts: a table of the stages, the scores, and a link to the report."""
    create_table_artifact(key="stages", table=[asdict(outcome) for outcome in outcomes], description="Stages")
    if (root / METRICS).is_file():
        scores = json.dumps(json.loads((root / METRICS).read_text(encoding="utf-8")), indent=2)
        create_markdown_artifact(key="scores", markdown=f"```json\n{scores}\n```", description=str(METRICS))
    if (root / REPORT).is_file():
        create_link_artifact(key="report", link=(root / REPORT).as_uri(), link_text="Evaluation report")


def _name_from(root: Path, stage) -> str:
    """How `dvc repro` is told of a stage when it runs in `root`."""
    file = Path(stage.path).relative_to(root)
    return stage.name if file == Path("dvc.yaml") else f"{file.as_posix()}:{stage.name}"


def _told(process: subprocess.Popen, log: Callable[[str], object]) -> Iterator[str]:
    for line in process.stdout:
        line = line.rstrip()
        if line:
            log(line)
            yield line


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _explained(stage: str, code: int, lines: list[str]) -> StageFailedError:
    found = [int(match[1]) for match in map(_EXITED.search, lines) if match]
    stage_code = found[-1] if found else None
    last = [line for line in lines if not line.startswith(("Running stage", "> "))][-8:]
    text = "\n".join([f"stage {stage} failed (dvc {code}, its command {stage_code}):", *last])
    # A shell says 128 + n where the command fell to signal n, Python says -n.
    killed = code < 0 or (stage_code is not None and (stage_code < 0 or stage_code > 128))
    locked = any(_LOCKED in line for line in lines)
    return (InfrastructureError if killed or locked or stage_code == TRY_AGAIN_LATER else StageFailedError)(text)


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(root: str = ".") -> None:
    """Run the flow here and now; a polite kill ends the stage under way too."""
    signal.signal(signal.SIGTERM, _stop)
    state = retrain(root, return_state=True)
    if not state.is_completed():
        raise StageFailedError(state.message or f"the flow ended {state.name}")
    for outcome in state.result():
        print(f"{outcome.stage:<12} {'done' if outcome.ran else 'unchanged':<10} {outcome.seconds:6.1f} s")
    report = Path(root).resolve() / REPORT
    if report.is_file():
        print(f"report: {report}")


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
