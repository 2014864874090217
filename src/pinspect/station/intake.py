"""From uploads to results: inspect, store, and only then answer."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import anyio
from starlette.requests import Request

from pinspect.core.errors import ImageError
from pinspect.core.params import Params
from pinspect.station.messages import ModelTimeoutError, ModelUnavailableError, QueueFullError
from pinspect.station.model_process import ModelProcess
from pinspect.station.picture_store import PictureStore
from pinspect.station.problems import Problem
from pinspect.station.results import STATION, Inspection, NewResult, ResultsTable
from pinspect.station.results_database import ResultsError
from pinspect.station.settings import StationSettings
from pinspect.station.storing import ResultsWriter
from pinspect.station.telemetry import Telemetry
from pinspect.station.trace import trace_of_name
from pinspect.station.uploads import ByteBudget, Upload, UploadRequest, read_uploads

_KEYS = uuid.UUID("6f0a4a43-6f4e-4e0b-9a0d-6f5f5a1f7c11")  # namespace of ids made from an Idempotency-Key
_RETRY = {"Retry-After": "2"}
_OTHER_KEY = "this Idempotency-Key was used before with other images; use a new key"


class Intake:
    """Inspects uploads and stores the results.

    Attributes:
        results_error: Why the latest result could not be stored; None if it was.
    """

    def __init__(
        self,
        params: Params,
        settings: StationSettings,
        model: ModelProcess,
        results: ResultsTable,
        pictures: PictureStore,
        telemetry: Telemetry,
    ):
        self._params, self._settings = params, settings
        self._model = model
        self._results = results
        self._writer = ResultsWriter(results, pictures)
        self._telemetry = telemetry
        self._budget = ByteBudget(settings.bytes_at_once)
        self.results_error: str | None = None

    async def take(self, request: Request, key: str | None = None) -> list[Inspection]:
        """Inspect the images of a multipart request.

        Args:
            request: The request.
            key: Its `Idempotency-Key`. A request that repeats a key with the same images gets the same answer again.

        Returns:
            One result per image, in order. Each is in the table, and its picture on the disk.

        Raises:
            Problem: From `read_uploads`, and 409 if the key was used with other images, 429 if the queue is full, 503
                without a model or a results table, 504 if the answer is late.
        """
        try:
            with self._budget.share() as take:
                return await self._inspect(await read_uploads(request, self._params, self._settings, take), key)
        except Problem as problem:
            self._telemetry.refused(problem.reason)
            raise

    async def _inspect(self, upload: UploadRequest, key: str | None) -> list[Inspection]:
        start = time.perf_counter()
        ids = [_id(key, number) for number in range(len(upload.images))]
        known = await anyio.to_thread.run_sync(self._known, upload.images, ids, key) if key else set()
        new = {id: image for id, image in zip(ids, upload.images, strict=True) if id not in known}
        records = dict(zip(new, await self._records(list(new.values()), upload.shape), strict=True))
        for id, image in new.items():
            records[id] |= {**trace_of_name(image.name, self._settings.names), **upload.trace}
        inspections = await self._store(new, records, ids)
        self._telemetry.took(time.perf_counter() - start)
        for record in records.values():
            self._telemetry.inspected(record["judgement"], record["model_version"])
        return inspections

    async def _records(self, images: Sequence[Upload], shape: str | None) -> list[dict]:
        """The model's record of each image; all are asked at once, so that they share forward passes."""
        timeout = self._settings.timeout_seconds
        questions = (self._model.inspect(image.name, image.content, shape, timeout) for image in images)
        records: list[dict] = []
        for record in await asyncio.gather(*questions, return_exceptions=True):
            if isinstance(record, BaseException):
                raise _problem(record) from record
            records.append(record)
        return records

    def _known(self, images: Sequence[Upload], ids: Sequence[str], key: str) -> set[str]:
        """The ids that an earlier request with this key stored. Raises Problem 409 if its images were others."""
        with self._explained():
            stored = [self._results.get(id) for id in (*ids, _id(key, len(ids)))]
        same = [
            inspection is None or inspection.sha256 == hashlib.sha256(image.content).hexdigest()
            for inspection, image in zip(stored[:-1], images, strict=True)
        ]
        if stored[-1] is not None or not all(same):
            raise Problem(409, _OTHER_KEY, reason="key")
        return {inspection.id for inspection in stored if inspection is not None}

    async def _store(
        self, new: Mapping[str, Upload], records: Mapping[str, dict], ids: Sequence[str]
    ) -> list[Inspection]:
        received = datetime.now(UTC)
        results = [NewResult(records[id], id, "", STATION, received) for id in new]
        with self._explained():
            written = await self._writer.store(list(new.values()), results) if new else []
            stored = {inspection.id: inspection for inspection in written if inspection}
            for id in ids:
                if id not in stored:
                    stored[id] = await anyio.to_thread.run_sync(self._stored, id)
            for id, image in new.items():  # two requests may have used the same key at once
                if stored[id].sha256 != hashlib.sha256(image.content).hexdigest():
                    raise Problem(409, _OTHER_KEY, reason="key")
        return [stored[id] for id in ids]

    def _stored(self, id: str) -> Inspection:
        inspection = self._results.get(id)
        if inspection is None:
            raise ResultsError(f"inspection {id} disappeared from the results table")
        return inspection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Report to the client, and on /health, that results cannot be stored."""
        try:
            yield
        except (ResultsError, OSError) as error:
            self.results_error = str(error)
            raise Problem(503, f"the result cannot be stored: {error}", reason="results", headers=_RETRY) from error
        self.results_error = None


def _id(key: str | None, number: int) -> str:
    return uuid.uuid4().hex if key is None else uuid.uuid5(_KEYS, f"{key}\n{number}").hex


def _problem(error: BaseException) -> BaseException:
    if isinstance(error, QueueFullError):
        return Problem(429, str(error), reason="queue", headers=_RETRY)
    if isinstance(error, ModelTimeoutError):
        return Problem(504, str(error), reason="timeout")
    if isinstance(error, ImageError):
        return Problem(422, str(error), reason="damaged")
    if isinstance(error, ModelUnavailableError):
        return Problem(503, str(error), reason="model", headers=_RETRY)
    return error
