"""Captures and their labels, as the user drops them in: `images/` and `labels.csv`.

Every problem is one line that names the row, the file, what was found and what to do; all problems are told at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinspect.core.answers import DEFECTIVE, PASSED, VIEWS, Answer, AnswerContract
from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.images import read_image
from pinspect.core.layout import NO_ADDRESS

LABELS = "labels.csv"
IMAGES = "images"
REFERENCE = "reference"
INSPECTED = "inspected"
LABEL_COLUMNS = ("file", "shape", "judgement", "defect_mode", "defect_position", "role")
FIELD_BOX = ("field_x0", "field_y0", "field_x1", "field_y1")
PIN_BOX = ("pin_x0", "pin_y0", "pin_x1", "pin_y1")
COLUMNS = (*LABEL_COLUMNS, *FIELD_BOX, *PIN_BOX)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
NO_BOX = ("",) * 4


@dataclass(frozen=True)
class Capture:
    """One capture and its label. A box is four numbers (px), as `labels.csv` writes them, or four empty strings."""

    file: str
    shape: str
    judgement: str
    defect_mode: str
    defect_position: str
    role: str
    field_box: tuple[str, ...] = NO_BOX
    pin_box: tuple[str, ...] = NO_BOX

    @property
    def label(self) -> tuple[str, ...]:
        """What the capture is said to show: two captures of one content must agree in it."""
        return self.shape, self.judgement, self.defect_mode, self.defect_position, self.role

    def row(self) -> dict[str, str]:
        """The capture as a row of `labels.csv`."""
        return dict(zip(COLUMNS, (self.file, *self.label, *self.field_box, *self.pin_box), strict=True))


@dataclass(frozen=True)
class Labels:
    """What a folder of captures says: the captures that can be used, in the order of their rows, and what is wrong with
    the others, a line each."""

    captures: tuple[Capture, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class AddReport:
    """What `add_captures` did: the names of the captures that came in, and of those that were there already; what is
    wrong with those that it left where they are, a line each."""

    added: tuple[str, ...]
    skipped: tuple[str, ...]
    refused: tuple[str, ...] = ()


def read_captures(folder: Path, contract: AnswerContract, *, shape: str = "") -> Labels:
    """Read the labels of a folder of captures; the images are not opened.

    Cells of `labels.csv` that are empty, and images without a row, take judgement and defect mode from the file name
    as the public series names its files, and the shape from `shape`, or from the contract if it knows one only.
    Raises CaptureError when `labels.csv` is no such table at all.
    """
    images = images_folder(folder)
    present = {path.name for path in images.iterdir() if path.is_file()} if images.is_dir() else set()
    labels = folder / LABELS
    table = _read_table(labels)
    named = {row.get("file") for _, row in table}
    rows = [(f"{labels}, row {number} ({row.get('file', '?')})", row) for number, row in table]
    rows += [(str(images / name), {"file": name}) for name in sorted(present - named) if _is_image(name)]
    captures: dict[str, Capture] = {}
    problems = []
    for place, row in rows:
        capture = _capture(row, contract, shape)
        if "cells" in row:
            complaints = [row["cells"]]
        elif capture.file in captures:
            complaints = ["an earlier row labels this file; keep one of the two"]
        else:
            complaints = list(_complaints(capture, contract, present, images))
        problems += [f"{place}: {complaint}" for complaint in complaints]
        if not complaints:
            captures[capture.file] = capture
    return Labels(tuple(captures.values()), tuple(problems))


def images_folder(folder: Path) -> Path:
    """Where the images of a folder of captures lie: in its `images/`, or in the folder itself."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conflicting_labels(captures: Iterable[tuple[Capture, str]]) -> list[str]:
    """One line for each capture whose content (a hash) came before with another label."""
    first: dict[str, Capture] = {}
    return [
        f"{capture.file}: the same picture as {other.file} with another label ({_words(capture)} here, "
        f"{_words(other)} there); correct the wrong label, or remove one of the two captures"
        for capture, content in captures
        if (other := first.setdefault(content, capture)).label != capture.label
    ]


