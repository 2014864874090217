"""Read and add captures and their labels: a folder with `images/` and `labels.csv`.

Each problem is one line with the row, the file, the value found and what to do. All problems are reported at once.
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
from pinspect.core.images import IMAGE_SUFFIXES, read_image
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.names import NamedLabel, label_in_name

LABELS = "labels.csv"
IMAGES = "images"
REFERENCE = "reference"
INSPECTED = "inspected"
LABEL_COLUMNS = ("file", "shape", "judgement", "defect_mode", "defect_position", "role")
FIELD_BOX = ("field_x0", "field_y0", "field_x1", "field_y1")
PIN_BOX = ("pin_x0", "pin_y0", "pin_x1", "pin_y1")
COLUMNS = (*LABEL_COLUMNS, *FIELD_BOX, *PIN_BOX)
NO_BOX = ("",) * 4


@dataclass(frozen=True)
class Capture:
    """One capture and its label, as a row of `labels.csv` has them.

    Attributes:
        file: Name of the image.
        shape: The pin shape, e.g. `CYLN`.
        judgement: `passed` or `defective`.
        defect_mode: `passed`, or one of the line's modes.
        defect_position: Address of the defective pin, or `passed`.
        role: `reference` or `inspected`.
        field_box: x0, y0, x1, y1 around the tops of all pins, in px, or four empty strings.
        pin_box: x0, y0, x1, y1 around the defective pin, in px, or four empty strings.
    """

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
        """Shape, judgement, mode, position and role; two captures of equal content must have equal labels."""
        return self.shape, self.judgement, self.defect_mode, self.defect_position, self.role

    def row(self) -> dict[str, str]:
        """Return the capture as a row of `labels.csv`, column -> cell."""
        return dict(zip(COLUMNS, (self.file, *self.label, *self.field_box, *self.pin_box), strict=True))


@dataclass(frozen=True)
class Labels:
    """The labels of a folder of captures.

    Attributes:
        captures: The usable captures, in the order of their rows.
        problems: The problems of the other captures, one line each.
    """

    captures: tuple[Capture, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class AddReport:
    """The result of `add_captures`.

    Attributes:
        added: Names of the added captures.
        skipped: Names of the captures whose content is in the folder already.
        refused: The problems of the captures that were not added, one line each.
    """

    added: tuple[str, ...]
    skipped: tuple[str, ...]
    refused: tuple[str, ...] = ()


def read_captures(folder: Path, contract: AnswerContract, *, shape: str = "") -> Labels:
    """Read the labels of a folder of captures; the images are not opened.

    An empty cell of `labels.csv`, and every cell of an image without a row, is filled from the file name (see
    `core.names`), unless the row contradicts the name. A passed capture has the position `passed`, `NA` or nothing.

    Args:
        folder: A folder of images, with or without `images/` and `labels.csv`.
        contract: The line's layout, shapes and defect modes.
        shape: Shape to assume where neither the row nor the name has one; by default the only shape of the contract.

    Raises:
        CaptureError: `labels.csv` is not a table of labels.
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
    """Return the folder of the images: `images/` below `folder`, or `folder` itself where it has no `images/`."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conflicting_labels(captures: Iterable[tuple[Capture, str]]) -> list[str]:
    """Find captures of equal content with different labels.

    Args:
        captures: Pairs of a capture and the hash of its content.

    Returns:
        One line for each capture whose label differs from that of the first capture with the same content.
    """
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
    """Copy the new captures of a folder into the captures' folder, after a check of every image and label.

    Captures whose content is in the folder already, with the same label, are skipped. New rows go to the end of
    `labels.csv`, so the order of its rows is the age of the captures. `labels.csv` is written last.

    Args:
        source: The folder with new captures.
        folder: The captures' folder.
        contract: The line's layout, shapes and defect modes.
        max_pixels: Refuse images with more pixels.
        shape: Shape to assume where neither the row nor the name has one.
        leave_bad: Leave out captures with a problem and report the problems, instead of raising CaptureError.

    Raises:
        CaptureError: There is a problem; the message has one line for each, and `folder` is unchanged.
    """
    if not source.is_dir():
        raise CaptureError(f"{source}: no such folder; name a folder of images, with or without a {LABELS}")
    if source.resolve() in (folder.resolve(), (folder / IMAGES).resolve()):
        raise CaptureError(f"{source}: these captures are in place already; name another folder")
    present, new = read_captures(folder, contract), read_captures(source, contract, shape=shape)
    problems = [*present.problems, *new.problems]
    if not new.captures and not new.problems:
        problems.append(f"{source}: no captures found; expected images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    contents = [(capture, content_hash(images_folder(folder) / capture.file)) for capture in present.captures]
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
            problems.append(f"{image}: {folder} has another capture of this name; rename this file")
        else:
            wanted.append(capture)
            known.add(content)
    problems += conflicting_labels(contents)
    if present.problems or (problems and not leave_bad):
        raise CaptureError("\n".join(problems))
    disputed = _disputed(contents)
    wanted = [capture for capture in wanted if capture not in disputed]
    skipped = [capture.file for capture in skipped if capture not in disputed]
    if wanted:
        _copy(wanted, images_folder(source), folder)
    return AddReport(tuple(capture.file for capture in wanted), tuple(skipped), tuple(problems))


def _disputed(contents: Sequence[tuple[Capture, str]]) -> set[Capture]:
    """Return the captures whose content has different labels."""
    labels: dict[str, set[tuple[str, ...]]] = {}
    for capture, content in contents:
        labels.setdefault(content, set()).add(capture.label)
    return {capture for capture, content in contents if len(labels[content]) > 1}


def _copy(captures: Sequence[Capture], images: Path, folder: Path) -> None:
    """Copy to a temporary folder first, where a full disk does no harm, and rename at the end."""
    target = images_folder(folder)
    if not any(_is_image(path.name) for path in target.glob("*")):
        target = folder / IMAGES
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adding-", dir=folder) as name:
        place = Path(name)
        labels = place / LABELS
        _write_labels(labels, [*(row for _, row in _read_table(folder / LABELS)), *(c.row() for c in captures)])
        for capture in captures:
            shutil.copyfile(images / capture.file, place / capture.file)
        try:
            for capture in captures:
                (place / capture.file).rename(target / capture.file)
            labels.replace(folder / LABELS)
        except BaseException:
            for capture in captures:
                if not (place / capture.file).exists():
                    (target / capture.file).unlink(missing_ok=True)
            raise


def _write_labels(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = [column for column in COLUMNS if column in LABEL_COLUMNS or any(row.get(column) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return line number and cells of each row; a row of a wrong length has `file` and, as `cells`, the problem."""
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
        *([f"columns {twice} occur twice; keep one of each"] if twice else []),
    ]
    if problems:
        raise CaptureError("\n".join(f"{path}, row 1: {problem}" for problem in problems))


