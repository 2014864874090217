"""Runs every DVC stage as a Prefect task, in the order of the DAG: `dvc repro` with logs, times, retries and artifacts.

    python -m flows.retrain [PROJECT]

Without PREFECT_API_URL Prefect starts a server for the duration of the flow. A run in which nothing has changed ends
Completed, with the name Skipped.
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
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil
from prefect import Flow, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.notices import HOOKS
from flows.recovery import CheckoutBusyError, one_per_checkout, secure_lock_file
from flows.report_page import REPORT
from flows.run_artifacts import publish
from flows.run_names import retrain_name
from flows.states import SKIPPED, end_state
from pinspect.captures.dvc_images import record_images
from pinspect.cli.status import UNCHANGED, stage_states
from pinspect.core.errors import PinspectError, StageInputError, run
from pinspect.core.params import load_params
from pinspect.core.start import START
from pinspect.registry.settings import load_register_settings

CAPTURES = Path("data/captures")
TRY_AGAIN_LATER = 75  # EX_TEMPFAIL: a stage's surroundings failed, not its data
SECONDS_TO_STOP = 10
_SESSION = Path(__file__).with_name("session.py")
_EXITED = re.compile(r"exited with (-?\d+)")
_LOCKED = ("Unable to acquire lock", "is busy, it is being blocked by")
_UNCHANGED = "didn't change, skipping"
_RESTORED = "is cached - skipping run"
_LINES_OF_AN_ERROR = 8
_REGISTER = "register"
_UP_TO_TRAINING = {"raw", "dst", "composite", "chat", "check", "train"}


class StageFailedError(PinspectError):
    """A stage failed for a reason that another try would not change."""


class InfrastructureError(StageFailedError):
    """A stage was killed, found DVC locked, or asked by its exit code for another try."""

    exit_code = TRY_AGAIN_LATER


@dataclass(frozen=True)
class StageOutcome:
    """What a run did with one stage.

    Attributes:
        stage: The name of the stage.
        result: `ran`, `unchanged`, or `restored` if DVC's run cache had the outputs.
        seconds: The duration, in seconds.
    """

    stage: str
    result: str
    seconds: float

    @property
    def ran(self) -> bool:
        """Whether the stage's command was run."""
        return self.result == "ran"


@flow(name="retrain", flow_run_name=retrain_name, **HOOKS)
def retrain(root: str = ".", retries: int = 2, retry_delay_seconds: float = 30, keep: str = "") -> State:
    """Bring a project up to date, stage by stage; one such run at a time works in a checkout.

    Args:
        root: The project's folder.
        retries: How often a stage is tried again that was killed, found DVC locked or got no answer from the registry.
        retry_delay_seconds: The pause before each retry, in seconds.
        keep: If the project is a clone that ends with the run: the folder of this machine that stays. The data then
            come from the DVC remote, and the result goes to the remotes (`flows.elsewhere`).

    Returns:
        Completed with a list of StageOutcome, and with the name Skipped if nothing had changed; Failed with the last
        lines of the stage; Cancelled if another run works in the checkout.
    """

    def work(project: Path) -> State:
        if not keep:
            return bring_up_to_date(project, retries, retry_delay_seconds)
        from flows.elsewhere import in_clone  # imports MLflow

        attempts = {"retries": retries, "retry_delay_seconds": retry_delay_seconds}
        train = partial(bring_up_to_date, project, retries, retry_delay_seconds, lineage=False)
        return in_clone(project, Path(keep), train, attempts)

    return in_checkout(root, work)


def in_checkout(root: str, work: Callable[[Path], State]) -> State:
    """Do `work` on a project while no other run works in its checkout.

    Args:
        root: The project's folder.
        work: Takes the absolute path of the project, returns a state.

    Returns:
        As `states.end_state`.
    """
    project = Path(root).resolve()

    def locked() -> State:
        with one_per_checkout(project):
            return work(project)

    return end_state(locked)


