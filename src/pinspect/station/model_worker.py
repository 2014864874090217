"""The work of the model process: follow the registry, prepare captures, run forward passes, answer questions.

Threads: one reads questions, one follows the registry, one watches the version's process, two prepare captures, one
runs the model, one draws pictures.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from pinspect.core.errors import PinspectError
from pinspect.inspection.records import Photograph
from pinspect.registry.settings import load_register_settings
from pinspect.station.batches import Batches, InspectionRequest
from pinspect.station.champion import Champion
from pinspect.station.messages import ModelHealth
from pinspect.station.model_process import LOADED
from pinspect.station.results_database import STATION_FOLDER
from pinspect.station.settings import StationSettings

_SECONDS_BETWEEN_LOOKS = 0.2
_PREPARING = 2  # threads; a forward pass waits until the captures that came with its own are prepared


def run_model(connection: Connection, root: Path, settings: StationSettings) -> None:
    """Answer questions from the pipe until its other end closes or asks for the end. Never returns.

    Args:
        connection: This process's end of the pipe.
        root: Folder of the project.
        settings: Batch size, queue length, how often the registry is checked.
    """
    state = root / STATION_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    champion = Champion(root, load_register_settings(root), state)
    batches = Batches(champion, settings.batch_size, settings.queue)
    worker = _Worker(connection, champion, batches)
    _start(worker.follow_registry, settings.champion_check_seconds)
    _start(worker.watch_version)
    for _ in range(_PREPARING):
        _start(_repeat, batches.prepare_next)
    _start(_repeat, batches.answer_next)
    worker.read_questions()
    os._exit(0)  # do not wait for a forward pass in progress


def _start(work: Callable[..., None], *arguments: object) -> None:
    """Run `work` in a thread; if it ever ends, end the process, which is then started again."""

    def run() -> None:
        try:
            work(*arguments)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    threading.Thread(target=run, name=work.__name__, daemon=True).start()


def _repeat(work: Callable[[], None]) -> None:
    while True:
        work()


class _Worker:
    """Reads questions and sends answers; an answer can come from any thread."""

    def __init__(self, connection: Connection, champion: Champion, batches: Batches) -> None:
        self._connection, self._champion, self._batches = connection, champion, batches
        self._sending = threading.Lock()
        self._drawing = ThreadPoolExecutor(1, "pictures")

    def follow_registry(self, seconds: float) -> None:
        self._champion.check()
        self._send(LOADED, None if self._champion.version else self._champion.failure)
        while True:
            time.sleep(seconds)
            self._champion.check()

    def watch_version(self) -> None:
        """Return when the version's process has ended; this process then ends, too, and is started again."""
        while not ((version := self._champion.version) and version.inspector.ended):
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def read_questions(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while question := self._connection.recv():
                number, kind, arguments = question
                if kind == "health":
                    self._send(number, self._health())
                elif kind == "pictures":
                    self._drawing.submit(self._draw, number, *arguments)
                else:
                    self._inspect(number, *arguments)

    def _send(self, number: int, answer: object) -> None:
        with self._sending, contextlib.suppress(OSError):  # the other process has ended; `read_questions` notices
            self._connection.send((number, answer))

    def _inspect(self, number: int, name: str, content: bytes, shape: str | None, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        try:
            self._batches.submit(
                InspectionRequest(Photograph(name, content), shape, deadline, lambda answer: self._send(number, answer))
            )
        except PinspectError as error:
            self._send(number, error)

    def _draw(self, number: int, name: str, content: bytes, shape: str | None) -> None:
        version, pictures = self._champion.version, {}
        try:
            pictures = version.inspector.pictures(Photograph(name, content), shape) if version else {}
        except PinspectError:
            pass  # a capture that cannot be aligned has no pictures
        except Exception:  # a defect of pinspect must not cost more than this picture
            traceback.print_exc()
        self._send(number, pictures)

    def _health(self) -> ModelHealth:
        version, failure, batches = self._champion.version, self._champion.failure, self._batches
        state = ModelHealth(
            queue=batches.waiting,
            last_error=str(failure) if failure else None,
            batches=batches.forward_passes,
            captures=batches.answered,
            busy_seconds=batches.busy_seconds,
        )
        if version is None:
            return state
        return replace(
            state,
            version=version.number,
            alias=version.alias,
            loaded_at=version.loaded_at,
            profile=version.inspector.profile,
        )
