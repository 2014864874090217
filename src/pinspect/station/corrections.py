"""Verdicts of people on inspections, and how a correction becomes a training capture.

A confirmation is stored in the results table only: the model was right, and a day of the line has thousands of such
captures. A correction also adds the picture to the project's captures, after the checks of `pinspect add`, as
`station_<12 hex of its sha256>_<MODE or OK>.<suffix>` with a row in `labels.csv`. A line in `corrections.csv` beside it
records the person, the time, and the model's verdict. The next `dvc repro` trains on the capture.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import cast

from pinspect.captures.adding import add_locked
from pinspect.captures.change import locked
from pinspect.captures.labels import INSPECTED, Capture
from pinspect.captures.table import LABEL_COLUMNS, LABELS, read_table
from pinspect.core.answers import PASSED, VERDICT, VIEWS, Answer, AnswerContract
from pinspect.core.errors import CaptureError, StageInputError
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.manifests import MANIFEST, iterate_manifest
from pinspect.core.params import Params
from pinspect.station.export import without_formula
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import Correction, Inspection, ResultsTable

CAPTURES = Path("data/captures")
RAW = Path("data/raw")
CORRECTIONS = "corrections.csv"
CORRECTIONS_COLUMNS = (
    *("file", "by", "at", "inspection", "model_version"),
    *("model_judgement", "model_defect_mode", "model_defect_position"),
)
LONGEST_NAME = 80
_CORRECTED_FILE = re.compile(r"station_[0-9a-f]{12}_")


class CorrectionError(CaptureError):
    """The verdict of a person cannot be stored."""


class UnknownInspectionError(CorrectionError):
    """There is no inspection with this id."""


def correct(
    root: Path,
    params: Params,
    results: ResultsTable,
    pictures: PictureStore,
    id: str,
    *,
    judgement: str,
    defect_mode: str | None,
    defect_position: str | None,
    by: str,
) -> Correction:
    """Store a person's verdict on an inspection; a correction becomes a capture. Safe across processes.

    A later correction of the same picture replaces the capture of the earlier one. If an error is raised, nothing has
    changed.

    Args:
        root: Folder of the project.
        params: Layout, words of the answers, largest image.
        results: The results table.
        pictures: The stored pictures.
        id: Id of the inspection.
        judgement: `passed` or `defective`.
        defect_mode: Defect mode; may be empty for a passed capture.
        defect_position: Address of the pin; may be empty for a passed capture.
        by: Name of the person.

    Returns:
        The stored verdict.

    Raises:
        UnknownInspectionError: There is no inspection with this id.
        CorrectionError: The verdict is not valid, the picture has expired, or the same picture is among the captures
            with another label that did not come from a correction.
        CaptureError: The captures of the project have errors; one line each.
    """
    inspection = results.get(id)
    if inspection is None:
        raise UnknownInspectionError(f"there is no inspection {id!r}; see the list of results")
    person = " ".join(by.split())
    if not person or len(person) > LONGEST_NAME or not person.isprintable():
        raise CorrectionError(f"by: expected the name of a person, at most {LONGEST_NAME} characters, got {by!r}")
    if inspection.image_type is None:
        raise CorrectionError(
            f"{inspection.file}: the capture could not be inspected, so there is no answer to correct"
        )
    verdict = Correction(
        judgement=judgement,
        defect_mode=defect_mode or (PASSED if judgement == PASSED else ""),
        defect_position=defect_position or NO_ADDRESS,
        by=person,
        at=datetime.now(UTC).replace(microsecond=0),
        capture=None,
    )
    _check(verdict, inspection, params.contract())
    with locked(root / CAPTURES):
        earlier = _earlier_capture(root, inspection.sha256)
        if earlier or _values(verdict) != _values(inspection):
            picture = pictures.path(inspection.sha256)
            if picture is None:
                raise CorrectionError(f"{inspection.file}: the picture has expired; inspect the capture again")
            verdict = replace(verdict, capture=_add_capture(root, params, picture, inspection, verdict, earlier))
            if verdict.capture:
                _note(root / CAPTURES / CORRECTIONS, inspection, verdict)
        results.correct(id, **vars(verdict))
    return verdict


def waiting(root: Path) -> int:
    """Count captures from corrections that the last run of the stage `raw` did not have, or had with another label."""
    path = root / CAPTURES / LABELS
    status = path.stat() if path.is_file() else None
    labels = _corrected(path, (status.st_mtime_ns, status.st_size, status.st_ino)) if status else ()
    if not labels:
        return 0  # without a look at the manifest, which may be long
    known = {_label(row | {"file": row["capture"]}) for row in _learned(root / RAW / MANIFEST)}
    return sum(label not in known for label in labels)


@lru_cache(maxsize=4)
def _corrected(path: Path, state: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """Labels from corrections, read again when the `state` of the file is another."""
    del state
    try:
        return tuple(_label(row) for _, row in read_table(path) if _CORRECTED_FILE.match(row["file"]))
    except CaptureError:  # stage raw reports it
        return ()


def _values(verdict: Correction | Inspection) -> tuple[str | None, ...]:
    return verdict.judgement, verdict.defect_mode, verdict.defect_position


def _label(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row.get(column, "") for column in ("file", "shape", *VERDICT))


def _check(verdict: Correction, inspection: Inspection, contract: AnswerContract) -> None:
    """Raise CorrectionError if a verdict breaks the answer contract."""
    try:
        address = None if verdict.defect_position == NO_ADDRESS else contract.layout.address(verdict.defect_position)
    except ValueError as error:
        raise CorrectionError(f"defect position: {error}") from None
    answer = Answer(_shape(inspection), VIEWS[0], contract.layout.pins, verdict.judgement, verdict.defect_mode, address)
    breaches = contract.rule_breaches(answer)
    if breaches:
        raise CorrectionError("\n".join(breaches))


def _shape(inspection: Inspection) -> str:
    return (inspection.image_type or "").rpartition("_")[0]


def _earlier_capture(root: Path, sha256: str) -> str:
    """Return the name of the capture from an earlier correction of the same picture; empty if there is none."""
    names = (row["file"] for _, row in read_table(root / CAPTURES / LABELS))
    return next((name for name in names if name.startswith(_stem(sha256))), "")


def _stem(sha256: str) -> str:
    return f"station_{sha256[:12]}_"


def _add_capture(
    root: Path, params: Params, picture: Path, inspection: Inspection, verdict: Correction, earlier: str
) -> str | None:
    """Add the picture to the captures and return its name; None if the captures have it with this label already."""
    mode = "OK" if verdict.judgement == PASSED else verdict.defect_mode.upper()
    capture = Capture(
        file=f"{_stem(inspection.sha256)}{mode}{picture.suffix}",
        shape=_shape(inspection),
        judgement=verdict.judgement,
        defect_mode=verdict.defect_mode,
        defect_position=verdict.defect_position,
        role=INSPECTED,
    )
    with tempfile.TemporaryDirectory(prefix="pinspect-correction-") as folder:
        new = Path(folder)
        shutil.copyfile(picture, new / capture.file)
        _write_rows(new / LABELS, LABEL_COLUMNS, [capture.row()])
        try:
            report = add_locked(
                new, root / CAPTURES, params.contract(), max_pixels=params.raw.max_pixels, replaced=earlier
            )
        except CaptureError as error:
            raise CorrectionError(str(error).replace(f"{new}{os.sep}", "")) from None
    return capture.file if report.added else None


def _note(path: Path, inspection: Inspection, verdict: Correction) -> None:
    """Append a line with the person, the time and the model's verdict."""
    row = {
        "file": verdict.capture,
        "by": without_formula(verdict.by),
        "at": verdict.at.isoformat(),
        "inspection": inspection.id,
    }
    row |= {"model_version": inspection.model_version, "model_judgement": inspection.judgement}
    row |= {"model_defect_mode": inspection.defect_mode, "model_defect_position": inspection.defect_position}
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CORRECTIONS_COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _learned(manifest: Path) -> Iterator[dict[str, str]]:
    """Yield label and name of each capture that stage raw has had; none if there is no readable manifest."""
    with suppress(StageInputError):
        for rows in iterate_manifest(manifest, ("capture", "shape", *VERDICT)):
            yield from cast(list[dict[str, str]], rows.to_dict("records"))


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
