"""`pinspect watch`: photographs inspected as a camera writes them into a folder, each once.

The folder is looked at again and again, which works on network shares, too. A file counts as whole when two looks, the
settle time apart, found it unchanged and it can be decoded; one that cannot be is given time, since its writer may have
paused, and is told with its error then. What was inspected is known by the results table alone: by the file's path in
the inbox and the hash of its bytes. So a restart inspects nothing twice, and a file that changed is a new capture.
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

from pinspect.core.errors import ImageError, PinspectError
from pinspect.core.params import load_params
from pinspect.inspection.files import is_image_name, printable, read_photograph
from pinspect.inspection.inspector import BATCH
from pinspect.inspection.records import Photograph, Prepared, Task, empty_record
from pinspect.inspection.stream import SOME_NOT_INSPECTED, exit_code
from pinspect.registry.settings import load_register_settings
from pinspect.station.champion import Champion
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import STATION_FOLDER, WATCH, ResultsError, ResultsTable, watch_id
from pinspect.station.settings import load_station_settings

_LOOKED_UP_TOGETHER = 256
_REST = 4  # times as long as a look took, at least: looking at a big inbox must not eat the machine
_NAP = 0.1
_SECONDS_BETWEEN_PRUNINGS = 86_400


class InboxError(PinspectError):
    """An inbox cannot be watched."""


@dataclass(slots=True)
class _Sight:
    """What is known of a file. signature: time of change (ns), size. since: the look that first found it so, by the
    monotonic clock. damaged: it could not be read or decoded. done: there is nothing left to do."""

    signature: tuple[int, int]
    since: float
    damaged: bool = False
    done: bool = False


class Inbox:
    """The image files below a folder, and which of them are whole; it remembers as many as there are.

    settle, patience: seconds that a file must be unchanged to count as whole, and until a damaged one is given up.
    seconds: what the last look took. Hidden files and those without an image's suffix (`.part`, `.tmp`) do not count.
    """

    def __init__(self, folder: Path, settle: float, patience: float):
        self.folder = folder
        self.seconds = 0.0
        self._settle, self._patience = settle, patience
        self._sights: dict[str, _Sight] = {}

    @property
    def unfinished(self) -> list[str]:
        """The files that are not done."""
        return [name for name, sight in self._sights.items() if not sight.done]

    def look(self) -> list[str]:
        """The files that are ready, by their paths relative to the folder, the oldest first. Raises InboxError when the
        folder cannot be read."""
        now, seen, ready = time.monotonic(), {}, []
        for name, signature in self._files():
            sight = self._sights.get(name)
            if sight is None or sight.signature != signature:
                sight = _Sight(signature, now)
            seen[name] = sight
            if not sight.done and now - sight.since >= (self._patience if sight.damaged else self._settle):
                ready.append((signature[0], name))
        self._sights = seen
        self.seconds = time.monotonic() - now
        return [name for _, name in sorted(ready)]

    def read(self, name: str, max_pixels: int) -> tuple[Photograph, str] | None:
        """The bytes of a file that is ready, and their SHA-256; None where it is not any more. Raises ImageError."""
        path = self.folder / name
        photograph = read_photograph(path, max_pixels, printable(Path(name)))
        if not self._unchanged(name):
            return None
        return photograph, hashlib.sha256(photograph.content).hexdigest()

    def sha256(self, name: str) -> str | None:
        """The hash of a file that is ready; None where it is not any more, or cannot be read."""
        with contextlib.suppress(OSError), (self.folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            return found if self._unchanged(name) else None
        return None

    def done(self, name: str) -> None:
        """There is nothing left to do for a file, as long as it stays as it is."""
        self._sights[name].done = True

    def gives_up(self, name: str) -> bool:
        """Whether a file that is damaged has been so for long enough; else it is given time."""
        sight = self._sights[name]
        sight.damaged = True
        return time.monotonic() - sight.since >= self._patience

    def _unchanged(self, name: str) -> bool:
        try:
            return _signature((self.folder / name).stat()) == self._sights[name].signature
        except OSError:
            return False

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
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
                            with contextlib.suppress(FileNotFoundError):  # taken away at this moment
                                yield name, _signature(entry.stat())
            except OSError as error:
                if folder == "" or not isinstance(error, FileNotFoundError):
                    raise InboxError(f"{self.folder / folder}: cannot be read: {error.strerror}") from None


class Watcher:
    """Inspects what comes into an inbox, and keeps and tells each result.

    champion: what inspects; it is asked about every `check_seconds` whether it is still the one. code: the exit code
    of `pinspect inspect` for all that was inspected so far.
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
        as_json: bool,
    ):
        self.code = 0
        self._inbox, self._champion, self._results, self._pictures = inbox, champion, results, pictures
        self._max_pixels, self._check_seconds, self._shape, self._as_json = max_pixels, check_seconds, shape, as_json
        self._next_check = self._next_pruning = 0.0
        self._troubles: dict[str, str] = {}
        self._stopped = False

    def stop(self) -> None:
        """End after the batch in hand; may be called by a signal's handler."""
        self._stopped = True

    def run(self, *, once: bool, rest: float, give_up_after: float) -> None:
        """Go on until `stop`, or, `once`, until all that is there is done. rest, give_up_after: seconds between two
        looks, at least, and until `once` waits no longer for files that go on changing.

        Raises PinspectError when there is no model at all and, `once`, whatever stands in the way; else that is told
        and tried again.
        """
        deadline = None
        while not self._stopped:
            is_last = deadline is not None and time.monotonic() >= deadline
            try:
                self._round()
                self._all_is_well("inbox")
            except (InboxError, ResultsError) as error:
                if once:
                    raise
                self._tell_trouble("inbox", error)
            if once and (is_last or not self._inbox.unfinished):
                self._leave(self._inbox.unfinished)
                return
            deadline = deadline or time.monotonic() + give_up_after
            self._sleep(max(rest, _REST * self._inbox.seconds))

    def _round(self) -> None:
        self._follow()
        names = self._inbox.look()
        for start in range(0, len(names), _LOOKED_UP_TOGETHER):
            new = self._new(names[start : start + _LOOKED_UP_TOGETHER])
            for first in range(0, len(new), BATCH):
                if self._stopped:
                    return
                self._follow()
                self._inspect(new[first : first + BATCH])

    def _new(self, names: Sequence[str]) -> list[str]:
        """Those that the results table does not know; one that cannot be read is among them."""
        hashes = {name: self._inbox.sha256(name) for name in names}
        ids = {watch_id(name, sha256): name for name, sha256 in hashes.items() if sha256}
        known = {ids[id] for id in self._results.known(ids)}
        for name in known:
            self._inbox.done(name)
        return [name for name in names if name not in known]

    def _inspect(self, names: Sequence[str]) -> None:
        begun = time.perf_counter()
        version = self._champion.version
        ready: dict[str, Prepared] = {}
        photographs: dict[str, tuple[Photograph, str]] = {}
        records: dict[str, dict] = {}
        for name in names:
            try:
                if found := self._inbox.read(name, self._max_pixels):
                    photographs[name] = found
                    ready[name] = version.inspector.prepare(Task(found[0], shape=self._shape or None))
            except Exception as error:
                if reason := self._reason(name, error):
                    records[name] = empty_record(printable(Path(name))) | {"error": reason}
        records |= dict(zip(ready, version.inspector.answer(list(ready.values())), strict=True))
        facts = {"model_version": version.number, "seconds": (time.perf_counter() - begun) / len(names)}
        for name, record in records.items():
            self._keep(name, record | facts, photographs.get(name))

    def _reason(self, name: str, error: Exception) -> str | None:
        """Why a file cannot be inspected; None while it may yet become whole."""
        if isinstance(error, ImageError) and not self._inbox.gives_up(name):
            return None
        if isinstance(error, PinspectError):
            return str(error)
        traceback.print_exception(error)  # a defect of pinspect, for which the other captures must not wait
        return f"{printable(Path(name))}: inspecting it failed ({type(error).__name__}: {error})"

    def _keep(self, name: str, record: dict, photograph: tuple[Photograph, str] | None) -> None:
        """Into the table first: what was told is there, whatever happens. A file whose bytes nobody could read has no
        hash to be known by, and is only told."""
        sha256 = photograph[1] if photograph else self._inbox.sha256(name)
        told = {"id": None, "received": datetime.now(UTC), "sha256": sha256}
        if sha256:
            told["id"] = watch_id(name, sha256)
            if photograph:
                self._pictures.put(photograph[0].content, Path(name).suffix)
            new = self._results.record(record, source=WATCH, **told)
            self._inbox.done(name)
            if not new:
                return
        self._inbox.done(name)
        self.code = max(self.code, exit_code([record]))
        self._tell(told | record)

    def _tell(self, told: dict) -> None:
        told = told | {"received": told["received"].isoformat()}
        if self._as_json:
            print(json.dumps(told, ensure_ascii=False), flush=True)
            return
        what = told["error"]
        if what is None:
            what = f"{told['judgement']}  {told['defect_mode']}  {told['defect_position']}"
            what += f"  P(defective) {told['p_defective']:.3f}" if told["p_defective"] is not None else ""
        print(f"{told['received'][:19]}Z  version {told['model_version']}  {told['file']}  {what}", flush=True)

    def _follow(self) -> None:
        """Ask for the champion if it is time to; one that cannot be loaded is told, and the last good one goes on."""
        if (now := time.monotonic()) >= self._next_check:
            before = self._champion.version
            self._champion.check()
            self._next_check = now + self._check_seconds
            if self._champion.version is None:
                raise self._champion.failure
            if self._champion.failure:
                self._tell_trouble("champion", self._champion.failure)
            else:
                self._all_is_well("champion")
            if before is None or before.number != self._champion.version.number:
                self._say(f"version {self._champion.version.number} inspects")
        if now >= self._next_pruning:
            self._pictures.prune(datetime.now(UTC))
            self._next_pruning = now + _SECONDS_BETWEEN_PRUNINGS

    def _leave(self, unfinished: Sequence[str]) -> None:
        for name in unfinished:
            self._say(f"{printable(Path(name))}: still being written; left for the next time")
            self.code = SOME_NOT_INSPECTED

    def _sleep(self, seconds: float) -> None:
        """In naps: a signal's handler runs between two of them."""
        until = time.monotonic() + seconds
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(_NAP, left))

    def _tell_trouble(self, what: str, error: PinspectError) -> None:
        """Once, however often it is met."""
        if self._troubles.get(what) != str(error):
            self._troubles[what] = str(error)
            self._say(f"{error}; going on")

    def _all_is_well(self, what: str) -> None:
        if self._troubles.pop(what, None):
            self._say(f"{what}: all is well again")

    def _say(self, text: str) -> None:
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
    """Watch a folder for the project in `root` until SIGINT or SIGTERM, which end it after the batch in hand; or,
    `once`, inspect what is there. Returns the exit code: 0, or that of `pinspect inspect` when it is done once.

    results: SQLAlchemy URL; empty for that of settings.yaml. settle, patience: see `Inbox`. Raises InboxError when the
    folder is none, or watched already for this project; ResultsError; RegistryError when there is no model.
    """
    params = load_params(root / "params.yaml")
    settings = load_station_settings(root)
    settings = settings.model_copy(update={"results": results or settings.results})
    state = root / STATION_FOLDER
    if not inbox.is_dir():
        raise InboxError(f"{inbox}: no folder; name the one that the camera writes to")
    with _only_one(inbox, state), contextlib.closing(ResultsTable.of_project(root, settings)) as table:
        watcher = Watcher(
            Inbox(inbox, settle, patience),
            Champion(root, load_register_settings(root), state),
            table,
            PictureStore(root, settings.keep_days),
            max_pixels=params.raw.max_pixels,
            check_seconds=settings.champion_check_seconds,
            shape=shape,
            as_json=as_json,
        )
        with _ended_by_signals(watcher):
            watcher.run(once=once, rest=settle, give_up_after=settle + patience)
    return watcher.code if once else 0


@contextlib.contextmanager
def _only_one(inbox: Path, state: Path) -> Iterator[None]:
    """Of one project; a process that is killed loses the lock."""
    name = hashlib.sha256(os.fsencode(inbox.resolve())).hexdigest()[:16]
    state.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(state / f"watch-{name}.lock", timeout=0):
            yield
    except Timeout:
        raise InboxError(f"{inbox}: another pinspect watch is at work on it; end that one first") from None


@contextlib.contextmanager
def _ended_by_signals(watcher: Watcher) -> Iterator[None]:
    ending = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, lambda *_: watcher.stop()) for number in ending}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signature(found: os.stat_result) -> tuple[int, int]:
    return found.st_mtime_ns, found.st_size
