"""How the station is: the model, the queue, the results table, and whether the line has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import anyio
from pydantic import BaseModel, Field

from pinspect.station import drift
from pinspect.station.corrections import waiting
from pinspect.station.intake import Intake
from pinspect.station.model_client import ModelClient, ModelHealth, ModelTimeoutError, ModelUnavailableError
from pinspect.station.results import ResultsError, ResultsTable
from pinspect.station.settings import StationSettings

_DRIFT_SECONDS = 10.0  # so long a judgement on the line holds
_NO_MODEL = ModelHealth(None, None, None, 0, None, 0, 0, 0.0, None)


class Health(BaseModel):
    """What `GET /health` tells."""

    status: Literal["ok", "degraded", "unavailable"] = Field(
        description="degraded: it inspects, but something below needs a person; unavailable: no model answers"
    )
    version: str | None = Field(description="of the registered model that answers")
    alias: str | None
    loaded_at: datetime | None
    queue: int = Field(description="captures that wait for the model")
    batches: int = Field(description="forward passes since the model process began")
    captures: int = Field(description="captures that went through them")
    mean_batch: float
    last_error: str | None = Field(description="why the newest champion is not the one that answers")
    results_error: str | None = Field(description="why results cannot be kept or read")
    waiting_corrections: int | None = Field(description="corrected captures that the next retraining will learn from")
    drift: dict[str, Any] | None = Field(description="whether the line has changed; null where that cannot be judged")


class Condition:
    """Asks everybody how they are, for one web worker."""

    def __init__(
        self, root: Path, settings: StationSettings, client: ModelClient, results: ResultsTable, intake: Intake
    ):
        self._root = root
        self._settings = settings.drift
        self._client = client
        self._results = results
        self._intake = intake
        self._judged: tuple[float, str | None, dict | None] = (float("-inf"), None, None)

    async def told(self) -> Health:
        """The present condition; it never raises for what is wrong."""
        last_error, model = None, _NO_MODEL
        try:
            model = await self._client.health()
            last_error = model.last_error
        except (ModelTimeoutError, ModelUnavailableError) as error:
            last_error = str(error)
        results_error, waiting_corrections, line = await anyio.to_thread.run_sync(self._kept, model)
        fine = not last_error and not results_error and not (line and line["changed"])
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
            drift=line,
        )

    def counts(self) -> dict[str, int]:
        """Rows of the results table by kind; none where it cannot be read."""
        try:
            return self._results.counts()
        except ResultsError:
            return {}

    def _kept(self, model: ModelHealth) -> tuple[str | None, int | None, dict | None]:
        """What is wrong with the results table, how many corrections wait, and what the latest results tell."""
        try:
            return self._intake.results_error, waiting(self._root), self._drift(model)
        except (ResultsError, OSError) as error:
            return str(error), None, None

    def _drift(self, model: ModelHealth) -> dict | None:
        judged_at, version, told = self._judged
        if time.monotonic() - judged_at > _DRIFT_SECONDS or version != model.version:
            told = self._judge(model.profile) if model.profile else None
            self._judged = (time.monotonic(), model.version, told)
        return told

    def _judge(self, profile: Mapping) -> dict:
        latest = self._results.latest(self._settings.window, drift.COLUMNS)
        return drift.judge_drift(profile, latest, self._settings).to_dict()
