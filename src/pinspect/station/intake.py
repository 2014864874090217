"""From uploads to results: inspected, kept, and only then answered."""

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

from pinspect.core.params import Params
from pinspect.station.model_client import ModelClient, ModelTimeoutError, ModelUnavailableError, QueueFullError
from pinspect.station.picture_store import PictureStore
from pinspect.station.problems import Problem
from pinspect.station.results import STATION, Inspection, ResultsError, ResultsTable
from pinspect.station.settings import StationSettings
from pinspect.station.telemetry import Telemetry
from pinspect.station.uploads import Asked, Upload, read_uploads

_KEYS = uuid.UUID("6f0a4a43-6f4e-4e0b-9a0d-6f5f5a1f7c11")  # the namespace of ids that come from an Idempotency-Key
_RETRY = {"Retry-After": "2"}
_OTHER_KEY = "this Idempotency-Key came with other images before; take a new one"


class Intake:
    """Takes uploads in for one web worker.

    results_error: why the last result could not be kept; None when it was.
    """

    def __init__(
        self,
        params: Params,
        settings: StationSettings,
        client: ModelClient,
        results: ResultsTable,
        pictures: PictureStore,
        telemetry: Telemetry,
    ):
        self._params, self._settings = params, settings
        self._client = client
        self._results = results
        self._pictures = pictures
        self._telemetry = telemetry
        self.results_error: str | None = None

    async def take(self, request: Request, key: str | None = None) -> list[Inspection]:
        """The results of the images that a multipart request holds. Raises Problem as `read_uploads` and `inspect`."""
        try:
            return await self.inspect(await read_uploads(request, self._params, self._settings), key)
        except Problem as problem:
            self._telemetry.refused(problem.reason)
            raise

    async def inspect(self, asked: Asked, key: str | None = None) -> list[Inspection]:
        """The results of the images, in order; each is in the table, and its picture kept, when this returns.

        key: a request that is repeated with the key that it had before gets what was answered then. Raises Problem: 409
        when the key was another request's, 429 when too many wait, 503 without a model or a results table, 504 when the
        answer comes too late.
        """
        began = time.perf_counter()
        ids = [_id(key, number) for number in range(len(asked.images))]
        known = await anyio.to_thread.run_sync(self._known, asked.images, ids, key) if key else set()
        new = {id: image for id, image in zip(ids, asked.images, strict=True) if id not in known}
        records = dict(zip(new, await self._records(list(new.values()), asked.shape), strict=True))
        found = await anyio.to_thread.run_sync(self._keep, new, records, ids)
        self._telemetry.took(time.perf_counter() - began)
        for id in records:
            self._telemetry.inspected(records[id]["judgement"], records[id]["model_version"])
        return found

    async def _records(self, images: Sequence[Upload], shape: str | None) -> list[dict]:
        """What the model says of each image; all together, so that they share forward passes."""
        timeout = self._settings.timeout_seconds
        asked = (self._client.inspect(image.name, image.content, shape, timeout) for image in images)
        answered = await asyncio.gather(*asked, return_exceptions=True)
        for answer in answered:
            if isinstance(answer, BaseException):
                raise _problem(answer) from answer
        return answered

    def _known(self, images: Sequence[Upload], ids: Sequence[str], key: str) -> set[str]:
        """Those of `ids` that an earlier request with this key has left. Raises Problem 409 when it was another one."""
        with self._explained():
            stored = [self._results.get(id) for id in (*ids, _id(key, len(ids)))]
        same = [
            inspection is None or inspection.sha256 == hashlib.sha256(image.content).hexdigest()
            for inspection, image in zip(stored[:-1], images, strict=True)
        ]
        if stored[-1] is not None or not all(same):
            raise Problem(409, _OTHER_KEY, reason="key")
        return {inspection.id for inspection in stored if inspection is not None}

    def _keep(self, new: Mapping[str, Upload], records: Mapping[str, dict], ids: Sequence[str]) -> list[Inspection]:
        """First the picture, then its row: a row whose picture is missing cannot be corrected."""
        received = datetime.now(UTC)
        with self._explained():
            for id, image in new.items():
                sha256 = self._pictures.put(image.content, image.suffix)
                is_new = self._results.record(records[id], id=id, sha256=sha256, source=STATION, received=received)
                if not is_new and self._results.get(id).sha256 != sha256:  # two requests with one key at a time
                    raise Problem(409, _OTHER_KEY, reason="key")
            return [self._results.get(id) for id in ids]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Tells when results cannot be kept, to the client and on /health."""
        try:
            yield
        except (ResultsError, OSError) as error:
            self.results_error = str(error)
            told = f"the result cannot be kept: {error}"
            raise Problem(503, told, reason="results", headers=_RETRY) from error
        self.results_error = None


def _id(key: str | None, number: int) -> str:
    return uuid.uuid4().hex if key is None else uuid.uuid5(_KEYS, f"{key}\n{number}").hex


def _problem(error: BaseException) -> BaseException:
    if isinstance(error, QueueFullError):
        return Problem(429, str(error), reason="queue", headers=_RETRY)
    if isinstance(error, ModelTimeoutError):
        return Problem(504, str(error), reason="timeout")
    if isinstance(error, ModelUnavailableError):
        return Problem(503, str(error), reason="model", headers=_RETRY)
    return error
