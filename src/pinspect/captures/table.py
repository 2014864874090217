"""Read `labels.csv` as spreadsheets and people write it, and add rows to it in the file's own form.

The text may be UTF-8, with or without a byte order mark, UTF-16 (Excel's "Unicode text") or CP932 (Japanese Excel).
Commas, semicolons or tabs separate the cells, whichever makes most column names of the header. Case and spaces of
the header do not matter, nor do spaces around cells. Columns that begin with `guess_` are for people only.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import BinaryIO

from pinspect.core.errors import CaptureError

LABELS = "labels.csv"
LABEL_COLUMNS = ("file", "shape", "judgement", "defect_mode", "defect_position", "role")
FIELD_BOX = ("field_x0", "field_y0", "field_x1", "field_y1")
PIN_BOX = ("pin_x0", "pin_y0", "pin_x1", "pin_y1")
COLUMNS = (*LABEL_COLUMNS, *FIELD_BOX, *PIN_BOX)
GUESS = "guess_"

_BOM = "\ufeff"
_ENCODINGS = {codecs.BOM_UTF16_LE: ("utf-16-le",), codecs.BOM_UTF16_BE: ("utf-16-be",)}
_NO_TEXT = frozenset("\0\x80\uf8f0\uf8f1\uf8f2\uf8f3")  # the codec cp932 makes the last five of bytes that no text has
_WORKBOOKS = (b"PK\3\4", b"\xd0\xcf\x11\xe0")
_CHUNK = 65536  # bytes
_REMEDY = "save it as 'CSV UTF-8'"
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_HALVES = (re.compile(r"X\s*:\s*\d+", re.IGNORECASE), re.compile(r"Y\s*:\s*[A-Z]", re.IGNORECASE))


@dataclass(frozen=True)
class TableForm:
    """How a `labels.csv` is written.

    Attributes:
        path: The file.
        encoding: The codec of its text.
        delimiter: The character between two cells.
        header: Names of the columns, in lower case, in the order of the file.
    """

    path: Path
    encoding: str
    delimiter: str
    header: tuple[str, ...]

    def rows_of(self, lines: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line number and the cells of each row, as `read_table` does.

        Args:
            lines: The lines of the text with their ends, without a byte order mark.

        Raises:
            CaptureError: A row is not readable as CSV.
        """
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        begin = 1
        try:
            next(reader, None)
            begin = reader.line_num + 1
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, self._cells(row)
                begin = reader.line_num + 1
        except csv.Error as error:
            raise CaptureError(f"{self.path}, row {begin}: not readable as CSV ({error}); correct the row") from None

    def _cells(self, row: Sequence[str]) -> dict[str, str]:
        cells = [cell.strip() for cell in row]
        width = len(self.header)
        if self.delimiter == "," and len(cells) == width + 1:
            cells = _joined_address(cells, self.header.index("defect_position"))
        missing, extra = self.header[len(cells) :], cells[width:]
        if any(extra) or not all(name.startswith(GUESS) for name in missing):
            hint = 'an address contains a comma, so it needs quotes, as in "X:3, Y:U"' if extra else "correct the row"
            file = dict(zip(self.header, cells, strict=False)).get("file", "?")
            return {"file": file, "cells": f"expected {width} cells, found {len(cells)}; {hint}"}
        pairs = zip_longest(self.header, cells[:width], fillvalue="")
        return {name: cell for name, cell in pairs if not name.startswith(GUESS)}


