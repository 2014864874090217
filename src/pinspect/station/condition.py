"""The state of the station: the model, the queue, the results table, and whether the line has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import anyio
from pydantic import BaseModel, Field

from pinspect.registry.webhook import shown_address
from pinspect.station import drift
from pinspect.station.corrections import waiting
from pinspect.station.intake import Intake
from pinspect.station.messages import ModelHealth, ModelTimeoutError, ModelUnavailableError
from pinspect.station.model_process import ModelProcess
from pinspect.station.outbox import Outbox
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import ResultsError
from pinspect.station.settings import StationSettings

_DRIFT_SECONDS = 10.0  # how long a drift report is reused


class ReceiverHealth(BaseModel):
    """How far a receiver of results has come."""

    name: str
    address: str = Field(description="scheme, host and port")
    behind: int = Field(description="stored results that the receiver has not confirmed")
    delivered_at: datetime | None = Field(description="latest confirmation")
    error: str | None = Field(description="why the next result could not be delivered")


class Health(BaseModel):
    """Response of `GET /health`."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="degraded: the station inspects, but a field below needs attention; unavailable: no model answers"
    )
    version: str | None = Field(description="registered model version that answers")
    alias: str | None
    loaded_at: datetime | None
    queue: int = Field(description="captures that wait for the model")
    batches: int = Field(description="forward passes since the model process started")
    captures: int = Field(description="captures in those forward passes")
    mean_batch: float = Field(description="captures per forward pass")
    last_error: str | None = Field(description="why the newest champion does not answer")
    results_error: str | None = Field(description="why results cannot be written or read")
    waiting_corrections: int | None = Field(description="corrected captures that the next retraining will use")
    receivers: list[ReceiverHealth] = Field(description="how far the results have come that leave the station")
    drift: dict[str, Any] | None = Field(description="whether the line has changed; null if this cannot be measured")


class Condition:
    """Collects the state of the station.

    Args:
        root: Folder of the project.
        settings: When the station reports drift, and the receivers of results.
        model: The model process.
        results: The results table.
        intake: Knows whether results can be stored.
    """

    def __init__(
        self, root: Path, settings: StationSettings, model: ModelProcess, results: ResultsTable, intake: Intake
    ):
        self._root = root
        self._settings = settings.drift
        self._receivers = {name: shown_address(url) for name, url in settings.receivers.items()}
        self._outbox = Outbox(results)
        self._model = model
        self._results = results
        self._intake = intake
        self._drift_cache: tuple[float, str | None, dict | None] = (float("-inf"), None, None)

    async def health(self) -> Health:
        """Return the current state. Problems are part of it and never raise."""
        try:
            model = await self._model.health()
            last_error = model.last_error
        except (ModelTimeoutError, ModelUnavailableError) as error:
            model, last_error = ModelHealth(), str(error)
        results_error, waiting_corrections, line, receivers = await anyio.to_thread.run_sync(self._stored, model)
        failing = any(receiver.error for receiver in receivers)
        fine = not last_error and not results_error and not failing and not (line and line["changed"])
        return Health(
            status="unavailable" if model.version is None else "ok" if fine else "degraded",
            version=model.version,
            alias=model.alias,
            loaded_at=model.loaded_at,
            queue=model.queue,
            batches=model.batches,
            captures=model.captures,
            mean_batch=model.mean_batch,
            last_error=last_error,
            results_error=results_error,
            waiting_corrections=waiting_corrections,
            receivers=receivers,
            drift=line,
        )

    def counts(self) -> dict[str, int]:
        """Return `ResultsTable.counts`, or an empty dict if the table cannot be read."""
        try:
            return self._results.counts()
        except ResultsError:
            return {}

    def _stored(self, model: ModelHealth) -> tuple[str | None, int | None, dict | None, list[ReceiverHealth]]:
        """Error of the results table, number of waiting corrections, drift report, state of the receivers."""
        try:
            return self._intake.results_error, waiting(self._root), self._drift(model), self._delivered()
        except (ResultsError, OSError) as error:
            return str(error), None, None, []

    def _delivered(self) -> list[ReceiverHealth]:
        states = self._outbox.states(self._receivers) if self._receivers else []
        return [
            ReceiverHealth.model_validate(vars(state) | {"address": self._receivers[state.name]}) for state in states
        ]

    def _drift(self, model: ModelHealth) -> dict | None:
        measured_at, version, report = self._drift_cache
        if time.monotonic() - measured_at > _DRIFT_SECONDS or version != model.version:
            report = self._measure_drift(model.profile) if model.profile else None
            self._drift_cache = (time.monotonic(), model.version, report)
        return report

    def _measure_drift(self, profile: Mapping) -> dict:
        latest = self._results.latest(self._settings.window, drift.COLUMNS)
        return drift.measure_drift(profile, latest, self._settings).to_dict()
