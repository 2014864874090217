"""Read captures and their labels: a folder with `images/` and `labels.csv`.

Each problem is one line with the row, the file, the value found and what to do. All problems are reported at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinspect.core.answers import DEFECTIVE, PASSED, VERDICT, VIEWS, Answer, AnswerContract
from pinspect.core.errors import CaptureError
from pinspect.core.images import IMAGE_SUFFIXES
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
    table = read_table(labels)
    named = {row.get("file") for _, row in table}
    rows = [(f"{labels}, row {number} ({_one_line(row.get('file', '?'))})", row) for number, row in table]
    rows += [(str(images / _one_line(name)), {"file": name}) for name in sorted(present - named) if is_image(name)]
    captures: dict[str, Capture] = {}
    by_key: dict[str, str] = {}
    problems = []
    for place, row in rows:
        capture = capture_of_row(row, contract, shape)
        if "cells" in row:
            complaints = [row["cells"]]
        elif capture.file in captures:
            complaints = ["an earlier row labels this file; keep one of the two"]
        elif (other := by_key.setdefault(name_key(capture.file), capture.file)) != capture.file:
            complaints = [f"the name equals {other} but for case or the form of its letters; rename one of the two"]
        else:
            complaints = list(_complaints(capture, contract, present, images))
        problems += [f"{place}: {complaint}" for complaint in complaints]
        if not complaints:
            captures[capture.file] = capture
    return Labels(tuple(captures.values()), tuple(problems))


def images_folder(folder: Path) -> Path:
    """Return the folder of the images: `images/` below `folder`, or `folder` itself where it has no `images/`."""
    return folder / IMAGES if (folder / IMAGES).is_dir() else folder


def name_key(name: str) -> str:
    """Return what names have in common that some file systems take for one: they differ in case or Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


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


def contradicted_names(captures: Iterable[Capture], contract: AnswerContract) -> list[str]:
    """Find captures whose row has another label than their file name.

    Returns:
        One line for each; the row counts.
    """
    remarks = []
    for capture in captures:
        try:
            named = label_in_name(capture.file, contract)
        except ValueError:  # the name has no label of this line, and the row has one
            continue
        pairs = [(getattr(named, column), getattr(capture, column)) for column in VERDICT]
        if any(in_name not in ("", in_row) for in_name, in_row in pairs):
            words = [" ".join(dict.fromkeys(filter(None, label))) for label in zip(*pairs, strict=True)]
            remarks.append(f"{capture.file}: the name says {words[0]}, its row {words[1]}; the row counts")
    return remarks


def read_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return line number and cells of each row; a row of a wrong length has `file` and, as `cells`, the problem.

    Raises:
        CaptureError: The file is not a table of labels. A missing file has no rows.
    """
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


def capture_of_row(row: dict[str, str], contract: AnswerContract, shape: str) -> Capture:
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


def _one_line(name: str) -> str:
    """Return a name with control characters and ends of lines (U+2028 is one, too) written as escapes."""
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") else character
        for character in name
    )


def _complaints(capture: Capture, contract: AnswerContract, present: set[str], images: Path) -> Iterator[str]:
    if not re.fullmatch(r"[^./\\][^/\\]*", capture.file):
        yield f"file: expected the name of an image in {images}, found {capture.file!r}; correct the row"
        return
    if _one_line(capture.file) != capture.file:
        yield "file: the name has an end of a line or a control character; rename the file"
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


def is_image(name: str) -> bool:
    """Return whether a file of this name is a capture's image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _words(capture: Capture) -> str:
    return " ".join(capture.label)
