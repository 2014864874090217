"""The one process that holds the model, beside the web workers; it listens on a Unix socket for `model_client`.

Threads: one for the registry, one that prepares captures, one for the model, and two for each client. It ends with the
process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import secrets
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import AuthenticationError, resource_tracker
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from pinspect.core.errors import PinspectError
from pinspect.inspection.records import Photograph
from pinspect.registry.settings import load_register_settings
from pinspect.station.batches import Batches, Question
from pinspect.station.champion import Champion
from pinspect.station.model_client import KEY, ModelHealth, ModelUnavailableError
from pinspect.station.settings import StationSettings

_LONGEST_ADDRESS = 100  # bytes: what every POSIX system takes for a Unix socket
_SECONDS_TO_END = 5
_CLIENTS = 64  # that may wait to be connected


def start_model_process(
    root: Path, settings: StationSettings, state: Path, *, batch_size: int | None = None
) -> ModelProcess:
    """Start the model process of the project in `root`, and wait until its model is loaded.

    state: the station's folder; the process keeps there what it remembers, and its socket. batch_size: captures a
    forward pass, else `station.batch_size`. Raises RegistryError where nothing is registered, RegistryUnreachableError,
    or ModelError where the registered version cannot be loaded.
    """
    process = ModelProcess(root, settings, state, batch_size or settings.batch_size)
    try:
        process.wait()
    except BaseException:
        process.stop()
        raise
    return process


class ModelProcess:
    """The model process, as the process sees it that started it; as a context it ends with the context.

    address: of its socket, which stays the same when it is restarted.
    """

    def __init__(self, root: Path, settings: StationSettings, state: Path, batch_size: int) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.address = _new_address(state)
        self._given = (root, settings, state, self.address, batch_size)
        self._lock = threading.Lock()
        self._stopped = False
        self._start()

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The number of the process that runs now."""
        return self._process.pid

    def wait(self) -> None:
        """Wait until the model is loaded. Raises PinspectError with the reason when that fails."""
        try:
            failure = self._lifeline.recv()
        except EOFError:
            raise ModelUnavailableError("the model process ended while it started; its own words are above") from None
        if failure:
            raise failure

    def restart_if_dead(self) -> bool:
        """Start the process anew where it has ended by itself, without waiting for its model; True where it had."""
        with self._lock:
            if self._stopped or self._process.is_alive():
                return False
            self._lifeline.close()
            self._start()
            return True

    def stop(self) -> None:
        """End the process, for good."""
        with self._lock:
            self._stopped = True
            self._lifeline.close()
            self._process.join(_SECONDS_TO_END)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            shutil.rmtree(self.address.parent, ignore_errors=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._lifeline, its_end = context.Pipe()
        self._process = context.Process(target=_run, args=(*self._given, its_end), name="pinspect-model", daemon=True)
        # Ctrl-C reaches all processes of a terminal. A mask is inherited, from the first moment on: what ends the model
        # process is the end of this one.
        resource_tracker.ensure_running()  # multiprocessing's own, which takes the mask away when it is started
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            its_end.close()


def _new_address(state: Path) -> Path:
    """A socket's path in a folder of its own, which nobody else may enter."""
    address = Path(tempfile.mkdtemp(prefix="model-", dir=state)).resolve() / "socket"
    if len(os.fsencode(address)) > _LONGEST_ADDRESS:
        address.parent.rmdir()
        address = Path(tempfile.mkdtemp(prefix="pinspect-")) / "socket"
    with open(address.with_name(KEY), "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(secrets.token_bytes(32))
    return address


def _run(
    root: Path, settings: StationSettings, state: Path, address: Path, batch_size: int, lifeline: Connection
) -> None:
    """What the model process does, until the lifeline's other end is closed."""
    champion = Champion(root, load_register_settings(root), state)
    batches = Batches(champion, batch_size, settings.queue)
    address.unlink(missing_ok=True)  # of a process before this one, which was killed
    listener = Listener(str(address), "AF_UNIX", _CLIENTS, authkey=address.with_name(KEY).read_bytes())
    _thread(_listen, listener, _Desk(champion, batches))
    _thread(_follow, champion, settings.champion_check_seconds, lifeline)
    _thread(_forever, batches.prepare_next)
    _thread(_forever, batches.answer_next)
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()  # nothing is ever sent: it returns when the process at the other end has ended
    shutil.rmtree(address.parent, ignore_errors=True)
    os._exit(0)  # a forward pass may be under way, for which nobody waits


def _thread(work: Callable[..., None], *given: object) -> None:
    """A thread without which the process would be good for nothing: the process ends with it, and is restarted."""

    def run() -> None:
        try:
            work(*given)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=run, name=work.__name__, daemon=True).start()


def _forever(work: Callable[[], None]) -> None:
    while True:
        work()


def _follow(champion: Champion, seconds: float, lifeline: Connection) -> None:
    champion.check()
    with contextlib.suppress(OSError):  # nobody waits for it any more
        lifeline.send(None if champion.version else champion.failure)
    while True:
        time.sleep(seconds)
        champion.check()


def _listen(listener: Listener, desk: _Desk) -> None:
    while True:
        with contextlib.suppress(OSError, EOFError, AuthenticationError):  # who hangs up while he connects
            desk.serve(listener.accept())


class _Desk:
    """Takes questions from clients and hands answers back; many questions of a client may be open at once."""

    def __init__(self, champion: Champion, batches: Batches) -> None:
        self._champion, self._batches = champion, batches
        self._drawing = ThreadPoolExecutor(1, "pictures")

    def serve(self, connection: Connection) -> None:
        """Answer a client until it hangs up."""
        outbox: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(connection, outbox), daemon=True).start()
        threading.Thread(target=_write, args=(connection, outbox), daemon=True).start()

    def _read(self, connection: Connection, outbox: queue.SimpleQueue) -> None:
        with contextlib.suppress(OSError, EOFError):
            while question := connection.recv():
                number, what, given = question
                self._take(what, given, lambda answer, number=number: outbox.put((number, answer)))
        outbox.put(None)

    def _take(self, what: str, given: tuple, answer: Callable[[object], None]) -> None:
        if what == "health":
            answer(self._health())
        elif what == "pictures":
            self._drawing.submit(self._draw, *given, answer)
        else:
            name, content, shape, timeout = given
            try:
                self._batches.ask(Question(Photograph(name, content), shape, time.monotonic() + timeout, answer))
            except PinspectError as error:
                answer(error)

    def _draw(self, name: str, content: bytes, shape: str | None, answer: Callable[[object], None]) -> None:
        version, seen = self._champion.version, {}
        try:
            seen = version.inspector.pictures(Photograph(name, content), shape) if version else {}
        except PinspectError:
            pass
        except Exception:  # a defect of pinspect, which must not cost anything but this picture
            traceback.print_exc()
        answer(seen)

    def _health(self) -> ModelHealth:
        version, failure, batches = self._champion.version, self._champion.failure, self._batches
        return ModelHealth(
            version=version and version.number,
            alias=version and version.alias,
            loaded_at=version and version.loaded_at,
            queue=batches.waiting,
            last_error=failure and str(failure),
            batches=batches.forward_passes,
            captures=batches.answered,
            mean_batch=batches.answered / max(1, batches.forward_passes),
            profile=version and version.profile,
        )


def _write(connection: Connection, outbox: queue.SimpleQueue) -> None:
    with connection, contextlib.suppress(OSError):
        while answer := outbox.get():
            connection.send(answer)