def bring_up_to_date(project: Path, retries: int, retry_delay_seconds: float, *, lineage: bool = True) -> State:
    """Run each stage that is not up to date as a task, then publish the artifacts of the run.

    Args:
        project: The project's folder.
        retries: As in `retrain`.
        retry_delay_seconds: As in `retrain`.
        lineage: Whether to keep what made a new version, see `keep_lineage`.

    Returns:
        Completed, with a list of StageOutcome as its data.

    Raises:
        CaptureError: DVC cannot record the images of the captures.
        StageFailedError: A stage failed; InfrastructureError if another try may help.
    """
    record_images(project / CAPTURES)  # those of corrections, too
    try:
        states = stage_states(project)
    except StageInputError as error:
        raise StageFailedError(str(error)) from None
    stale = {stage for stage, state in states.items() if state["state"] != UNCHANGED}
    if not stale:
        outcomes = [StageOutcome(stage, "unchanged", 0.0) for stage in states]
        return Completed(name=SKIPPED, message="Nothing has changed since the last run.", data=outcomes)
    if stale & _UP_TO_TRAINING:  # in a run that does not train, another champion would make the adapter stale
        _fetch_start(project)
    attempt = reproduce.with_options(retries=retries, retry_delay_seconds=retry_delay_seconds)
    outcomes = []
    for stage in states:
        state = attempt(stage, str(project), stage in stale, return_state=True)
        if not state.is_completed():
            raise _as_error(stage, state)
        outcomes.append(state.result())
    if lineage and any(outcome.stage == _REGISTER and outcome.ran for outcome in outcomes):
        keep_lineage(project)
    publish(project, outcomes)
    return Completed(message=f"{sum(outcome.ran for outcome in outcomes)} stages ran.", data=outcomes)


def keep_lineage(project: Path) -> None:
    """Save what made the new version as an experiment of DVC, and push it; a problem is a warning in the run's log."""
    from pinspect.registry.lineage import new_name, push_experiment, save_lineage  # imports MLflow

    logger, name = get_run_logger(), new_name("retrain", datetime.now())
    try:
        save_lineage(project, load_register_settings(project), name, logger.info)
        if pushed := push_experiment(project, name):
            logger.info("experiment %s pushed to %s", name, pushed)
    except PinspectError as error:
        logger.warning("pinspect reproduce will not know this version: %s", error)


def _fetch_start(project: Path) -> None:
    """Fetch the adapter of the version that train.start names, if it names one."""
    if (project / START).is_dir() and (reference := load_params(project / "params.yaml").train.start):
        from pinspect.registry.start import fetch_start  # imports MLflow

        fetch_start(project, load_register_settings(project), reference)


class _WithoutTraceback(logging.Filter):
    """Logs an error that pinspect explains as its message alone, even if it is raised so that Prefect tries again."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PinspectError):
            record.exc_info = None
        return True


logging.getLogger("prefect.task_runs").addFilter(_WithoutTraceback())


def _is_worth_another_try(_task: object, _task_run: object, state: State) -> bool:
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


@task(task_run_name="{stage}", retry_condition_fn=_is_worth_another_try, cache_policy=NO_CACHE)
def reproduce(stage: str, root: str, stale: bool = True) -> State | StageOutcome:
    """Run `dvc repro --single-item` for one stage and log its output; end as Cached if the stage is not stale."""
    if not stale:
        return Completed(name="Cached", data=StageOutcome(stage, "unchanged", 0.0))
    try:
        return run_stage(stage, Path(root), get_run_logger().info)
    except InfrastructureError:
        raise  # Prefect retries after an error that is raised, not after a state that is returned
    except StageFailedError as error:
        return Failed(message=str(error), data=error)


def run_stage(stage: str, root: Path, log: Callable[[str], object]) -> StageOutcome:
    """Reproduce one stage in its own session; no process of the session outlives this call, or this process.

    Args:
        stage: The name of the stage.
        root: The project's folder.
        log: Called with each line of output.

    Returns:
        What was done.

    Raises:
        StageFailedError: The stage failed, with its last lines; InfrastructureError if another try may help.
    """
    start = time.monotonic()
    secure_lock_file(root)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_SESSION), sys.executable, "-m", "dvc", "repro", "--single-item", stage],
        cwd=root,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdin=subprocess.PIPE,  # closed when this process ends: flows/session.py then kills the stage
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    threading.Thread(target=_clear_session, args=(process,), daemon=True).start()
    try:
        lines = list(_logged(process, log))
        code = process.wait()
    finally:
        end_session(process)
    if code:
        raise _stage_error(stage, code, lines)
    return StageOutcome(stage, _result(lines), round(time.monotonic() - start, 1))


def end_session(process: subprocess.Popen) -> None:
    """End a session of `flows/session.py` and every process in it: by SIGTERM first, then by SIGKILL.

    Args:
        process: The session's process, with a pipe as its stdin.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_STOP)
    if process.stdin:
        process.stdin.close()  # the session kills its command, then ends
    _clear_session(process)
    if process.stdout:
        process.stdout.close()


