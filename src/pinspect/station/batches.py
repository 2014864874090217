"""Captures that wait at the same time share a forward pass."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pinspect.core.errors import ImageError, PinspectError
from pinspect.inspection.records import Photograph, Prepared, Task, empty_record
from pinspect.station.champion import Champion, Version
from pinspect.station.messages import ModelTimeoutError, ModelUnavailableError, QueueFullError


@dataclass(frozen=True)
class InspectionRequest:
    """A capture to inspect.

    Attributes:
        photograph: The capture.
        shape: Pin shape; None for the best-fitting one.
        deadline: Latest useful time for an answer, on the clock of `time.monotonic`.
        answer: Called once, from any thread, with the record of the capture or an error.
    """

    photograph: Photograph
    shape: str | None
    deadline: float
    answer: Callable[[dict[str, Any] | PinspectError], None]

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self.deadline


@dataclass(frozen=True)
class _Ready:
    request: InspectionRequest
    prepared: Prepared
    version: Version


class Batches:
    """Prepares captures and answers all captures that are ready in one forward pass.

    `answer_next` needs a thread of its own, `prepare_next` one or several. The version that prepared a capture also
    answers it, so that a new champion takes over between two batches.

    Args:
        champion: Source of the version that inspects.
        batch_size: Most captures per forward pass.
        limit: Most captures that may wait.

    Attributes:
        forward_passes: Number of forward passes so far.
        answered: Number of captures in those forward passes.
    """

    def __init__(self, champion: Champion, batch_size: int, limit: int) -> None:
        self.forward_passes = self.answered = 0
        self._champion, self._batch_size, self._limit = champion, batch_size, limit
        self._requests: queue.SimpleQueue[InspectionRequest] = queue.SimpleQueue()
        self._ready: deque[_Ready] = deque()
        self._changed = threading.Condition()  # guards `_ready` and `_unprepared`
        self._unprepared = 0
        self._steps: dict[int, float] = {}  # start of the step in progress, by thread

    @property
    def waiting(self) -> int:
        """Number of captures whose forward pass has not started."""
        return self._unprepared + len(self._ready)

    @property
    def busy_seconds(self) -> float:
        """Duration of the longest step in progress; 0 when idle."""
        return max((time.monotonic() - start for start in list(self._steps.values())), default=0.0)

    def submit(self, request: InspectionRequest) -> None:
        """Put a capture into the queue.

        Raises:
            QueueFullError: `limit` captures wait already.
            ModelUnavailableError: No version is loaded.
        """
        if self._champion.version is None:
            reason = f": {self._champion.failure}" if self._champion.failure else "; try again in a few seconds"
            raise ModelUnavailableError(f"no model is loaded yet{reason}")
        with self._changed:
            if self.waiting >= self._limit:
                raise QueueFullError(f"the queue is full ({self.waiting} captures, station.queue); try again later")
            self._unprepared += 1
        self._requests.put(request)

    def prepare_next(self) -> None:
        """Wait for the next capture and prepare it for the model."""
        request = self._requests.get()
        with self._step():
            ready = self._prepare(request)
        with self._changed:
            self._unprepared -= 1
            if ready:
                self._ready.append(ready)
            self._changed.notify()

    def answer_next(self) -> None:
        """Wait for captures that are ready and answer them."""
        if batch := self._next_batch():
            with self._step():
                self._answer(batch)

    @contextmanager
    def _step(self) -> Iterator[None]:
        self._steps[threading.get_ident()] = time.monotonic()
        try:
            yield
        finally:
            del self._steps[threading.get_ident()]

    def _prepare(self, request: InspectionRequest) -> _Ready | None:
        """Prepare a capture; None if its request is already answered, with an error."""
        version = self._champion.version
        if version is None or request.late:
            request.answer(_too_late())
            return None
        start = time.perf_counter()
        try:
            prepared = version.inspector.prepare(Task(request.photograph, shape=request.shape))
        except ImageError as error:
            request.answer(error)
            return None
        except Exception as error:
            if version.inspector.ended:
                raise  # this process ends, too, and is started again
            request.answer(_failed(request, error) | _origin(version, time.perf_counter() - start))
            return None
        return _Ready(request, prepared, version)

    def _next_batch(self) -> list[_Ready]:
        """Wait for captures that are ready; return those of a batch that are not late."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            batch = [self._ready.popleft()]
            while self._ready and len(batch) < self._batch_size and self._ready[0].version is batch[0].version:
                batch.append(self._ready.popleft())
        in_time = []
        for ready in batch:
            if ready.request.late:
                ready.request.answer(_too_late())
            else:
                in_time.append(ready)
        return in_time

    def _answer(self, batch: list[_Ready]) -> None:
        start = time.perf_counter()
        version = batch[0].version
        try:
            records = version.inspector.answer([ready.prepared for ready in batch])
        except Exception as error:
            if version.inspector.ended:
                raise
            if len(batch) > 1:  # one capture is at fault; the others still get their answers
                for ready in batch:
                    self._answer([ready])
                return
            records = [_failed(batch[0].request, error)]
        self.forward_passes += 1
        self.answered += len(batch)
        origin = _origin(version, time.perf_counter() - start)
        for ready, record in zip(batch, records, strict=True):
            ready.request.answer(record | origin)


def _origin(version: Version, seconds: float) -> dict[str, Any]:
    return {"model_version": version.number, "seconds": round(seconds, 4)}


def _failed(request: InspectionRequest, error: Exception) -> dict[str, Any]:
    """The record of a capture that could not be inspected; the traceback of a defect of pinspect goes to the log."""
    reason = str(error)
    if not isinstance(error, PinspectError):
        traceback.print_exception(error)
        reason = f"{request.photograph.name}: inspection failed ({type(error).__name__}: {error})"
    return empty_record(request.photograph.name) | {"error": reason}


def _too_late() -> ModelTimeoutError:
    return ModelTimeoutError("the capture waited too long for the model; try again later")
