"""What a person says about an inspection, and how it becomes the next training capture.

Confirming says the same as the model did and is kept in the results table alone: the model has this one right, and a
day of the line holds thousands like it. Correcting also puts the picture among the project's captures, through the
checks of `pinspect add`, as `station_<12 hex of its sha256>_<MODE or OK>.<suffix>` with a row in `labels.csv`; who said
so, when, and what the model had said is a line in `corrections.csv` beside it, to which nothing but lines are added.
The next `dvc repro` takes it from there.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from pinspect.captures.labels import (
    INSPECTED,
    LABEL_COLUMNS,
    LABELS,
    Capture,
    add_captures,
    images_folder,
)
from pinspect.core.answers import PASSED, VIEWS, Answer, AnswerContract
from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.manifests import MANIFEST
from pinspect.core.params import Params
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import Correction, Inspection, ResultsTable

CAPTURES = Path("data/captures")
RAW = Path("data/raw")
CORRECTIONS = "corrections.csv"
CORRECTIONS_COLUMNS = (
    *("file", "by", "at", "inspection", "model_version"),
    *("said_judgement", "said_defect_mode", "said_defect_position"),
)
LONGEST_NAME = 80
_LOCK = Path("data/station/corrections.lock")
_MADE_HERE = re.compile(r"station_[0-9a-f]{12}_")


class CorrectionError(CaptureError):
    """What a person said about an inspection cannot be kept as a correction."""


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
    """Keep what `by`, a person, says about the inspection `id`, as the module tells. Several processes may do so.

    A passed capture needs no mode and no position. A person may change their mind: the capture of the earlier
    correction gives way to the new one; where the same picture came from elsewhere with another label, that is refused.
    Raises UnknownInspectionError, CorrectionError or CaptureError with one line for each problem; nothing has changed
    then.
    """
    inspection = results.get(id)
    if inspection is None:
        raise UnknownInspectionError(f"no inspection {id!r}; look it up in the results")
    person = " ".join(by.split())
    if not person or len(person) > LONGEST_NAME or not person.isprintable():
        raise CorrectionError(f"by: expected the name of a person, at most {LONGEST_NAME} characters, found {by!r}")
    if inspection.image_type is None:
        raise CorrectionError(f"{inspection.file}: it could not be inspected, so there is no answer to correct")
    said = Correction(
        judgement=judgement,
        defect_mode=defect_mode or (PASSED if judgement == PASSED else ""),
        defect_position=defect_position or NO_ADDRESS,
        by=person,
        at=datetime.now(UTC).replace(microsecond=0),
        capture=None,
    )
    _check(said, inspection, params.contract())
    with _one_at_a_time(root):
        earlier = _earlier_capture(root, inspection.sha256)
        if earlier or _verdict(said) != _verdict(inspection):
            picture = pictures.path(inspection.sha256)
            if picture is None:
                raise CorrectionError(f"{inspection.file}: its picture is kept no longer; inspect it again")
            said = replace(said, capture=_keep_capture(root, params, picture, inspection, said, earlier))
            if said.capture:
                _note(root / CAPTURES / CORRECTIONS, inspection, said)
        results.correct(id, **vars(said))
    return said


def waiting(root: Path) -> int:
    """How many captures that corrections made wait for the next retraining: those that the last run of the raw stage
    did not have, or had with another label."""
    learnt = {_label(row | {"file": row.get("capture", "")}) for row in _rows(root / RAW / MANIFEST)}
    labels = [row for row in _rows(root / CAPTURES / LABELS) if _MADE_HERE.match(row.get("file", ""))]
    return sum(_label(row) not in learnt for row in labels)


def _verdict(said: Correction | Inspection) -> tuple[str | None, ...]:
    return said.judgement, said.defect_mode, said.defect_position


def _label(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row.get(column, "") for column in ("file", "shape", "judgement", "defect_mode", "defect_position"))


def _check(said: Correction, inspection: Inspection, contract: AnswerContract) -> None:
    """Raises CorrectionError where it is no verdict of this product: the words, the address, and that they agree."""
    try:
        address = None if said.defect_position == NO_ADDRESS else contract.layout.address(said.defect_position)
    except ValueError as error:
        raise CorrectionError(f"defect position: {error}") from None
    answer = Answer(_shape(inspection), VIEWS[0], contract.layout.pins, said.judgement, said.defect_mode, address)
    breaches = contract.rule_breaches(answer)
    if breaches:
        raise CorrectionError("\n".join(breaches))


def _shape(inspection: Inspection) -> str:
    return (inspection.image_type or "").rpartition("_")[0]


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Corrections one after the other, whichever web worker they come to."""
    lock = root / _LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def _earlier_capture(root: Path, sha256: str) -> str | None:
    """The name of the capture that an earlier correction of the same picture made.

    An image of such a name without a row is what a kill left behind: it is taken away, its picture is kept elsewhere.
    """
    labelled = {row.get("file") for row in _rows(root / CAPTURES / LABELS)}
    found = None
    for path in images_folder(root / CAPTURES).glob(f"{_stem(sha256)}*"):
        if path.name in labelled:
            found = path.name
        else:
            path.unlink()
    return found


