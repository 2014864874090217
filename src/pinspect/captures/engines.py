"""What makes the batches of a stage: processes of this machine, or the workers of a Dask cluster.

Both are an executor of `concurrent.futures`. A worker of a cluster may be another machine with other code, and it may
work on after the run that asked for a batch was killed. So each worker is checked, and it writes the files of a batch
only when the batch is complete and its run is still the latest of this folder.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
import multiprocessing
import os
import platform
import queue
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pinspect.core.code import room_digest
from pinspect.core.environment import keep_freed_memory
from pinspect.core.errors import EngineError, EngineUnreachableError
from pinspect.core.files import write_file
from pinspect.core.yaml_file import SETTINGS_FILE, Section, load_settings

if TYPE_CHECKING:
    from distributed import Client

Engine = Literal["processes", "dask"]
Work = Callable[[Sequence[Any]], tuple[list[dict], Mapping[str, bytes]]]

_ADDRESS = "DASK_SCHEDULER_ADDRESS"
_AHEAD = 1000  # batches that wait in the executor: enough for a large cluster, and little memory
_LISTED = 8  # workers
_RUN = ".run-"
_ROOMS = ("core", "virtual_line", "captures", "nsoartc", "composites")
_MODULES = ("numpy", "scipy", "cv2", "PIL", "distributed")


class ImagingSettings(Section):
    """The section `imaging` of `settings.yaml`.

    Attributes:
        engine: What makes raw, dst and composited images.
    """

    engine: Engine = "processes"


def load_engine(root: Path) -> Engine:
    """Return the engine of the project in `root`: Dask if the environment names a scheduler, else by `settings.yaml`.

    Raises:
        ParamsError: The section `imaging` cannot be used.
    """
    if os.environ.get(_ADDRESS):
        return "dask"
    if not (root / SETTINGS_FILE).is_file():
        return "processes"
    return load_settings(root, "imaging", ImagingSettings).engine


@dataclass(frozen=True)
class Batch:
    """A batch that was made.

    Attributes:
        worker: The process that made it: host and process id.
        seconds: How long it took.
        products: A product of each item.
    """

    worker: str
    seconds: float
    products: list[dict]


class Throughput:
    """Counts what each worker makes."""

    def __init__(self):
        self._start = time.monotonic()
        self._made: dict[str, int] = defaultdict(int)
        self._busy: dict[str, float] = defaultdict(float)

    def add(self, batch: Batch) -> None:
        """Count a batch."""
        self._made[batch.worker] += len(batch.products)
        self._busy[batch.worker] += batch.seconds

    def line(self) -> str:
        """Return one line: items per second of the run, and of each worker while it was making items."""
        made, seconds = sum(self._made.values()), time.monotonic() - self._start
        rates = {worker: number / self._busy[worker] for worker, number in sorted(self._made.items())}
        if len(rates) <= _LISTED:
            each = ", ".join(f"{worker} {self._made[worker]:,} at {rate:.1f}/s" for worker, rate in rates.items())
        else:
            each = f"{len(rates)} workers, each at {min(rates.values()):.1f} to {max(rates.values()):.1f}/s"
        return f"{made:,} in {seconds:.1f} s, {made / seconds:.1f}/s: {each}"


class BatchMaker:
    """Makes batches. Processes of this machine start when there is work for them, and end with `close`.

    Args:
        engine: What makes the batches. This process makes a single batch by itself.
        folder: The folder that gets the files, each at once. All machines of a cluster share it.
    """

    def __init__(self, engine: Engine, folder: Path):
        self._engine = engine
        self._folder = folder
        self._pool: ProcessPoolExecutor | None = None

    def make(self, work: Work, batches: Sequence[Sequence[Any]], workers: int | None) -> Iterator[Batch]:
        """Call `work(batch)` for each batch, write its files, and yield the results in the order of completion.

        Args:
            work: Returns the product of each item of a batch, and the content of each file by its path in the folder.
                Picklable.
            batches: The batches.
            workers: Number of processes; by default one per core. 1: this process makes all batches, with Dask as well.
                A cluster has its own number, and so have processes that an earlier call has started.

        Raises:
            EngineError: The cluster cannot be used.
            Exception: Any exception of `work`.
        """
        processes = workers or os.cpu_count() or 1
        if len(batches) == 1 or (processes == 1 and (self._engine == "processes" or workers == 1)):
            if len(batches) > 1:
                keep_freed_memory()
            yield from (_make(work, self._folder, batch) for batch in batches)
        elif self._engine == "processes":
            context = multiprocessing.get_context("spawn")  # forked threads may hang
            self._pool = self._pool or ProcessPoolExecutor(processes, context, initializer=_begin_worker)
            yield from _results(self._pool, functools.partial(_make, work, self._folder), batches)
        else:
            client = _client()
            with _run_file(self._folder.absolute()) as run, _explained_errors():
                _check_workers(client, run)
                executor = client.get_executor(pure=False)
                yield from _results(executor, functools.partial(_make_on_worker, work, run, facts()), batches)

    def close(self) -> None:
        """End the processes; those that are at work first finish their batch."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _results(executor: Executor, make: Callable[[Any], Batch], batches: Sequence[Any]) -> Iterator[Batch]:
    """Yield the results of `make` in the order of completion; few batches wait in the executor at a time."""
    waiting = iter(batches)
    pending: set[Future[Batch]] = set()
    done: queue.SimpleQueue[Future[Batch]] = queue.SimpleQueue()

    def submit(number: int) -> None:
        for batch in itertools.islice(waiting, number):
            future = executor.submit(make, batch)
            pending.add(future)
            future.add_done_callback(done.put)

    try:
        submit(_AHEAD)
        while pending:
            future = done.get()
            pending.remove(future)
            submit(1)
            yield future.result()
    finally:
        for future in pending:
            future.cancel()


