"""`pinspect watch`: inspects photographs as a camera writes them into a folder, each once.

The folder is polled, which also works on network shares. A file is complete if it did not change for the settle time
and can be decoded. A file that cannot be decoded gets more time, since its writer may have paused; then it is reported
with its error. Only the results table knows which files were inspected: by path in the inbox and hash of the bytes. So
a restart inspects nothing twice, and a changed file is a new capture.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pinspect.core.errors import ImageError, ModelError, PinspectError
from pinspect.core.params import load_params
from pinspect.inspection.files import is_image_name, printable, read_photograph
from pinspect.inspection.photograph_inspector import BATCH
from pinspect.inspection.records import Photograph, Prepared, Task, empty_record
from pinspect.inspection.stream import SOME_NOT_INSPECTED, exit_code
from pinspect.registry.settings import load_register_settings
from pinspect.station.champion import Champion
from pinspect.station.delivery import delivering
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import WATCH, ResultsTable, watch_id
from pinspect.station.results_database import STATION_FOLDER, ResultsError
from pinspect.station.settings import load_station_settings
from pinspect.station.trace import trace_of_name

_FILES_PER_LOOKUP = 256
_PAUSE_FACTOR = 4  # the pause after a scan is at least this many times as long as the scan
_NAP_SECONDS = 0.1
_SECONDS_BETWEEN_PRUNINGS = 86_400


class InboxError(PinspectError):
    """An inbox cannot be watched."""


# Time of the last change (ns), size (bytes), number of the inode, and time of its last change (ns), which a copy that
# keeps time and size cannot set.
Signature = tuple[int, int, int, int]


@dataclass(slots=True)
class _FileState:
    """State of a file.

    Attributes:
        signature: See `Signature`.
        since: Time of the first scan with this signature, on the monotonic clock.
        damaged: The file could not be read or decoded.
        done: Nothing is left to do.
    """

    signature: Signature
    since: float
    damaged: bool = False
    done: bool = False


class Inbox:
    """The image files below a folder, and which of them are complete.

    Hidden files, and files without the suffix of an image (`.part`, `.tmp`), are ignored.

    Args:
        folder: The folder.
        settle: Seconds without a change after which a file counts as complete.
        patience: Seconds after which a file that cannot be decoded is reported.

    Attributes:
        seconds: Duration of the last scan.
    """

    def __init__(self, folder: Path, settle: float, patience: float):
        self.folder = folder
        self.seconds = 0.0
        self._settle, self._patience = settle, patience
        self._states: dict[str, _FileState] = {}

    @property
    def unfinished(self) -> list[str]:
        """Files that still have to be inspected."""
        return [name for name, state in self._states.items() if not state.done]

    def scan(self) -> list[str]:
        """List the files that are ready, as paths relative to the folder, the oldest first.

        Raises:
            InboxError: The folder cannot be read.
        """
        now, states, ready = time.monotonic(), {}, []
        for name, signature in self._files():
            state = self._states.get(name)
            if state is None or state.signature != signature:
                state = _FileState(signature, now)
            states[name] = state
            if not state.done and now - state.since >= (self._patience if state.damaged else self._settle):
                ready.append((signature[0], name))
        self._states = states
        self.seconds = time.monotonic() - now
        return [name for _, name in sorted(ready)]

    def read(self, name: str, max_pixels: int) -> tuple[Photograph, str] | None:
        """Read a file that is ready.

        Returns:
            The photograph and its SHA-256; None if the file has changed since the last scan.

        Raises:
            ImageError: The file cannot be read or decoded.
        """
        path = self.folder / name
        photograph = read_photograph(path, max_pixels, printable(Path(name)))
        if not self._unchanged(name):
            return None
        return photograph, hashlib.sha256(photograph.content).hexdigest()

    def sha256(self, name: str) -> str | None:
        """Return the hash of a file that is ready; None if it has changed since the last scan or cannot be read."""
        with contextlib.suppress(OSError), (self.folder / name).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return sha256 if self._unchanged(name) else None
        return None

    def done(self, name: str) -> None:
        """Mark a file as done until it changes."""
        self._states[name].done = True

    def gives_up(self, name: str) -> bool:
        """Mark a file as damaged; return whether its time is over."""
        state = self._states[name]
        state.damaged = True
        return time.monotonic() - state.since >= self._patience

    def _unchanged(self, name: str) -> bool:
        try:
            return _signature((self.folder / name).stat()) == self._states[name].signature
        except OSError:
            return False

    def _files(self) -> Iterator[tuple[str, Signature]]:
        folders = [""]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self.folder / folder) as entries:
                    for entry in entries:
                        name = f"{folder}{entry.name}"
                        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                            folders.append(f"{name}/")
                        elif is_image_name(entry.name) and entry.is_file():
                            with contextlib.suppress(FileNotFoundError):  # deleted just now
                                yield name, _signature(entry.stat())
            except OSError as error:
                if folder == "" or not isinstance(error, FileNotFoundError):
                    raise InboxError(f"{self.folder / folder}: the folder cannot be read: {error.strerror}") from None


class Watcher:
    """Inspects the files of an inbox; stores and prints each result.

    Args:
        inbox: The inbox.
        champion: Source of the version that inspects.
        results: The results table.
        pictures: Stores the inspected pictures.
        max_pixels: Most pixels of an image.
        check_seconds: Time between two checks of the registry.
        shape: Pin shape; empty for the best-fitting one.
        names: Regular expression that finds serial number and lot in file names (`trace`); empty for none.
        as_json: Print results as JSON, one object per line.

    Attributes:
        code: Exit code of `pinspect inspect` for all captures so far.
    """

    def __init__(
        self,
        inbox: Inbox,
        champion: Champion,
        results: ResultsTable,
        pictures: PictureStore,
        *,
        max_pixels: int,
        check_seconds: float,
        shape: str,
        names: str,
        as_json: bool,
    ):
        self.code = 0
        self._inbox, self._champion, self._results, self._pictures = inbox, champion, results, pictures
        self._max_pixels, self._check_seconds, self._shape, self._as_json = max_pixels, check_seconds, shape, as_json
        self._names = names
        self._next_check = self._next_pruning = 0.0
        self._problems: dict[str, str] = {}
        self._stopped = False

    def stop(self) -> None:
        """Stop after the current batch; can be called from a signal handler."""
        self._stopped = True

    def run(self, *, once: bool, pause: float, give_up_after: float) -> None:
        """Inspect until `stop` is called.

        Args:
            once: Stop as soon as all files are done; errors are raised. Otherwise errors are printed and the next
                scan tries again.
            pause: Least seconds between two scans.
            give_up_after: Seconds after which `once` stops waiting for files that keep changing.

        Raises:
            PinspectError: There is no model; with `once`, also any other problem.
        """
        deadline = None
        while not self._stopped:
            is_last = deadline is not None and time.monotonic() >= deadline
            try:
                self._round()
                self._print_recovery("inbox")
            except (InboxError, ModelError, ResultsError) as error:
                if once:
                    raise
                self._print_problem("inbox", error)
            if once and (is_last or not self._inbox.unfinished):
                self._report_unfinished(self._inbox.unfinished)
                return
            deadline = deadline or time.monotonic() + give_up_after
            self._sleep(max(pause, _PAUSE_FACTOR * self._inbox.seconds))

    def _round(self) -> None:
        self._follow_registry()
        names = self._inbox.scan()
        for start in range(0, len(names), _FILES_PER_LOOKUP):
            new = self._new_files(names[start : start + _FILES_PER_LOOKUP])
            for first in range(0, len(new), BATCH):
                if self._stopped:
                    return
                self._follow_registry()
                self._inspect(new[first : first + BATCH])

    def _new_files(self, names: Sequence[str]) -> list[str]:
        """Files that the results table does not have, including files that cannot be read."""
        hashes = {name: self._inbox.sha256(name) for name in names}
        ids = {watch_id(name, sha256): name for name, sha256 in hashes.items() if sha256}
        known = {ids[id] for id in self._results.known(ids)}
        for name in known:
            self._inbox.done(name)
        return [name for name in names if name not in known]

    def _inspect(self, names: Sequence[str]) -> None:
        start = time.perf_counter()
        version = self._champion.current()
        ready: dict[str, Prepared] = {}
        photographs: dict[str, tuple[Photograph, str]] = {}
        records: dict[str, dict] = {}
        for name in names:
            try:
                if content := self._inbox.read(name, self._max_pixels):
                    photographs[name] = content
                    ready[name] = version.inspector.prepare(Task(content[0], shape=self._shape or None))
            except Exception as error:
                if version.inspector.ended:
                    raise
                if reason := self._reason(name, error):
                    records[name] = empty_record(printable(Path(name))) | {"error": reason}
        records |= dict(zip(ready, version.inspector.answer(list(ready.values())), strict=True))
        origin = {"model_version": version.number, "seconds": (time.perf_counter() - start) / len(names)}
        for name, record in records.items():
            trace = trace_of_name(printable(Path(name)), self._names)
            self._store(name, record | origin | trace, photographs.get(name))

    def _reason(self, name: str, error: Exception) -> str | None:
        """Why a file cannot be inspected; None while the file may still become complete."""
        if isinstance(error, ImageError) and not self._inbox.gives_up(name):
            return None
        if isinstance(error, PinspectError):
            return str(error)
        traceback.print_exception(error)  # a defect of pinspect must not stop the other captures
        return f"{printable(Path(name))}: inspection failed ({type(error).__name__}: {error})"

    def _store(self, name: str, record: dict, photograph: tuple[Photograph, str] | None) -> None:
        """Store a result, then print it. A file that cannot be read has no hash; its error is only printed."""
        sha256 = photograph[1] if photograph else self._inbox.sha256(name)
        id = watch_id(name, sha256) if sha256 else None
        received, is_new = datetime.now(UTC), True
        if id and sha256:
            if photograph:
                self._pictures.put(photograph[0].content, Path(name).suffix)
            is_new = self._results.record(record, id=id, sha256=sha256, source=WATCH, received=received)
        self._inbox.done(name)
        if is_new:
            self.code = max(self.code, exit_code([record]))
            self._print({"id": id, "received": received.isoformat(), "sha256": sha256} | record)

    def _print(self, result: dict) -> None:
        if self._as_json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
            return
        outcome = result["error"]
        if outcome is None:
            outcome = f"{result['judgement']}  {result['defect_mode']}  {result['defect_position']}"
            outcome += f"  P(defective) {result['p_defective']:.3f}" if result["p_defective"] is not None else ""
        print(f"{result['received'][:19]}Z  version {result['model_version']}  {result['file']}  {outcome}", flush=True)

    def _follow_registry(self) -> None:
        """Check the registry when it is time. A broken champion is reported and the last good one works on."""
        if (now := time.monotonic()) >= self._next_check:
            before = self._champion.version
            self._champion.check()
            self._next_check = now + self._check_seconds
            version = self._champion.current()
            if self._champion.failure:
                self._print_problem("champion", self._champion.failure)
            else:
                self._print_recovery("champion")
            if before is None or before.number != version.number:
                self._log(f"version {version.number} inspects")
        if now >= self._next_pruning:
            self._pictures.prune(datetime.now(UTC))
            self._next_pruning = now + _SECONDS_BETWEEN_PRUNINGS

    def _report_unfinished(self, unfinished: Sequence[str]) -> None:
        for name in unfinished:
            self._log(f"{printable(Path(name))}: the file is still being written; start again to inspect it")
            self.code = SOME_NOT_INSPECTED

    def _sleep(self, seconds: float) -> None:
        """Sleep in short steps, so that a signal can stop it."""
        until = time.monotonic() + seconds
        while not self._stopped and (remaining := until - time.monotonic()) > 0:
            time.sleep(min(_NAP_SECONDS, remaining))

    def _print_problem(self, what: str, error: PinspectError) -> None:
        """Print a problem, once however often it occurs."""
        if self._problems.get(what) != str(error):
            self._problems[what] = str(error)
            self._log(f"{error}; still watching")

    def _print_recovery(self, what: str) -> None:
        if self._problems.pop(what, None):
            self._log(f"{what}: the problem is solved")

    def _log(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def watch_inbox(
    root: Path,
    inbox: Path,
    *,
    results: str = "",
    settle: float = 1.0,
    patience: float = 30.0,
    shape: str = "",
    once: bool = False,
    as_json: bool = False,
) -> int:
    """Inspect the photographs in a folder until SIGINT or SIGTERM, which stop it after the current batch.

    Args:
        root: Folder of the project.
        inbox: The folder to watch.
        results: SQLAlchemy URL of the results table; empty for the one in settings.yaml.
        settle: Seconds without a change after which a file counts as complete.
        patience: Seconds after which a file that cannot be decoded is reported.
        shape: Pin shape; empty for the best-fitting one.
        once: Inspect the files that are in the folder now, and return.
        as_json: Print results as JSON, one object per line.

    Returns:
        The exit code: 0, or with `once` that of `pinspect inspect`.

    Raises:
        InboxError: `inbox` is not a folder, or is already watched for this project.
        ResultsError: The results table cannot be used.
        ParamsError: The address of a receiver cannot be used.
        RegistryError: No version is registered, or the registry is unreachable.
    """
    params, settings = load_params(root / "params.yaml"), load_station_settings(root)
    settings = settings.model_copy(update={"results": results or settings.results})
    state = root / STATION_FOLDER
    if not inbox.is_dir():
        raise InboxError(f"{inbox}: not a folder; name the folder that the camera writes to")
    with (
        _only_one(inbox, state),
        contextlib.closing(ResultsTable.of_project(root, settings)) as table,
        delivering(root, settings, finish=once),
    ):
        watcher = Watcher(
            Inbox(inbox, settle, patience),
            Champion(root, load_register_settings(root), state),
            table,
            PictureStore(root, settings.keep_days, settings.keep_bytes),
            max_pixels=params.raw.max_pixels,
            check_seconds=settings.champion_check_seconds,
            shape=shape,
            names=settings.names,
            as_json=as_json,
        )
        with _stopped_by_signals(watcher):
            watcher.run(once=once, pause=settle, give_up_after=settle + patience)
    return watcher.code if once else 0


@contextlib.contextmanager
def _only_one(inbox: Path, state: Path) -> Iterator[None]:
    """Lock an inbox for one watcher of a project; a killed process releases the lock."""
    name = hashlib.sha256(os.fsencode(inbox.resolve())).hexdigest()[:16]
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / f"watch-{name}.lock", timeout=0):
            yield
    except Timeout:
        raise InboxError(f"{inbox}: another pinspect watch is running on this folder; stop it first") from None


@contextlib.contextmanager
def _stopped_by_signals(watcher: Watcher) -> Iterator[None]:
    signals = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, lambda *_: watcher.stop()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signature(status: os.stat_result) -> Signature:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
