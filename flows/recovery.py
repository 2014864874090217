"""What a run that was killed leaves behind, put right by the next one, which holds the checkout's lock.

DVC's own locks are of two kinds. The kernel's go with the process that held them. `.dvc/tmp/rwlock` is a file of
process ids: DVC forgets those that are gone, but neither one that another program has by now (after a restart, say) nor
a file that was cut off while it was written. `dvc.lock` is written in place, too, after every stage.
"""

from __future__ import annotations

import json
import os
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
from pinspect.core.files import write_file

LOCK_FILE = "dvc.lock"
_PLACE = Path(".dvc/tmp/retrain")


class CheckoutError(PinspectError):
    """The folder is no checkout that a flow can work in."""


class CheckoutBusyError(CheckoutError):
    """Another flow works in this checkout."""

    exit_code = 75  # EX_TEMPFAIL: try again later


@contextmanager
def one_per_checkout(root: Path) -> Iterator[None]:
    """Hold the checkout's lock, after putting right what a killed run has left.

    Raises CheckoutBusyError at once when another flow holds it, CheckoutError where `root` is no DVC project.
    """
    if not (root / ".dvc").is_dir():
        raise CheckoutError(f"{root}: no DVC project; name the folder that holds dvc.yaml and .dvc")
    (root / _PLACE).mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / _PLACE / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CheckoutBusyError(f"{root}: another run works in this checkout; it will be done when that is") from None
    try:
        _crash_the_run_that_died(root)
        _forget_dead_lockers(root / ".dvc/tmp/rwlock")
        secure_lock_file(root)
        _note_this_run(root)
        yield
    finally:
        _note(root).unlink(missing_ok=True)
        lock.release()


def secure_lock_file(root: Path) -> None:
    """Keep a copy of `dvc.lock` while it is whole; put the copy back where a kill has cut it off."""
    path, kept = root / LOCK_FILE, root / _PLACE / LOCK_FILE
    if not path.is_file():
        return
    if _is_whole(path):
        write_file(kept, path.read_bytes())
    elif kept.is_file():
        write_file(path, kept.read_bytes())


def _is_whole(lock_file: Path) -> bool:
    """Whether DVC could read it and its last line has an end. Cut off between lines it is whole, too, and DVC runs the
    stages that it lacks."""
    try:
        text = lock_file.read_text(encoding="utf-8")
        Lockfile.validate(yaml.safe_load(text), str(lock_file))
    except (yaml.YAMLError, DvcException, UnicodeDecodeError):
        return False
    return text.endswith("\n")


def _forget_dead_lockers(path: Path) -> None:
    """Take out of DVC's rwlock file what no living dvc holds; a file that cannot be read goes as a whole."""
    with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent)):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            path.unlink()
            return
        writers = {out: who for out, who in held.get("write", {}).items() if _is_dvc(who["pid"])}
        readers = {out: [one for one in who if _is_dvc(one["pid"])] for out, who in held.get("read", {}).items()}
        path.write_text(json.dumps({"write": writers, "read": {out: who for out, who in readers.items() if who}}))


def _is_dvc(pid: int) -> bool:
    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _note(root: Path) -> Path:
    """Where a run says who it is for as long as it works."""
    return root / _PLACE / "run.json"


def _note_this_run(root: Path) -> None:
    if flow_run.id:
        _note(root).write_text(json.dumps({"flow_run": str(flow_run.id), "pid": os.getpid()}), encoding="utf-8")


def _crash_the_run_that_died(root: Path) -> None:
    """A run whose note is still there, while its lock was free, died without a word: tell the server so.

    A self-hosted server never notices by itself, and would show the run as Running for ever.
    """
    try:
        died = UUID(json.loads(_note(root).read_text(encoding="utf-8"))["flow_run"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError):  # the note was cut off
        _note(root).unlink()
        return
    if str(died) != str(flow_run.id) and flow_run.id:
        with suppress(ObjectNotFound), get_client(sync_client=True) as client:  # not found: it was another server's
            _crash(client, died)
    _note(root).unlink()


def _crash(client: SyncPrefectClient, died: UUID) -> None:
    found = client.read_flow_run(died)
    if found.state and found.state.is_final():
        return
    state = Crashed(message="The run's process died without a word (found by the next run in its checkout).")
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[died]))):
        if not (task_run.state and task_run.state.is_final()):
            client.set_task_run_state(task_run.id, state, force=True)
    client.set_flow_run_state(died, state, force=True)
