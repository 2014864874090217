"""Captures that wait at the same time share a forward pass."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

from pinspect.core.errors import PinspectError
from pinspect.inspection.records import Photograph, Prepared, Task, empty_record
from pinspect.station.champion import Champion, Version
from pinspect.station.model_client import ModelTimeoutError, ModelUnavailableError, QueueFullError


@dataclass(frozen=True)
class Question:
    """A capture to inspect. deadline: on the clock of `time.monotonic`. answer: takes its record, or the error; called
    once, by any thread."""

    photograph: Photograph
    shape: str | None
    deadline: float
    answer: Callable[[dict | PinspectError], None]

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass(frozen=True)
class _Ready:
    question: Question
    prepared: Prepared
    version: Version


class Batches:
    """Prepares captures one after another, and answers all that are ready in one forward pass, beside each other.

    `prepare_next` and `answer_next` are each for a thread that does nothing else. A capture is answered by the version
    that prepared it, so that a new champion takes over between batches. batch_size: captures a forward pass, at most.
    limit: captures that may wait for theirs. forward_passes, answered: since the beginning.
    """

    def __init__(self, champion: Champion, batch_size: int, limit: int) -> None:
        self.forward_passes = self.answered = 0
        self._champion, self._batch_size, self._limit = champion, batch_size, limit
        self._questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self._ready: deque[_Ready] = deque()
        self._changed = threading.Condition()  # guards `_ready` and `_unprepared`
        self._unprepared = 0

    @property
    def waiting(self) -> int:
        """Captures whose forward pass has not begun."""
        return self._unprepared + len(self._ready)

    def ask(self, question: Question) -> None:
        """Put a capture into the queue. Raises QueueFullError, or ModelUnavailableError as long as no version is
        loaded."""
        if self._champion.version is None:
            raise ModelUnavailableError(f"no model is loaded yet{_because(self._champion.failure)}")
        with self._changed:
            if self.waiting >= self._limit:
                raise QueueFullError(f"{self.waiting} captures wait already (station.queue); try again later")
            self._unprepared += 1
        self._questions.put(question)

    def prepare_next(self) -> None:
        """Make the next capture ready for the model; waits until there is one."""
        question, version = self._questions.get(), self._champion.version
        ready = self._made_ready(question, version)
        with self._changed:
            self._unprepared -= 1
            if ready:
                self._ready.append(ready)
            self._changed.notify()

    def answer_next(self) -> None:
        """Answer what is ready; waits until there is something."""
        batch = self._next_batch()
        if batch:
            self._answer(batch)

    def _made_ready(self, question: Question, version: Version) -> _Ready | None:
        """None where nothing is left to ask the model: the answer has been given."""
        if question.late:
            question.answer(_too_late())
            return None
        began = time.perf_counter()
        try:
            prepared = version.inspector.prepare(Task(question.photograph, shape=question.shape))
        except Exception as error:
            question.answer(_failed(question, error) | _told(version, time.perf_counter() - began))
            return None
        return _Ready(question, prepared, version)

    def _next_batch(self) -> list[_Ready]:
        """What shares the next forward pass: all that is ready, once there is as much as fits or nothing else is being
        prepared."""
        with self._changed:
            self._changed.wait_for(self._can_begin)
            batch = [self._ready.popleft()]
            while self._ready and len(batch) < self._batch_size and self._ready[0].version is batch[0].version:
                batch.append(self._ready.popleft())
        late = [one.question.late for one in batch]
        for one in compress(batch, late):
            one.question.answer(_too_late())
        return [one for one, is_late in zip(batch, late, strict=True) if not is_late]

    def _can_begin(self) -> bool:
        return bool(self._ready) and (len(self._ready) >= self._batch_size or not self._unprepared)

    def _answer(self, batch: list[_Ready]) -> None:
        began = time.perf_counter()
        version = batch[0].version
        try:
            records = version.inspector.answer([one.prepared for one in batch])
        except Exception as error:
            if len(batch) > 1:  # the others must not suffer from the one that does it
                for one in batch:
                    self._answer([one])
                return
            records = [_failed(batch[0].question, error)]
        self.forward_passes += 1
        self.answered += len(batch)
        told = _told(version, time.perf_counter() - began)
        for one, record in zip(batch, records, strict=True):
            one.question.answer(record | told)


def _told(version: Version, seconds: float) -> dict:
    return {"model_version": version.number, "seconds": round(seconds, 4)}


def _failed(question: Question, error: Exception) -> dict:
    """The record of a capture that could not be inspected. What is no PinspectError is a defect of pinspect: its
    traceback goes to the log."""
    reason = str(error)
    if not isinstance(error, PinspectError):
        traceback.print_exception(error)
        reason = f"{question.photograph.name}: inspecting it failed ({type(error).__name__}: {error})"
    return empty_record(question.photograph.name) | {"error": reason}


def _too_late() -> ModelTimeoutError:
    return ModelTimeoutError("its turn did not come in time; try again later")


def _because(failure: PinspectError | None) -> str:
    return f": {failure}" if failure else "; try again in a few seconds"
