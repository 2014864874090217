"""The model in a process of its own: a crash or a hang of the model does not stop the page.

The two processes are connected by a pipe. Many questions can be open at the same time, so that they share forward
passes. The model process ends with the process that started it, even if that one is killed: its end of the pipe closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import multiprocessing.process
import queue
import signal
import sys
import threading
from concurrent.futures import Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from pinspect.core.errors import PinspectError
from pinspect.station.messages import ModelHealth, ModelTimeoutError, ModelUnavailableError
from pinspect.station.settings import StationSettings

LOADED = -1  # number of the message that a new process sends once its first model is loaded, or cannot be
_HANG_TIMEOUTS = 4  # a step that takes this many request timeouts counts as a hang
_SECONDS_BETWEEN_CHECKS = 1.0
_SECONDS_BEFORE_RESTART = 0.5
_SECONDS_TO_STOP = 5.0
_HEALTH_SECONDS = 2.0
_PICTURES_SECONDS = 30.0


class ModelProcess:
    """Runs the champion in a separate process and asks it questions. All methods can be called from any thread.

    As a context manager it starts and stops the process. A process that dies or hangs is started again; the questions
    that were open then raise ModelUnavailableError.

    Args:
        root: Folder of the project.
        settings: Batch size, queue length, timeouts.
    """

    def __init__(self, root: Path, settings: StationSettings) -> None:
        self._arguments = (root, settings)
        self._hang_seconds = _HANG_TIMEOUTS * settings.timeout_seconds
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards the attributes below
        self._stopped, self._loaded = threading.Event(), threading.Event()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._outbox: queue.SimpleQueue | None = None  # None while no process runs
        self._open: dict[int, Future] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process id of the running model process; None if there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            RegistryError: No version is registered, or the registry is unreachable.
            ModelError: The registered version cannot be loaded.
            ModelUnavailableError: The process ended before its model was loaded.
        """
        loaded: Future = Future()
        connection = self._launch(loaded)
        threading.Thread(target=self._supervise, args=(connection,), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            loaded.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process and do not start it again."""
        with self._lock:
            self._stopped.set()
            if self._outbox:
                self._outbox.put(None)
        if self._process:
            self._process.join(_SECONDS_TO_STOP)
            self._process.kill()
            self._process.join()

    async def inspect(self, name: str, content: bytes, shape: str | None, timeout: float) -> dict[str, Any]:
        """Inspect one capture.

        Args:
            name: File name shown in the record.
            content: Bytes of an image file.
            shape: Pin shape; None for the best-fitting one.
            timeout: Seconds to wait for the answer.

        Returns:
            The record of `PhotographInspector.inspect`, with `model_version` and `seconds` (duration of the forward
            pass).

        Raises:
            QueueFullError: Too many captures wait.
            ModelTimeoutError: No answer within `timeout`.
            ModelUnavailableError: No model answers.
        """
        return await self._answer(timeout, "inspect", name, content, shape, timeout)

    async def health(self, timeout: float = _HEALTH_SECONDS) -> ModelHealth:
        """Return the state of the model process.

        Args:
            timeout: Seconds to wait for the answer.

        Raises:
            ModelTimeoutError: No answer within `timeout`.
            ModelUnavailableError: The process has ended.
        """
        return await self._answer(timeout, "health")

    async def pictures(self, name: str, content: bytes, shape: str | None) -> dict[str, bytes]:
        """Draw a capture as the model sees it.

        Args:
            name: File name.
            content: Bytes of an image file.
            shape: Pin shape; None for the best-fitting one.

        Returns:
            JPEG bytes of the single composite by view (`RAW`, `DST`); empty if the capture cannot be aligned.

        Raises:
            ModelTimeoutError: No answer within 30 s.
            ModelUnavailableError: The process has ended.
        """
        return await self._answer(_PICTURES_SECONDS, "pictures", name, content, shape)

    async def _answer(self, timeout: float, kind: str, *arguments: object) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._ask(kind, *arguments)), timeout)
        except TimeoutError:
            raise ModelTimeoutError(
                f"no answer within {timeout:g} s; try again, or raise station.timeout_seconds"
            ) from None

    def _ask(self, kind: str, *arguments: object) -> Future:
        """Send a question; its answer goes to the returned future."""
        future: Future = Future()
        future.set_running_or_notify_cancel()  # the caller may stop waiting; the answer must still have a place to go
        with self._lock:
            if self._outbox is None:
                future.set_exception(_unavailable())
            else:
                number = next(self._numbers)
                self._open[number] = future
                self._outbox.put((number, kind, arguments))
        return future

    def _launch(self, loaded: Future | None = None) -> Connection:
        context = multiprocessing.get_context("spawn")
        connection, remote = context.Pipe()
        process = context.Process(target=_run, args=(remote, *self._arguments), name="pinspect-model", daemon=True)
        # Ctrl-C reaches every process of a terminal. The signal mask is inherited, so the model process never sees it.
        resource_tracker.ensure_running()  # started here because its own start would remove the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            remote.close()
        outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._loaded.clear()
        with self._lock:
            self._process, self._outbox = process, outbox
            if loaded:
                self._open[LOADED] = loaded
            if self._stopped.is_set():
                outbox.put(None)
        threading.Thread(target=_write, args=(connection, outbox), daemon=True).start()
        return connection

    def _supervise(self, connection: Connection) -> None:
        """Pass answers on until the process ends, then start it again."""
        while True:
            self._read(connection)
            self._fail_open_questions()
            if self._stopped.wait(_SECONDS_BEFORE_RESTART):
                return
            print("the model process has ended; it is started again", file=sys.stderr, flush=True)
            connection = self._launch()

    def _read(self, connection: Connection) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            while True:
                number, answer = connection.recv()
                if number == LOADED:
                    self._loaded.set()
                with self._lock:
                    future = self._open.pop(number, None)
                if future is None:
                    continue
                if isinstance(answer, PinspectError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    def _fail_open_questions(self) -> None:
        with self._lock:
            if self._outbox:
                self._outbox.put(None)  # ends the thread that writes
            self._outbox = None
            questions, self._open = self._open, {}
        for future in questions.values():
            future.set_exception(_unavailable())

    def _watch(self) -> None:
        """Kill a process that hangs; `_supervise` then starts it again. Loading the first model takes its time."""
        while not self._stopped.wait(_SECONDS_BETWEEN_CHECKS):
            process = self._process
            if not self._loaded.is_set():
                continue
            try:
                hangs = self._ask("health").result(self._hang_seconds).busy_seconds > self._hang_seconds
            except ModelUnavailableError:
                continue
            except TimeoutError:
                hangs = True
            if hangs and process and not self._stopped.is_set():
                print(
                    f"the model process hangs for {self._hang_seconds:g} s; it is killed", file=sys.stderr, flush=True
                )
                process.kill()


def _run(connection: Connection, root: Path, settings: StationSettings) -> None:
    """Run the model process. Its imports (PyTorch, MLflow) stay out of the page's process."""
    from pinspect.station.model_worker import run_model

    run_model(connection, root, settings)


def _write(connection: Connection, outbox: queue.SimpleQueue) -> None:
    """Send questions in a thread, since a write blocks while the pipe is full; None asks the process to end."""
    with contextlib.suppress(OSError):
        while question := outbox.get():
            connection.send(question)
        connection.send(None)


def _unavailable() -> ModelUnavailableError:
    return ModelUnavailableError("the model process has ended or is still starting; try again in a few seconds")