def _stem(sha256: str) -> str:
    return f"station_{sha256[:12]}_"


def _keep_capture(
    root: Path, params: Params, picture: Path, inspection: Inspection, said: Correction, earlier: str | None
) -> str | None:
    """Put the picture among the captures. Returns its name; None where it is there from elsewhere with that label."""
    mode = "OK" if said.judgement == PASSED else said.defect_mode.upper()
    capture = Capture(
        file=f"{_stem(inspection.sha256)}{mode}{picture.suffix}",
        shape=_shape(inspection),
        judgement=said.judgement,
        defect_mode=said.defect_mode,
        defect_position=said.defect_position,
        role=INSPECTED,
    )
    captures, contract, max_pixels = root / CAPTURES, params.contract(), params.raw.max_pixels
    with tempfile.TemporaryDirectory(prefix="pinspect-correction-") as place:
        new, others = Path(place) / "new", Path(place) / "others"
        new.mkdir()
        shutil.copyfile(picture, new / capture.file)
        _write_rows(new / LABELS, LABEL_COLUMNS, [capture.row()])
        try:
            if earlier is None:
                captures.mkdir(parents=True, exist_ok=True)
                report = add_captures(new, captures, contract, max_pixels=max_pixels)
                return capture.file if report.added else None
            _without(captures, earlier, others)
            add_captures(new, others, contract, max_pixels=max_pixels)
        except CaptureError as error:
            raise CorrectionError(str(error).replace(f"{new}{os.sep}", "")) from None
        _take_over(captures, earlier, new / capture.file, others / LABELS)
    return capture.file


def _without(captures: Path, earlier: str, others: Path) -> None:
    """Lay out in `others` the captures but one, the images as links."""
    there = images_folder(captures)
    images = others / there.relative_to(captures)
    images.mkdir(parents=True)
    for path in there.iterdir():
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name != earlier:
            (images / path.name).symlink_to(path.resolve())
    rows = _rows(captures / LABELS)
    _write_rows(others / LABELS, list(rows[0]), [row for row in rows if row.get("file") != earlier])


def _take_over(captures: Path, earlier: str, image: Path, labels: Path) -> None:
    """Bring in the new image and labels; the verdict changes with the renaming of the labels."""
    images = images_folder(captures)
    for source, target in ((image, images / image.name), (labels, captures / LABELS)):
        write_file(target, source.read_bytes())
    if earlier != image.name:
        (images / earlier).unlink()


def _note(path: Path, inspection: Inspection, said: Correction) -> None:
    """Add a line about who corrected what, when, and what the model had said."""
    row = {"file": said.capture, "by": said.by, "at": said.at.isoformat(), "inspection": inspection.id}
    row |= {"model_version": inspection.model_version, "said_judgement": inspection.judgement}
    row |= {"said_defect_mode": inspection.defect_mode, "said_defect_position": inspection.defect_position}
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, CORRECTIONS_COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, as far as they can be read; its reader in `pinspect.data` tells what is wrong with it. None
    where there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
        return [{name: row[name].strip() for name in header} for row in csv.DictReader(file, header, restval="")]


def _write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
