"""Logs the learning curve to an MLflow server while a training runs, if `MLFLOW_TRACKING_URI` names one.

The registration logs the curve of a finished adapter anyway. This run is for watching; no failure of the server ends a
training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_EXPERIMENT = "pinspect training"
_SECONDS_TO_END = 20
_PROBE_SECONDS = 10

Point = Mapping[str, float | None]
_log = logging.getLogger(__name__)


class LiveLog:
    """A run in MLflow that gets the points of a learning curve from a thread of its own.

    Attributes:
        uri: The tracking server.
        name: Name of the run.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self._status = "FINISHED"
        self._points: queue.Queue[tuple[int, Point, int] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, step: int, point: Point) -> None:
        """Log the values of a step; a value of None was not measured.

        Args:
            step: Number of the step, from 1.
            point: Column of the learning curve -> value.
        """
        self._points.put((step, point, int(time.time() * 1000)))

    def end(self, status: str) -> None:
        """End the run with a status of MLflow; points that the server does not take within 20 s are lost."""
        self._status = status
        self._points.put(None)
        self._thread.join(_SECONDS_TO_END)

    def _work(self) -> None:
        try:
            self._log_points()
        except Exception as error:  # MLflow raises many classes, and none may end a training
            _log.warning("%s: the learning curve is not logged any more: %s", URI, " ".join(str(error).split())[:300])

    def _log_points(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        _probe(self.uri)
        client = MlflowClient(self.uri)
        experiment = os.environ.get(EXPERIMENT, _EXPERIMENT)
        known = client.get_experiment_by_name(experiment)
        identity = known.experiment_id if known else client.create_experiment(experiment)
        run = client.create_run(identity, run_name=self.name).info.run_id
        while (entry := self._points.get()) is not None:
            step, point, milliseconds = entry
            values = {name: float(value) for name, value in point.items() if value is not None and name != "step"}
            client.log_batch(
                run, metrics=[Metric(f"train.{name}", value, milliseconds, step) for name, value in values.items()]
            )
        client.set_terminated(run, self._status)


@contextlib.contextmanager
def live_log(name: str) -> Iterator[LiveLog | None]:
    """Log a training that runs in the context.

    Args:
        name: Name of the run.

    Yields:
        What takes the points of the learning curve; None if no tracking server is set.
    """
    uri = os.environ.get(URI, "")
    log = LiveLog(uri, name) if uri else None
    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    finally:
        if log:
            log.end(status)


def _probe(uri: str) -> None:
    """Raise an error if a server does not answer; MLflow itself would retry for minutes."""
    if uri.startswith(("http://", "https://")):
        import requests

        requests.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS)