@dataclass(frozen=True)
class Table(TableForm):
    """A `labels.csv` with its whole text.

    Attributes:
        text: The text, with the byte order mark if it has one; `encoding` gives the file's bytes back from it.
    """

    text: str

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Table:
        """Recognize encoding, delimiter and header of a file's content.

        Args:
            path: The file, for messages.
            content: Its bytes.

        Raises:
            CaptureError: The content is not text in a known encoding, or its header is not that of a table of labels.
        """
        form, _ = _recognized(path, io.BytesIO(content))
        return cls(**vars(form), text=content.decode(form.encoding))

    @classmethod
    def new(cls, path: Path, header: Sequence[str]) -> Table:
        """Return a table without rows that Excel reads and writes as UTF-8."""
        return cls(path, "utf-8", ",", tuple(header), f"{_BOM}{','.join(header)}\r\n")

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield the line number and the cells of each row, as `read_table` does."""
        return self.rows_of(_lines(self.text.removeprefix(_BOM)))

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield each line of the text with the file that it labels; the header labels none."""
        for number, line in enumerate(_lines(self.text)):
            cells = next(csv.reader([line], delimiter=self.delimiter), [])
            yield self._cells(cells).get("file", "") if number and cells else "", line

    def with_rows(self, rows: Iterable[Mapping[str, str]]) -> bytes:
        """Return the content of the file with more rows at its end.

        Args:
            rows: Column -> cell; columns that the table lacks are left out.

        Raises:
            CaptureError: The file's encoding lacks a letter of a row.
        """
        end = next((end for end in ("\r\n", "\n", "\r") if end in self.text), "\r\n")
        added = io.StringIO(newline="")
        writer = csv.writer(added, delimiter=self.delimiter, lineterminator=end)
        writer.writerows([row.get(name, "") for name in self.header] for row in rows)
        gap = "" if self.text.endswith(("\n", "\r")) else end
        try:
            return f"{self.text}{gap}{added.getvalue()}".encode(self.encoding)
        except UnicodeEncodeError as error:
            letter = error.object[error.start]
            raise CaptureError(f"{self.path}: {self.encoding.upper()} text cannot hold {letter!r}; {_REMEDY}") from None


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of each row; a row of a wrong length has `file` and, as `cells`, the problem.

    The file is open until the last row, and never in memory as a whole.

    Raises:
        CaptureError: The file is not a table of labels. A missing file has no rows.
    """
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            form, lines = _recognized(path, file)
            yield from form.rows_of(lines)
    except UnicodeDecodeError:  # all of it could be decoded a moment ago
        raise CaptureError(f"{path}: changed by another program just now; try again") from None


def _lines(text: str) -> Iterator[str]:
    """Yield lines with their ends; a StringIO would take four bytes more for each letter."""
    return (match[0] for match in _LINE.finditer(text))


def _recognized(path: Path, file: BinaryIO) -> tuple[TableForm, Iterator[str]]:
    """Return the form of a table, and the lines of its text without a byte order mark."""
    encoding = _encoding(path, file)
    file.seek(0)
    lines = io.TextIOWrapper(file, encoding, newline="")
    first = lines.readline().removeprefix(_BOM)
    headers = {delimiter: _header(first, delimiter) for delimiter in (",", ";", "\t")}
    delimiter = max(headers, key=lambda delimiter: sum(name in COLUMNS for name in headers[delimiter]))
    _check_header(path, headers[delimiter])
    return TableForm(path, encoding, delimiter, headers[delimiter]), chain([first], lines)


def _encoding(path: Path, file: BinaryIO) -> str:
    if file.read(8).startswith(_WORKBOOKS):
        raise CaptureError(f"{path}: found an Excel workbook, expected text; {_REMEDY}")
    file.seek(0)
    row = 1
    for encoding in _ENCODINGS.get(file.read(2), ("utf-8", "cp932")):
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        is_text, line_ends = True, 0
        try:
            for chunk in chain(iter(lambda: file.read(_CHUNK), b""), [b""]):
                line_ends += chunk.count(b"\n")
                text = decoder.decode(chunk, final=not chunk)  # the final call fails if the last letter is cut off
                is_text = is_text and not any(letter in text for letter in _NO_TEXT)
        except UnicodeDecodeError as error:  # its object also has bytes of the chunk before
            row = max(row, line_ends - error.object.count(b"\n", error.start) + 1)
            continue
        if is_text:
            return encoding
    raise CaptureError(f"{path}, row {row}: not text in UTF-8, UTF-16 or CP932 (Japanese Excel); {_REMEDY}")


def _header(line: str, delimiter: str) -> tuple[str, ...]:
    """Return the names in the first line; Excel may add columns without a name at the end."""
    names = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _check_header(path: Path, header: Sequence[str]) -> None:
    unknown = [name for name in header if name not in COLUMNS and not name.startswith(GUESS)]
    missing = [name for name in LABEL_COLUMNS if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    problems = [
        *([f"unknown columns {unknown}; known are {', '.join(COLUMNS)}"] if unknown else []),
        *([f"columns {missing} are missing; add them to the first row"] if missing else []),
        *([f"columns {twice} occur twice; keep one of each"] if twice else []),
    ]
    if problems:
        raise CaptureError(f"{path}, row 1: {'; '.join(problems)}")


def _joined_address(cells: list[str], place: int) -> list[str]:
    """Join an address without quotes, which the comma has split in two; no other cells look like its halves."""
    halves = cells[place : place + 2]
    if all(half.fullmatch(cell) for half, cell in zip(_HALVES, halves, strict=True)):
        return [*cells[:place], ", ".join(halves), *cells[place + 2 :]]
    return cells