def _cells(row: Sequence[str], header: Sequence[str]) -> dict[str, str]:
    cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
    if len(row) == len(header):
        return cells
    hint = 'an address contains a comma, so it needs quotes, as in "X:3, Y:U"'
    return {"file": cells.get("file", "?"), "cells": f"expected {len(header)} cells, found {len(row)}; {hint}"}


def _capture(row: dict[str, str], contract: AnswerContract, shape: str) -> Capture:
    """Return the capture of a row; empty cells are filled from the file name where it has the fact."""
    file = row.get("file", "")
    named = _named_label(row, contract)
    judgement = row.get("judgement") or named.judgement
    position = row.get("defect_position") or named.defect_position
    if judgement == PASSED and position in ("", "NA"):
        position = NO_ADDRESS
    only_shape = contract.shapes[0] if len(contract.shapes) == 1 else ""
    return Capture(
        file=file,
        shape=row.get("shape") or named.shape or shape or only_shape or named.usual_shape,
        judgement=judgement,
        defect_mode=row.get("defect_mode") or named.defect_mode,
        defect_position=position,
        role=row.get("role") or INSPECTED,
        field_box=tuple(row.get(column, "") for column in FIELD_BOX),
        pin_box=tuple(row.get(column, "") for column in PIN_BOX),
    )


def _named_label(row: dict[str, str], contract: AnswerContract) -> NamedLabel:
    """Return the label in the file name; only its shape where the row contradicts the name."""
    try:
        named = label_in_name(row.get("file", ""), contract)
    except ValueError:  # reported by `_complaints`
        return NamedLabel()
    if row.get("judgement", "") in ("", named.judgement) and row.get("defect_mode", "") in ("", named.defect_mode):
        return named
    return NamedLabel(shape=named.shape, usual_shape=named.usual_shape)


def _complaints(capture: Capture, contract: AnswerContract, present: set[str], images: Path) -> Iterator[str]:
    if not re.fullmatch(r"[^./\\][^/\\]*", capture.file):
        yield f"file: expected the name of an image in {images}, found {capture.file!r}; correct the row"
        return
    if capture.file not in present:
        yield f"file: the image is missing from {images}; put it there or remove the row"
    try:
        label_in_name(capture.file, contract)
    except ValueError as error:
        if not capture.defect_position:
            yield f"{error}; add the label to {LABELS}, or rename the file"
            return
    yield from _wrong_words(capture, contract)
    for columns, box in ((FIELD_BOX, capture.field_box), (PIN_BOX, capture.pin_box)):
        if box != NO_BOX and not _is_box(box):
            yield f"{columns[0]}..{columns[-1]}: expected x0 < x1 and y0 < y1 in px, {_correction(','.join(box))}"


def _wrong_words(capture: Capture, contract: AnswerContract) -> Iterator[str]:
    allowed = {
        "shape": contract.shapes,
        "judgement": (PASSED, DEFECTIVE),
        "defect_mode": (PASSED, *contract.defect_modes),
        "role": (REFERENCE, INSPECTED),
    }
    wrong = {column: words for column, words in allowed.items() if getattr(capture, column) not in words}
    for column, words in wrong.items():
        yield f"{column}: expected {' or '.join(words)}, {_correction(getattr(capture, column))}"
    address = None
    if capture.defect_position != NO_ADDRESS:
        try:
            address = contract.layout.address(capture.defect_position)
        except ValueError as error:
            problem = str(error) if capture.defect_position else f"expected {NO_ADDRESS} or an address"
            yield f"defect_position: {problem.partition(', found')[0]}, {_correction(capture.defect_position)}"
            return
    if wrong:
        return
    answer = Answer(capture.shape, VIEWS[0], contract.layout.pins, capture.judgement, capture.defect_mode, address)
    yield from (f"{breach}; correct the row" for breach in contract.rule_breaches(answer))
    if capture.role == REFERENCE and capture.judgement != PASSED:
        yield "role: a reference is a passed capture, found a defective one; correct role or judgement"


def _correction(value: str) -> str:
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
