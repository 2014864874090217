"""Every DVC stage as a Prefect task, in DAG order: what `dvc repro` does, with logs, times and artifacts in Prefect.

    python -m flows.retrain [PROJECT]

Without PREFECT_API_URL Prefect starts a server for as long as the flow takes. A run that finds nothing changed ends as
Completed, by the name Skipped.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pinspect.core import environment as quiet
from pinspect.core.errors import PinspectError, StageInputError, run

quiet.apply()

from prefect import Flow, flow, get_run_logger, task  # noqa: E402  after the settings that it reads
from prefect.states import Cancelled, Completed, Failed, State  # noqa: E402

from flows.recovery import CheckoutBusyError, one_per_checkout, secure_lock_file  # noqa: E402
from flows.run_artifacts import REPORT, publish  # noqa: E402
from pinspect.cli.status import UNCHANGED, stage_states  # noqa: E402

SKIPPED = "Skipped"
TRY_AGAIN_LATER = 75  # EX_TEMPFAIL: with it a stage says that its surroundings failed, not its data
SECONDS_TO_STOP = 10
_SESSION = Path(__file__).with_name("session.py")
_EXITED = re.compile(r"exited with (-?\d+)")
_LOCKED = "Unable to acquire lock"
_BUSY = "is busy, it is being blocked by"
_UNCHANGED = "didn't change, skipping"
_RESTORED = "is cached - skipping run"


class StageFailedError(PinspectError):
    """A stage failed for a reason that another try would not change."""


class InfrastructureError(StageFailedError):
    """A stage was killed, found the repository locked, or says itself that it may be tried again."""

    exit_code = TRY_AGAIN_LATER


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage. result: `ran`, `unchanged`, or `restored` where DVC's run cache had what it makes."""

    stage: str
    result: str
    seconds: float

    @property
    def ran(self) -> bool:
        return self.result == "ran"


@dataclass(frozen=True)
class Plan:
    """The stages that DVC knows, each after those that it depends on, and the names of those that may have to run."""

    stages: tuple[str, ...]
    stale: frozenset[str]


@flow(name="retrain")
def retrain(root: str = ".", retries: int = 2, retry_delay_seconds: float = 30) -> State:
    """Bring the project in `root` up to date, stage by stage; at most one such flow works in a checkout.

    The result is a list of StageOutcome. Ends Completed, by the name Skipped where nothing had changed; Failed with the
    stage's last words; Cancelled where another run works in the checkout already.
    """
    return in_checkout(root, lambda project: bring_up_to_date(project, retries, retry_delay_seconds))


def in_checkout(root: str, work: Callable[[Path], State]) -> State:
    """Do `work` on the project in `root` while no other run does. What pinspect explains becomes the run's state, since
    Prefect would log a traceback of what is raised."""
    project = Path(root).resolve()
    try:
        with one_per_checkout(project):
            return work(project)
    except CheckoutBusyError as error:
        return Cancelled(message=str(error))
    except PinspectError as error:
        return Failed(message=str(error), data=error)


def bring_up_to_date(project: Path, retries: int, retry_delay_seconds: float) -> State:
    """Run what is stale, a task a stage, and publish the artifacts. Raises StageFailedError."""
    plan = read_plan(project)
    if not plan.stale:
        outcomes = [StageOutcome(stage, "unchanged", 0.0) for stage in plan.stages]
        return Completed(name=SKIPPED, message="Nothing has changed since the last run.", data=outcomes)
    attempt = reproduce.with_options(retries=retries, retry_delay_seconds=retry_delay_seconds)
    outcomes = []
    for stage in plan.stages:
        state = attempt(stage, str(project), stage in plan.stale, return_state=True)
        if not state.is_completed():
            raise _as_error(stage, state)
        outcomes.append(state.result())
    publish(project, outcomes)
    return Completed(message=f"{sum(one.ran for one in outcomes)} stages ran.", data=outcomes)


