"""Read captures and their labels: a folder with `images/` and `labels.csv`.

Each problem is one line with the row, the file, the value found and what to do. All problems are reported at once.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pinspect.captures.table import COLUMNS, FIELD_BOX, LABELS, PIN_BOX, read_table
from pinspect.core.answers import DEFECTIVE, PASSED, VERDICT, VIEWS, Answer, AnswerContract
from pinspect.core.errors import CaptureError
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.core.layout import NO_ADDRESS, Address
from pinspect.core.names import NamedLabel, label_in_name
from pinspect.core.temporary_database import temporary_database

IMAGES = "images"
IMAGES_RECORD = f"{IMAGES}.dvc"  # the file of DVC that names their content
REFERENCE = "reference"
INSPECTED = "inspected"
NO_BOX = ("",) * 4
_NOTHING = ("", "NA")
_ERRORS = "surrogatepass"  # names of files may hold any bytes
_ADDRESS = re.compile(
    r"X\s*:\s*([0-9]{1,3})[\s,;]*Y\s*:\s*([A-Z])|([0-9]{1,3})\s*([A-Z])|([A-Z])\s*([0-9]{1,3})", re.IGNORECASE
)


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

    Args:
        folder: As in `iterate_captures`.
        contract: As in `iterate_captures`.
        shape: As in `iterate_captures`.

    Raises:
        CaptureError: As in `iterate_captures`.
    """
    captures: list[Capture] = []
    problems: list[str] = []
    for each in iterate_captures(folder, contract, shape=shape):
        problems.append(each) if isinstance(each, str) else captures.append(each)
    return Labels(tuple(captures), tuple(problems))


def iterate_captures(folder: Path, contract: AnswerContract, *, shape: str = "") -> Iterator[Capture | str]:
    """Yield each usable capture of a folder in the order of the rows, and each problem of the others as one line.

    An empty cell of `labels.csv`, and every cell of an image without a row, is filled from the file name (see
    `core.names`), unless the row contradicts the name. A passed capture has the mode and the position `passed`, `NA` or
    nothing. A row belongs to the image whose name equals its own but for case or Unicode form.

    Args:
        folder: A folder of images, with or without `images/` and `labels.csv`.
        contract: The line's layout, shapes and defect modes.
        shape: Shape to assume where neither the row nor the name has one; by default the only shape of the contract.

    Raises:
        CaptureError: `labels.csv` is not a table of labels, or DVC keeps the images and they are not here.
    """
    _require_images(folder)
    images, labels = images_folder(folder), folder / LABELS
    first: dict[str, str] = {}  # by a key that several names or rows share: the first file of this name
    refused: set[str] = set()  # files of which no row can be used so far
    with closing(_Names(images, labels)) as names:

        def rows() -> Iterator[tuple[str, dict[str, str]]]:
            for number, row in read_table(labels):
                if row["file"] not in names:
                    row["file"] = names.like(row["file"])
                if "cells" not in row:
                    names.mark(row["file"])
                yield f"{labels}, row {number} ({_one_line(row['file'])})", row
            others = (name for name in names.unmarked() if is_image(name) and name not in refused)
            yield from ((str(images / _one_line(name)), {"file": name}) for name in others)

        for place, row in rows():
            capture = capture_of_row(row, contract, shape)
            key = name_key(capture.file)
            is_usable = first.get(key) == capture.file and capture.file not in refused
            if "cells" in row:
                complaints = [row["cells"]]
            elif is_usable:
                complaints = ["an earlier row labels this file; keep one of the two"]
            elif names.is_shared(key) and (other := first.setdefault(key, capture.file)) != capture.file:
                complaints = [f"the name equals {other} but for case or the form of its letters; rename one of the two"]
            else:
                complaints = list(_complaints(capture, contract, names, images))
            if not complaints:
                refused.discard(capture.file)
                yield capture
            elif not is_usable:
                refused.add(capture.file)
            yield from (f"{place}: {complaint}" for complaint in complaints)


class _Names:
    """The names of a folder's images and rows.

    Args:
        images: The folder of the images.
        labels: The table of their labels.
    """

    def __init__(self, images: Path, labels: Path):
        self._database = temporary_database("""
            CREATE TABLE images (name BLOB PRIMARY KEY, key BLOB, is_marked) WITHOUT ROWID;
            CREATE INDEX keys ON images (key);
            CREATE TABLE rows (key BLOB PRIMARY KEY, count) WITHOUT ROWID;
        """)
        names = ((_bytes(name), _bytes(name_key(name))) for name in _file_names(images))
        self._database.executemany("INSERT INTO images VALUES (?, ?, false)", names)
        keys = ((_bytes(name_key(row["file"])),) for _, row in read_table(labels))
        self._database.executemany("INSERT INTO rows VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", keys)

    def __contains__(self, name: str) -> bool:
        return bool(self._value("SELECT count(*) FROM images WHERE name = ?", name))

    def like(self, name: str) -> str:
        """Return the name of an image that equals a name but for case or Unicode form, else the name itself."""
        like = self._value("SELECT max(name) FROM images WHERE key = ?", name_key(name))
        return like.decode(errors=_ERRORS) if like else name

    def is_shared(self, key: str) -> bool:
        """Return whether several images, or several rows, have names of this key."""
        images = self._value("SELECT count(*) FROM images WHERE key = ?", key)
        return images > 1 or self._value("SELECT total(count) FROM rows WHERE key = ?", key) > 1

    def mark(self, name: str) -> None:
        """Mark an image that has a row."""
        self._database.execute("UPDATE images SET is_marked = true WHERE name = ?", (_bytes(name),))

    def unmarked(self) -> Iterator[str]:
        """Yield the names of the images without a mark, in their order."""
        names = self._database.execute("SELECT name FROM images WHERE NOT is_marked ORDER BY name")
        return (name.decode(errors=_ERRORS) for (name,) in names)

    def close(self) -> None:
        """Forget the names."""
        self._database.close()

    def _value(self, query: str, text: str) -> Any:
        return self._database.execute(query, (_bytes(text),)).fetchone()[0]


