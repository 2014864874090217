"""Delivers results to receivers: each once and in order, over restarts of station and receiver.

Each receiver has a thread, which reads the results table (`outbox`), so that a receiver that is down blocks neither
inspection nor another receiver. Of several processes on this machine, one delivers at a time; the kernel frees its lock
when it dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from pinspect.core.errors import PinspectError
from pinspect.registry.webhook import DeliveryError
from pinspect.station.outbox import Outbox
from pinspect.station.receivers import Receiver, open_receiver
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import STATION_FOLDER, ResultsError
from pinspect.station.settings import StationSettings

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # s, after a failure
_LOOK_SECONDS = 0.2  # between two looks at the results table
_LOCK_SECONDS = 1.0  # between two tries to get the lock of another process
_SECONDS_TO_END = 15.0  # longer than a try takes
_READ_AT_ONCE = 50


class Delivery(threading.Thread):
    """Delivers results to one receiver until `stop` is called.

    Args:
        name: Name of the receiver.
        receiver: The receiver.
        outbox: The results that it has not confirmed.
        lock: File that only one process holds while it delivers to this receiver.
    """

    def __init__(self, name: str, receiver: Receiver, outbox: Outbox, lock: Path):
        super().__init__(name=f"delivery to {name}", daemon=True)
        self._receiver_name, self._receiver, self._outbox = name, receiver, outbox
        self._lock = FileLock(lock, timeout=0)
        self._stopped = threading.Event()
        self._finishes = False

    def stop(self, *, finish: bool) -> None:
        """Stop after the result that is being sent; with `finish`, after all stored ones or the first failure."""
        self._finishes = finish
        self._stopped.set()

    def run(self) -> None:
        """Deliver until `stop` is called."""
        while True:
            try:
                with self._lock:
                    self._deliver()
                break
            except Timeout:
                pause = _LOCK_SECONDS
            except OSError:  # the lock cannot be made
                traceback.print_exc()
                pause = LONGEST_PAUSE
            if self._stopped.wait(pause):
                break
        self._receiver.close()

    def _deliver(self) -> None:
        """Deliver until `stop` is called; pause after each failure, twice as long as after the one before."""
        pause = FIRST_PAUSE
        while True:
            try:
                delivered = self._deliver_stored()
            except Exception as error:  # whatever goes wrong must not end the deliveries
                self._note(error)
                if self._stopped.is_set():
                    return
                self._stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if self._stopped.is_set() and not (self._finishes and delivered):
                return
            if not delivered:
                self._stopped.wait(_LOOK_SECONDS)

    def _deliver_stored(self) -> bool:
        """Deliver the next results; return whether there were any."""
        inspections = self._outbox.next(self._receiver_name, _READ_AT_ONCE)
        for inspection in inspections:
            if self._stopped.is_set() and not self._finishes:
                break
            self._receiver.send(inspection)
            self._outbox.confirm(self._receiver_name, inspection.sequence or 0)
        return bool(inspections)

    def _note(self, error: Exception) -> None:
        if not isinstance(error, PinspectError):
            traceback.print_exception(error)
        reason = str(error) if isinstance(error, DeliveryError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(ResultsError):  # /health reports a table that cannot be used
            self._outbox.fail(self._receiver_name, reason)


@contextlib.contextmanager
def delivering(root: Path, settings: StationSettings, *, finish: bool = False) -> Iterator[None]:
    """Deliver results to `station.receivers` during the context.

    Args:
        root: Folder of the project.
        settings: Names and addresses of the receivers, and the results table.
        finish: At the end of the context, deliver what is stored, up to the first failure.

    Raises:
        ParamsError: An address cannot be used.
        SecretError: The file of a secret cannot be read.
        ResultsError: The results table cannot be used.
    """
    receivers = open_receivers(settings.receivers)
    if not receivers:
        yield
        return
    with contextlib.closing(ResultsTable.of_project(root, settings)) as results:
        outbox = Outbox(results)
        outbox.add(receivers)
        threads = [
            Delivery(name, receiver, outbox, root / STATION_FOLDER / _lock_name(results.name, name))
            for name, receiver in receivers.items()
        ]
        (root / STATION_FOLDER).mkdir(parents=True, exist_ok=True)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for thread in threads:
                thread.stop(finish=finish)
            for thread in threads:
                thread.join(None if finish else _SECONDS_TO_END)


def open_receivers(addresses: Mapping[str, str]) -> dict[str, Receiver]:
    """Return a receiver for each name and address. Raises ParamsError, SecretError."""
    return {name: open_receiver(name, url) for name, url in addresses.items()}


def _lock_name(results: str, receiver: str) -> str:
    digest = hashlib.sha256(f"{receiver} {results}".encode()).hexdigest()
    return f"deliver-{digest[:16]}.lock"