class _WithoutTraceback(logging.Filter):
    """What pinspect explains is logged in its own words, also where it is raised so that Prefect tries again."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PinspectError):
            record.exc_info = None
        return True


logging.getLogger("prefect.task_runs").addFilter(_WithoutTraceback())


def _is_worth_another_try(task, task_run, state) -> bool:
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


@task(task_run_name="{stage}", retry_condition_fn=_is_worth_another_try, cache_policy=None)
def reproduce(stage: str, root: str, stale: bool = True) -> State | StageOutcome:
    """`dvc repro --single-item` of one stage, its output in the Prefect log; Cached where the stage is not stale."""
    if not stale:
        return Completed(name="Cached", data=StageOutcome(stage, "unchanged", 0.0))
    try:
        return run_stage(stage, Path(root), get_run_logger().info)
    except InfrastructureError:
        raise  # Prefect tries again what was raised, not what was returned
    except StageFailedError as error:
        return Failed(message=str(error), data=error)


def read_plan(root: Path) -> Plan:
    """What DVC knows of the project in `root`. A stage is stale where it has changed, or one that it depends on is."""
    try:
        states = stage_states(root.resolve())
    except StageInputError as error:
        raise StageFailedError(str(error)) from None
    return Plan(tuple(states), frozenset(name for name, told in states.items() if told["state"] != UNCHANGED))


def run_stage(stage: str, root: Path, log: Callable[[str], object]) -> StageOutcome:
    """Reproduce one stage in a session of its own, of which nothing is left when this returns, raises or is killed.

    Raises InfrastructureError when another try may help, else StageFailedError; both end with the stage's last words.
    """
    began = time.monotonic()
    secure_lock_file(root)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SESSION), sys.executable, "-m", "dvc", "repro", "--single-item", stage],
        cwd=root,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdin=subprocess.PIPE,  # what tells the session that this process is alive
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
    return StageOutcome(stage, _result(lines), round(time.monotonic() - began, 1))


def end_session(process: subprocess.Popen) -> None:
    """End `process` and all that it started: kindly where it still runs, for certain in any case."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


def _told(process: subprocess.Popen, log: Callable[[str], object]) -> Iterator[str]:
    for line in process.stdout:
        line = line.rstrip()
        if line:
            log(line)
            yield line


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _result(lines: list[str]) -> str:
    if any(_UNCHANGED in line for line in lines):
        return "unchanged"
    return "restored" if any(_RESTORED in line for line in lines) else "ran"


def _explained(stage: str, code: int, lines: list[str]) -> StageFailedError:
    found = [int(match[1]) for match in map(_EXITED.search, lines) if match]
    stage_code = found[-1] if found else None
    last = [line for line in lines if not line.startswith(("Running stage", "> "))][-8:]
    text = "\n".join([f"stage {stage} failed (dvc {code}, its command {stage_code}):", *last])
    # 128 + n: it fell to signal n, as a shell and our session say; Python, and with it dvc, says -n.
    killed = code < 0 or 128 < code < 160 or (stage_code is not None and (stage_code < 0 or stage_code > 128))
    locked = any(word in line for line in lines for word in (_LOCKED, _BUSY))
    return (InfrastructureError if killed or locked or stage_code == TRY_AGAIN_LATER else StageFailedError)(text)


def _as_error(stage: str, state: State) -> StageFailedError:
    """The task's own error, with its exit code, or one that says how else it ended."""
    found = state.result(raise_on_failure=False)
    return found if isinstance(found, StageFailedError) else StageFailedError(f"stage {stage}: {state.message}")


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def report_on(asked: Flow, root: str, **options: object) -> None:
    """Run a flow on the project in `root` here and now, and print what became of its stages; a polite kill of this
    process ends the stage under way too. Raises what the flow failed of, as PinspectError."""
    signal.signal(signal.SIGTERM, _stop)
    state = asked(root, **options, return_state=True)
    if not state.is_completed():
        found = state.result(raise_on_failure=False)
        busy = CheckoutBusyError(state.message) if state.is_cancelled() else StageFailedError(state.message)
        raise found if isinstance(found, PinspectError) else busy
    for outcome in state.result():
        print(f"{outcome.stage:<12} {outcome.result:<10} {outcome.seconds:6.1f} s")
    print(state.message)
    report = Path(root).resolve() / REPORT
    if report.is_file():
        print(f"report: {report}")


def main(root: str = ".") -> None:
    """Run the flow here and now."""
    report_on(retrain, root)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
