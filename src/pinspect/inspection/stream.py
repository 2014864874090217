"""Inspects any number of image files in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pinspect.core.answers import DEFECTIVE
from pinspect.core.errors import ImageError
from pinspect.inspection.annotate import AnnotatedPictures
from pinspect.inspection.files import printable, read_photograph
from pinspect.inspection.photograph_inspector import BATCH, PhotographInspector
from pinspect.inspection.records import Photograph, Record, Task, empty_record

ALL_PASSED, SOME_DEFECTIVE, SOME_NOT_INSPECTED = 0, 1, 2


def inspect_files(
    inspector: PhotographInspector, files: Iterable[Path], shape: str = "", annotated: AnnotatedPictures | None = None
) -> Iterator[Record]:
    """Inspect files, `BATCH` of them at a time.

    Args:
        inspector: The inspector.
        files: The image files; they are consumed as records are consumed.
        shape: Pin shape of all files; empty for the shape that fits each best.
        annotated: Where to write a picture of each capture that was inspected.

    Yields:
        One record per file, in order: the keys of `PhotographInspector.inspect`, `seconds` (mean time per capture of
        the batch, None if the file was not inspected) and `model_version`.
    """
    remaining = iter(files)
    while batch := list(islice(remaining, BATCH)):
        photographs: dict[int, Photograph] = {}
        records: dict[int, Record] = {}
        for number, path in enumerate(batch):
            try:
                photographs[number] = read_photograph(path, inspector.max_pixels)
            except ImageError as error:
                records[number] = empty_record(printable(path)) | {"error": str(error), "seconds": None}
        begin = time.perf_counter()
        inspected = inspector.inspect([Task(photograph, shape=shape or None) for photograph in photographs.values()])
        seconds = (time.perf_counter() - begin) / max(1, len(photographs))
        records |= {
            number: record | {"seconds": seconds} for number, record in zip(photographs, inspected, strict=True)
        }
        for number, path in enumerate(batch):
            if annotated and not records[number]["error"]:
                annotated.write(path, photographs[number], records[number], inspector, shape)
            yield records[number] | {"model_version": inspector.version}


def exit_code(records: Iterable[Mapping[str, Any]]) -> int:
    """Return 0 if all captures passed, 1 if some are defective, 2 if some could not be inspected."""
    worst = ALL_PASSED
    for record in records:
        worst = max(worst, SOME_NOT_INSPECTED if record["error"] else int(record["judgement"] == DEFECTIVE))
    return worst