def _clear_session(process: subprocess.Popen) -> None:
    """Kill what is left of a session whose own process has ended: something only if that process was killed."""
    process.wait()
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == process.pid:
                os.kill(pid, signal.SIGKILL)


def _logged(process: subprocess.Popen, log: Callable[[str], object]) -> Iterator[str]:
    for line in process.stdout or ():
        if text := line.rstrip():
            log(text)
            yield text


def _result(lines: list[str]) -> str:
    if any(_UNCHANGED in line for line in lines):
        return "unchanged"
    return "restored" if any(_RESTORED in line for line in lines) else "ran"


def _stage_error(stage: str, code: int, lines: list[str]) -> StageFailedError:
    codes = [int(match[1]) for match in map(_EXITED.search, lines) if match]
    stage_code = codes[-1] if codes else None
    last = [line for line in lines if not line.startswith(("Running stage", "> "))][-_LINES_OF_AN_ERROR:]
    text = "\n".join([f"stage {stage} failed (dvc {code}, its command {stage_code}):", *last])
    # A signal n shows as 128 + n in a shell and in our session, as -n in Python and so in dvc.
    killed = code < 0 or 128 < code < 160 or (stage_code is not None and (stage_code < 0 or stage_code > 128))
    locked = any(phrase in line for line in lines for phrase in _LOCKED)
    return (InfrastructureError if killed or locked or stage_code == TRY_AGAIN_LATER else StageFailedError)(text)


def _as_error(stage: str, state: State) -> StageFailedError:
    """Return the task's own error, with its exit code; if it has none, an error with the state's message."""
    error = state.result(raise_on_failure=False)
    return error if isinstance(error, StageFailedError) else StageFailedError(f"stage {stage}: {state.message}")


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run_here(project_flow: Flow, root: str, **options: object) -> None:
    """Run a flow in this process and print what it did with each stage; SIGTERM ends the running stage too.

    Args:
        project_flow: `retrain`, or a flow that ends like it.
        root: The project's folder.
        **options: Further parameters of the flow.

    Raises:
        PinspectError: The flow failed, or another run works in the checkout.
    """
    signal.signal(signal.SIGTERM, _stop)
    state = project_flow(root, **options, return_state=True)
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        if isinstance(error, PinspectError):
            raise error
        raise CheckoutBusyError(state.message) if state.is_cancelled() else StageFailedError(state.message)
    for outcome in state.result():
        print(f"{outcome.stage:<12} {outcome.result:<10} {outcome.seconds:6.1f} s")
    print(state.message)
    report = Path(root).resolve() / REPORT
    if report.is_file():
        print(f"report: {report}")


def main(root: str = ".") -> None:
    """Bring the project in `root` up to date in this process."""
    run_here(retrain, root)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