def _bytes(name: str) -> bytes:
    return name.encode(errors=_ERRORS)


def _file_names(folder: Path) -> Iterator[str]:
    """Yield the names of the files in a folder; none if there is no folder."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if entry.is_file())


def _require_images(folder: Path) -> None:
    """Check that the images are here if DVC keeps them: a clone has none before `dvc pull`."""
    record = folder / IMAGES_RECORD
    if not record.is_file() or (folder / IMAGES).is_dir():
        return
    try:
        count = yaml.safe_load(record.read_bytes())["outs"][0]["nfiles"]
    except (yaml.YAMLError, LookupError, TypeError):
        raise CaptureError(f"{record}: not a file of DVC with a folder; restore it: git checkout {record}") from None
    if count:
        raise CaptureError(f"{folder / IMAGES}: not found, but {record} lists {count} images; run dvc pull {record}")


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


def distinct(contents: Iterable[tuple[Capture, str]]) -> tuple[list[tuple[Capture, str]], list[str]]:
    """Keep the first of several captures of equal content.

    Args:
        contents: Pairs of a capture and the hash of its content.

    Returns:
        The pairs that stay, and one line for each capture that is left out.
    """
    first: dict[str, Capture] = {}
    remarks = [
        f"{capture.file}: the same picture as {other.file}, left out"
        for capture, content in contents
        if (other := first.setdefault(content, capture)) is not capture
    ]
    return [(capture, content) for content, capture in first.items()], remarks


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


def capture_of_row(row: dict[str, str], contract: AnswerContract, shape: str) -> Capture:
    """Return the capture of a row; empty cells are filled from the file name where it has the fact."""
    file = row.get("file", "")
    named = _named_label(row, contract)
    judgement = row.get("judgement") or named.judgement
    mode = row.get("defect_mode") or named.defect_mode
    position = _address(row.get("defect_position") or named.defect_position)
    if judgement == PASSED:
        mode = PASSED if mode in _NOTHING else mode
        position = NO_ADDRESS if position in _NOTHING else position
    only_shape = contract.shapes[0] if len(contract.shapes) == 1 else ""
    return Capture(
        file=file,
        shape=row.get("shape") or named.shape or shape or only_shape or named.usual_shape,
        judgement=judgement,
        defect_mode=mode,
        defect_position=position,
        role=row.get("role") or INSPECTED,
        field_box=tuple(row.get(column, "") for column in FIELD_BOX),
        pin_box=tuple(row.get(column, "") for column in PIN_BOX),
    )


def _address(text: str) -> str:
    """Return an address such as `x:3 y:u`, `3U` or `U3` in the form of the answers; any other text as it is."""
    match = _ADDRESS.fullmatch(unicodedata.normalize("NFKC", text))  # Japanese keyboards also type full-width letters
    if not match:
        return text
    column, row = sorted(filter(None, match.groups()))  # digits sort before letters
    return str(Address(int(column), row.upper()))


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


def _complaints(capture: Capture, contract: AnswerContract, names: _Names, images: Path) -> Iterator[str]:
    if not re.fullmatch(r"[^./\\][^/\\]*", capture.file):
        yield f"file: expected the name of an image in {images}, found {capture.file!r}; correct the row"
        return
    if _one_line(capture.file) != capture.file:
        yield "file: the name has an end of a line or a control character; rename the file"
        return
    if capture.file not in names:
        pull = "run dvc pull, " if images.with_name(IMAGES_RECORD).is_file() else ""
        yield f"file: the image is missing from {images}; {pull}put it there or remove the row"
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
    if not capture.judgement:  # without a judgement mode and position cannot be checked
        allowed = {column: words for column, words in allowed.items() if column != "defect_mode"}
    wrong = {column: words for column, words in allowed.items() if getattr(capture, column) not in words}
    expected = {column: f"{column}: expected {' or '.join(words)}" for column, words in wrong.items()}
    if lacking := [expected.pop(column) for column in wrong if not getattr(capture, column)]:
        yield f"{'; '.join(lacking)}, {_correction('')}"
    yield from (f"{words}, {_correction(getattr(capture, column))}" for column, words in expected.items())
    if not capture.judgement:
        return
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
