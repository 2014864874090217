"""How a web worker, or `pinspect watch`, asks the model process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path

from pinspect.core.errors import PinspectError

KEY = "key"  # the file beside the socket that holds what both sides must know
_PICTURES_SECONDS = 30.0


class ModelUnavailableError(PinspectError):
    """The model process does not answer: it has ended, or has no model yet. Trying again later may help."""


class ModelTimeoutError(PinspectError):
    """The answer did not come in time."""


class QueueFullError(PinspectError):
    """As many captures wait for the model as may wait; trying again later may help."""


@dataclass(frozen=True)
class ModelHealth:
    """How the model process is.

    version, alias, loaded_at: of the registered model that answers; None as long as there is none. queue: captures that
    wait. last_error: why the registry or its newest version could not be used, None when all is well. batches,
    captures, mean_batch: forward passes since the process began, and how many captures shared one. profile: what the
    version learnt from, as `evaluation.line_profile` writes it; None where it has packed none.
    """

    version: str | None
    alias: str | None
    loaded_at: datetime | None
    queue: int
    last_error: str | None
    batches: int
    captures: int
    mean_batch: float
    profile: Mapping | None


class ModelClient:
    """Asks the model process that listens at `address`; one for each web worker, safe to use from many threads.

    It connects when it is first asked, and again after the process was restarted. When the process ends, everything
    that waits for it gets a ModelUnavailableError at once.
    """

    def __init__(self, address: Path) -> None:
        self._address = Path(address)
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # guards what follows
        self._line: _Line | None = None

    async def inspect(self, name: str, content: bytes, shape: str | None, timeout: float) -> dict:
        """The record of one capture (`CaptureInspector.inspect`), with `model_version` and `seconds`, what the forward
        pass took that it shared. content: an image file's bytes. timeout: seconds.

        Raises QueueFullError, ModelTimeoutError or ModelUnavailableError.
        """
        return await self._awaited(timeout, "inspect", name, content, shape, timeout)

    def inspect_blocking(self, name: str, content: bytes, shape: str | None, timeout: float) -> dict:
        """As `inspect`, for callers without an event loop."""
        try:
            return self._ask("inspect", name, content, shape, timeout).result(timeout)
        except concurrent.futures.TimeoutError:
            raise _late(timeout) from None

    async def health(self, timeout: float = 2.0) -> ModelHealth:
        """How the model process is. Raises ModelTimeoutError or ModelUnavailableError."""
        return await self._awaited(timeout, "health")

    async def pictures(self, content: bytes, name: str, shape: str | None) -> dict[str, bytes]:
        """What the model sees of a capture: `RAW` and `DST`, each the JPEG of its single composite; none where it
        cannot be laid over the line. Raises ModelTimeoutError or ModelUnavailableError."""
        return await self._awaited(_PICTURES_SECONDS, "pictures", name, content, shape)

    def close(self) -> None:
        """Hang up; what still waits gets a ModelUnavailableError."""
        with self._lock:
            line, self._line = self._line, None
        if line:
            line.end()

    async def _awaited(self, timeout: float, what: str, *given: object):
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._ask(what, *given)), timeout)
        except TimeoutError:
            raise _late(timeout) from None

    def _ask(self, what: str, *given: object) -> concurrent.futures.Future:
        with self._lock:
            if self._line is None or self._line.ended:
                self._line = _Line(self._address)
            return self._line.ask(next(self._numbers), what, given)


class _Line:
    """One connection to the model process, with a thread that writes and one that reads: asking never blocks."""

    def __init__(self, address: Path) -> None:
        self.ended = False
        self._address = address
        self._lock = threading.Lock()  # guards `ended` and `_waiting`
        self._waiting: dict[int, concurrent.futures.Future] = {}
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    def ask(self, number: int, what: str, given: tuple) -> concurrent.futures.Future:
        """The future answer to a question; `number` is its own on this line."""
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # who waits may give up; the answer still has a place to go
        with self._lock:
            if self.ended:
                future.set_exception(_gone())
                return future
            self._waiting[number] = future
        self._outbox.put((number, what, given))
        return future

    def end(self) -> None:
        """Everything that waits gets a ModelUnavailableError."""
        with self._lock:
            self.ended = True
            waiting, self._waiting = self._waiting, {}
        self._outbox.put(None)
        for future in waiting.values():
            future.set_exception(_gone())

    def _write(self) -> None:
        try:
            connection = Client(str(self._address), "AF_UNIX", authkey=self._address.with_name(KEY).read_bytes())
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()
            while question := self._outbox.get():
                connection.send(question)
            connection.send(None)  # the process hangs up on this, which ends the thread that reads
        except (OSError, EOFError, AuthenticationError):
            self.end()

    def _read(self, connection: Connection) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            while True:
                number, answer = connection.recv()
                with self._lock:
                    future = self._waiting.pop(number, None)
                if future is None:  # ended meanwhile
                    continue
                if isinstance(answer, PinspectError):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self.end()


def _gone() -> ModelUnavailableError:
    return ModelUnavailableError("the model process has ended or does not answer yet; try again in a few seconds")


def _late(timeout: float) -> ModelTimeoutError:
    return ModelTimeoutError(f"no answer within {timeout:g} s; try again, or raise station.timeout_seconds")