def add_captures(
    source: Path, folder: Path, contract: AnswerContract, *, max_pixels: int, shape: str = "", leave_bad: bool = False
) -> AddReport:
    """Copy the captures of the folder `source` that are new into `folder`, each image and label checked before.

    All or nothing: CaptureError tells every problem in a line of its own, and `folder` is as it was. With `leave_bad`,
    captures with a problem are left out instead, and told in the report. Captures whose content is there already with
    the same label are skipped. New labels come at the end of `labels.csv`, which is written last: the order of its rows
    is the age of the captures.
    """
    if not source.is_dir():
        raise CaptureError(f"{source}: no such folder; name a folder of images, with or without a {LABELS}")
    if source.resolve() in (folder.resolve(), (folder / IMAGES).resolve()):
        raise CaptureError(f"{source}: these captures are in place already; name another folder")
    there, new = read_captures(folder, contract), read_captures(source, contract, shape=shape)
    problems = [*there.problems, *new.problems]
    if not new.captures and not new.problems:
        problems.append(f"{source}: no captures found; expected images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    contents = [(capture, content_hash(images_folder(folder) / capture.file)) for capture in there.captures]
    known = {content for _, content in contents}
    names = {path.name for path in images_folder(folder).glob("*")}
    wanted, skipped = [], []
    for capture in new.captures:
        image = images_folder(source) / capture.file
        try:
            read_image(image, max_pixels)
        except ImageError as error:
            problems.append(str(error))
            continue
        content = content_hash(image)
        contents.append((capture, content))
        if content in known:
            skipped.append(capture)
        elif capture.file in names:
            problems.append(f"{image}: another capture of this name is there already; give this one another name")
        else:
            wanted.append(capture)
            known.add(content)
    problems += conflicting_labels(contents)
    if there.problems or (problems and not leave_bad):
        raise CaptureError("\n".join(problems))
    disputed = _disputed(contents)
    wanted, skipped = ([one for one in found if one not in disputed] for found in (wanted, skipped))
    if wanted:
        _copy(wanted, images_folder(source), folder)
    return AddReport(tuple(one.file for one in wanted), tuple(one.file for one in skipped), tuple(problems))


def _disputed(contents: Sequence[tuple[Capture, str]]) -> set[Capture]:
    """Captures of whose content another says something else."""
    labels: dict[str, set[tuple[str, ...]]] = {}
    for capture, content in contents:
        labels.setdefault(content, set()).add(capture.label)
    return {capture for capture, content in contents if len(labels[content]) > 1}


def _copy(captures: Sequence[Capture], images: Path, folder: Path) -> None:
    """Copy to a place beside the target first, since what can fail (a full disk) fails there; then only rename."""
    there = images_folder(folder)
    target = there if any(_is_image(path.name) for path in there.glob("*")) else folder / IMAGES
    target.mkdir(parents=True, exist_ok=True)
    moved: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=folder) as place:
        labels = Path(place) / LABELS
        _write_labels(labels, [*(row for _, row in _read_table(folder / LABELS)), *(c.row() for c in captures)])
        for capture in captures:
            shutil.copyfile(images / capture.file, Path(place) / capture.file)
        try:
            for capture in captures:
                moved.append((Path(place) / capture.file).rename(target / capture.file))
            labels.replace(folder / LABELS)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise


def _write_labels(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = [column for column in COLUMNS if column in LABEL_COLUMNS or any(row.get(column) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row; a row with too many or too few cells gives `file` and, as `cells`, what is
    wrong with it."""
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptureError(f"{path}: not UTF-8 text at byte {error.start}; save it as 'CSV UTF-8'") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        return [(reader.line_num, _cells(row, header)) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise CaptureError(f"{path}, row {reader.line_num}: not readable as CSV ({error}); correct the row") from None


def _check_header(path: Path, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS]
    missing = [name for name in LABEL_COLUMNS if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    problems = [
        *([f"unknown columns {unknown}; known are {', '.join(COLUMNS)}"] if unknown else []),
        *([f"columns {missing} are missing; add them to the first row"] if missing else []),
        *([f"columns {twice} stand there twice; keep one of each"] if twice else []),
    ]
    if problems:
        raise CaptureError("\n".join(f"{path}, row 1: {problem}" for problem in problems))


def _cells(row: Sequence[str], header: Sequence[str]) -> dict[str, str]:
    cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
    if len(row) == len(header):
        return cells
    hint = 'an address holds a comma and stands in quotes, as in "X:3, Y:U"'
    return {"file": cells.get("file", "?"), "cells": f"expected {len(header)} cells, found {len(row)}; {hint}"}


def _capture(row: dict[str, str], contract: AnswerContract, shape: str) -> Capture:
    """The capture of a row, with what the row leaves empty filled in where it is known."""
    file = row.get("file", "")
    by_name = _mode_in_name(file, contract) if not row.get("judgement") and not row.get("defect_mode") else ""
    mode = row.get("defect_mode") or by_name
    judgement = row.get("judgement") or {"": "", PASSED: PASSED}.get(by_name, DEFECTIVE)
    return Capture(
        file=file,
        shape=row.get("shape") or shape or (contract.shapes[0] if len(contract.shapes) == 1 else ""),
        judgement=judgement,
        defect_mode=mode,
        defect_position=row.get("defect_position") or (NO_ADDRESS if judgement == PASSED else ""),
        role=row.get("role") or INSPECTED,
        field_box=tuple(row.get(column, "") for column in FIELD_BOX),
        pin_box=tuple(row.get(column, "") for column in PIN_BOX),
    )


def _mode_in_name(file: str, contract: AnswerContract) -> str:
    """The mode that a name of the public series ends in (`…_OK.jpg`, `…_BENDNG.png`); empty if there is none."""
    words = {"ok": PASSED} | {f"{mode}{ending}": mode for mode in contract.defect_modes for ending in ("", "ng")}
    return words.get(Path(file).stem.rpartition("_")[2].lower(), "")


def _complaints(capture: Capture, contract: AnswerContract, present: set[str], images: Path) -> Iterator[str]:
    if not re.fullmatch(r"[^./\\][^/\\]*", capture.file):
        yield f"file: expected the name of an image in {images}, found {capture.file!r}; correct the row"
        return
    if capture.file not in present:
        yield f"file: the image is missing from {images}; put it there or remove the row"
    yield from _wrong_words(capture, contract)
    for columns, box in ((FIELD_BOX, capture.field_box), (PIN_BOX, capture.pin_box)):
        if box != NO_BOX and not _is_box(box):
            yield f"{columns[0]}..{columns[-1]}: expected x0 < x1 and y0 < y1 in px, {_found(','.join(box))}"


def _wrong_words(capture: Capture, contract: AnswerContract) -> Iterator[str]:
    allowed = {
        "shape": contract.shapes,
        "judgement": (PASSED, DEFECTIVE),
        "defect_mode": (PASSED, *contract.defect_modes),
        "role": (REFERENCE, INSPECTED),
    }
    wrong = {column: words for column, words in allowed.items() if getattr(capture, column) not in words}
    for column, words in wrong.items():
        yield f"{column}: expected {' or '.join(words)}, {_found(getattr(capture, column))}"
    address = None
    if capture.defect_position != NO_ADDRESS:
        try:
            address = contract.layout.address(capture.defect_position)
        except ValueError as error:
            problem = str(error) if capture.defect_position else f"expected {NO_ADDRESS} or an address"
            yield f"defect_position: {problem.partition(', found')[0]}, {_found(capture.defect_position)}"
            return
    if wrong:
        return
    answer = Answer(capture.shape, VIEWS[0], contract.layout.pins, capture.judgement, capture.defect_mode, address)
    yield from (f"{breach}; correct the row" for breach in contract.rule_breaches(answer))
    if capture.role == REFERENCE and capture.judgement != PASSED:
        yield "role: a reference is a passed capture, found a defective one; correct role or judgement"


def _found(value: str) -> str:
    if value:
        return f"found {value!r}; correct the row"
    return f"found nothing; add it to {LABELS}"


def _is_box(box: Sequence[str]) -> bool:
    try:
        x0, y0, x1, y1 = map(float, box)
    except ValueError:
        return False
    return all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _words(capture: Capture) -> str:
    return " ".join(capture.label)
