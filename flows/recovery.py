"""Locks a checkout for one run, and repairs what a killed run has left in it.

The kernel frees some locks of a killed process, but not all traces of it:

- `.dvc/tmp/rwlock` is a file of process ids. DVC ignores ids without a process, but it takes another program with the
  same id (after a restart, for instance) for the owner, and fails on a file that was cut off.
- DVC writes `dvc.lock` in place after each stage, so a kill can cut it off.
- A self-hosted Prefect server shows the killed run as Running forever.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import psutil
import yaml
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from filelock import FileLock, Timeout
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed

from pinspect.core.errors import PinspectError

_LOCK_FILE = "dvc.lock"
_FOLDER = Path(".dvc/tmp/retrain")


class CheckoutError(PinspectError):
    """The folder is not a checkout that a flow can work in."""


class CheckoutBusyError(CheckoutError):
    """Another flow works in this checkout."""

    exit_code = 75  # EX_TEMPFAIL: try again later


@contextmanager
def one_per_checkout(root: Path) -> Iterator[None]:
    """Lock a checkout for this run, and repair what a killed run has left.

    Args:
        root: The project's folder.

    Yields:
        Nothing, once this process holds the lock.

    Raises:
        CheckoutBusyError: Another run holds the lock; raised at once.
        CheckoutError: The folder is not a DVC project.
    """
    if not (root / ".dvc").is_dir():
        raise CheckoutError(f"{root}: not a DVC project; name the folder that holds dvc.yaml and .dvc")
    (root / _FOLDER).mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / _FOLDER / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckoutBusyError(f"{root}: another run works in this checkout; wait until it has ended") from None
    try:
        _report_killed_run(root)
        _drop_stale_locks(root / ".dvc/tmp/rwlock")
        secure_lock_file(root)
        _note_this_run(root)
        yield
    finally:
        _note(root).unlink(missing_ok=True)
        lock.release()


def is_busy(root: Path) -> bool:
    """Return whether a run works in a checkout; unlike a try to lock it, this disturbs no other run.

    Args:
        root: The project's folder.
    """
    try:
        return psutil.pid_exists(json.loads(_note(root).read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError):  # no run works, or its note is just being written
        return False


def secure_lock_file(root: Path) -> None:
    """Copy `dvc.lock` if it is intact; restore it from the copy if a kill has cut it off.

    Args:
        root: The project's folder.
    """
    path, copy = root / _LOCK_FILE, root / _FOLDER / _LOCK_FILE
    if not path.is_file():
        return
    if _is_intact(path):
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_suffix(".partial")
        shutil.copyfile(path, partial)
        partial.replace(copy)
    elif copy.is_file():
        shutil.copyfile(copy, path)


def _is_intact(lock_file: Path) -> bool:
    """Return whether DVC can read the file and its last line is complete.

    A file that was cut off between two lines passes: DVC then runs the stages that the file lacks.
    """
    try:
        text = lock_file.read_text(encoding="utf-8")
        Lockfile.validate(yaml.safe_load(text), str(lock_file))
    except (yaml.YAMLError, DvcException, UnicodeDecodeError):
        return False
    return text.endswith("\n")


def _drop_stale_locks(path: Path) -> None:
    """Remove the entries of DVC's rwlock file that no running dvc holds; remove a file that cannot be read."""
    with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent)):
        try:
            locks = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            path.unlink()
            return
        write = {out: owner for out, owner in locks.get("write", {}).items() if _is_dvc(owner["pid"])}
        read = {
            out: [owner for owner in owners if _is_dvc(owner["pid"])] for out, owners in locks.get("read", {}).items()
        }
        path.write_text(json.dumps({"write": write, "read": {out: owners for out, owners in read.items() if owners}}))


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _note(root: Path) -> Path:
    """Return the file that names the run which works in the checkout; it exists as long as that run works."""
    return root / _FOLDER / "run.json"


def _note_this_run(root: Path) -> None:
    if flow_run.id:
        _note(root).write_text(json.dumps({"flow_run": str(flow_run.id), "pid": os.getpid()}), encoding="utf-8")


def _report_killed_run(root: Path) -> None:
    """Mark the run of a leftover note as Crashed: it was killed, because its lock is free."""
    try:
        killed = UUID(json.loads(_note(root).read_text(encoding="utf-8"))["flow_run"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError):  # the note was cut off
        _note(root).unlink()
        return
    if flow_run.id and str(killed) != str(flow_run.id):
        with suppress(ObjectNotFound), get_client(sync_client=True) as client:  # not found: it ran on another server
            _mark_crashed(client, killed)
    _note(root).unlink()


def _mark_crashed(client: SyncPrefectClient, run_id: UUID) -> None:
    run = client.read_flow_run(run_id)
    if run.state and run.state.is_final():
        return
    state = Crashed(message="The run's process was killed; the next run in its checkout noticed.")
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))):
        if not (task_run.state and task_run.state.is_final()):
            client.set_task_run_state(task_run.id, state, force=True)
    client.set_flow_run_state(run_id, state, force=True)