def _make(work: Work, folder: Path, batch: Sequence[Any], run: Path | None = None) -> Batch:
    start = time.monotonic()
    products, files = work(batch)
    if run and not run.exists():
        raise EngineError(f"{run}: the run has ended")
    for name, content in files.items():
        write_file(folder / name, content)
    return Batch(f"{platform.node()}:{os.getpid()}", time.monotonic() - start, products)


def _begin_worker() -> None:
    """Keep freed memory, and exit when the parent is killed: otherwise a worker would wait for work forever."""
    keep_freed_memory()
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _client() -> Client:
    """Return Dask's client of this process: the current one, or one of the scheduler that Dask's configuration names.

    Without a scheduler a cluster is started on this machine. It ends with this process.
    """
    try:
        import dask.config
        from distributed import Client
    except ModuleNotFoundError as error:
        raise EngineError(
            f"{error.name} is not installed, and {_ADDRESS} or imaging.engine in settings.yaml asks for Dask; "
            "run pip install 'pinspect[dask]'"
        ) from None
    with suppress(ValueError):
        return Client.current()
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs, an EngineError explains
    address = dask.config.get("scheduler-address", None)
    if not address:
        return Client(threads_per_worker=1, dashboard_address="127.0.0.1:0", security=True)
    try:
        return Client(address)
    except OSError as error:
        raise EngineUnreachableError(
            f"{address}: no Dask scheduler answers ({error}); start it, correct {_ADDRESS}, or unset it to use the "
            "processes of this machine"
        ) from None
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"{address}: cannot be reached as a Dask scheduler ({error}); correct {_ADDRESS} or Dask's certificates"
        ) from None


@contextmanager
def _run_file(folder: Path) -> Iterator[Path]:
    """Yield a new file of the folder that exists during this run, and end earlier runs that workers still work for."""
    for run in folder.glob(f"{_RUN}*"):
        run.unlink(missing_ok=True)
    run = folder / f"{_RUN}{uuid.uuid4().hex}"
    run.touch()
    try:
        yield run
    finally:
        run.unlink(missing_ok=True)


@contextmanager
def _explained_errors() -> Iterator[None]:
    """Explain errors of the cluster to its user."""
    from distributed import KilledWorker

    try:
        yield
    except KilledWorker as error:
        raise EngineError(
            f"the worker {error.last_worker.address} ended, and so did others that got the same batch; "
            "give the workers more memory, and see their logs"
        ) from None
    except CancelledError:
        raise EngineUnreachableError(
            "the Dask scheduler ended or was restarted; what is made stays: run the stage again"
        ) from None


def _check_workers(client: Client, run: Path) -> None:
    """Check each worker that the cluster has now; a worker that comes later is checked by its first batch."""
    if not client.nthreads():
        print("the Dask cluster has no workers yet; waiting for them", file=sys.stderr)
        client.submit(int, pure=False).result()  # an adaptive cluster starts workers when there is work
    answers = cast("dict[str, Any]", client.run(differences, run, facts(), on_error="return"))
    problems = [
        f"worker {address}: {answer}{'; install pinspect[dask] there' if isinstance(answer, Exception) else ''}"
        for address, answer in sorted(answers.items())
        if answer and not isinstance(answer, OSError)  # this worker has ended meanwhile
    ]
    if problems:
        raise EngineError("\n".join(problems))


def differences(run: Path, expected: dict[str, str]) -> str:
    """Return why this process, a worker of a cluster, cannot work for a run; empty if it can.

    Args:
        run: The file of the run, in the folder that gets the files.
        expected: The facts of the machine that asks.
    """
    if not run.exists():
        return f"{run.parent} is not there, or is another folder; share it among all machines under the same path"
    if not os.access(run.parent, os.W_OK):
        return f"{run.parent} is not writable; run the worker as its owner"
    own = facts()
    different = [f"{name} {own[name]} instead of {value}" for name, value in expected.items() if own[name] != value]
    return f"{', '.join(different)}; install the same versions there, then restart it" if different else ""


@functools.cache
def facts() -> dict[str, str]:
    """Return what a product depends on beside its inputs and parameters: Python, libraries, and pinspect's own code.

    The facts stay those of the first call in this process: it works on with the code that it has imported, even if the
    files are edited.
    """
    versions = {name: importlib.import_module(name).__version__ for name in _MODULES}
    code = {f"pinspect.{room}": room_digest(room)[:8] for room in _ROOMS}
    return {"Python": ".".join(platform.python_version_tuple()[:2])} | versions | code


def _make_on_worker(work: Work, run: Path, expected: dict[str, str], batch: Sequence[Any]) -> Batch:
    """Make a batch on a worker of a cluster; a worker that still works for an ended run changes nothing."""
    from distributed import get_worker

    if problem := differences(run, expected):
        raise EngineError(f"worker {get_worker().address}: {problem}")
    keep_freed_memory()  # Dask starts workers with a MALLOC_TRIM_THRESHOLD_ that returns each array: half the speed
    return _make(work, run.parent, batch, run)
