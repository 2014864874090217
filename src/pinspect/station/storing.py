"""Stores results that are ready at the same time in one transaction, while each waits until its own is on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio

from pinspect.station.picture_store import PictureStore
from pinspect.station.results import Inspection, NewResult, ResultsTable
from pinspect.station.uploads import Upload

Stored = list[Inspection | None]


@dataclass(frozen=True)
class _Waiting:
    uploads: Sequence[Upload]
    results: Sequence[NewResult]
    stored: asyncio.Future[Stored]


class ResultsWriter:
    """Stores pictures and results; one thread at a time writes, for all requests that came meanwhile.

    Args:
        results: The results table.
        pictures: The pictures.
    """

    def __init__(self, results: ResultsTable, pictures: PictureStore):
        self._results, self._pictures = results, pictures
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None

    async def store(self, uploads: Sequence[Upload], results: Sequence[NewResult]) -> Stored:
        """Store each picture, then its row: a row without its picture could not be corrected.

        Args:
            uploads: The pictures.
            results: Their results, without the hashes of the pictures.

        Returns:
            As `ResultsTable.record_all`.

        Raises:
            ResultsError: They cannot be written; nothing but pictures is stored then.
        """
        stored: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(uploads, results, stored))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        return await asyncio.shield(stored)

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                written = iter(await anyio.to_thread.run_sync(self._write_batch, batch))
                for each in batch:
                    each.stored.set_result([next(written) for _ in each.results])
            except Exception as error:
                for each in batch:
                    each.stored.set_exception(error)
                    each.stored.exception()  # a client that has gone does not ask for it

    def _write_batch(self, batch: Sequence[_Waiting]) -> Stored:
        return self._results.record_all(
            [
                replace(result, sha256=self._pictures.put(upload.content, upload.suffix))
                for each in batch
                for upload, result in zip(each.uploads, each.results, strict=True)
            ]
        )
