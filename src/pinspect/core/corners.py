"""Read and write corners.csv: corner pins that a person has marked, where the pin field is not found by itself.

One row per line (shape and eye): the file name of a reference, then x and y, px, of the tops of its top left, top
right, bottom right and bottom left pin.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file

CORNERS = "corners.csv"
COLUMNS = ("file", "x0", "y0", "x1", "y1", "x2", "y2", "x3", "y3")


@dataclass(frozen=True)
class Corners:
    """Four corner pins that a person has marked in a reference.

    Attributes:
        reference: File name of the reference.
        points: x, y px in the reference: top left, top right, bottom right and bottom left pin's top.
    """

    reference: str
    points: tuple[tuple[float, float], ...]


def read_corners(path: Path, references: Iterable[str]) -> tuple[Corners, ...]:
    """Read the marked corners of a project's lines.

    Args:
        path: corners.csv; without this file no corners are marked.
        references: File names of all references.

    Raises:
        CaptureError: The file is no table of corners, or a row is wrong; one line for each problem.
    """
    if not path.exists():
        return ()
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CaptureError(f"{path}: not readable as CSV ({error}); mark the corners again: pinspect grid") from None
    if not rows or tuple(rows[0]) != COLUMNS:
        raise CaptureError(
            f"{path}, row 1: expected the columns {','.join(COLUMNS)}, found {','.join(rows[0] if rows else [])!r}; "
            "mark the corners again: pinspect grid"
        )
    known, corners, problems = set(references), dict[str, Corners](), list[str]()
    for number, row in enumerate(rows[1:], start=2):
        file, points = row[0] if row else "", _points(row[1:])
        if points is None:
            problems.append(
                f"{path}, row {number} ({file}): expected eight numbers, found {','.join(row[1:])!r}; mark the corners "
                "again: pinspect grid"
            )
        elif file not in known:
            problems.append(
                f"{path}, row {number}: {file!r} is no reference in labels.csv; mark the corners in another reference: "
                "pinspect grid"
            )
        elif file in corners:
            problems.append(f"{path}, row {number}: an earlier row marks {file}; keep one of the two")
        else:
            corners[file] = Corners(file, points)
    if problems:
        raise CaptureError("\n".join(problems))
    return tuple(corners.values())


def write_corners(path: Path, corners: Iterable[Corners]) -> None:
    """Write corners.csv, ordered by file name; without corners the file is removed."""
    rows = [(each.reference, *(f"{value:g}" for point in each.points for value in point)) for each in corners]
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *sorted(rows)])
    write_file(path, text.getvalue())


def _points(cells: list[str]) -> tuple[tuple[float, float], ...] | None:
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        return None
    if len(numbers) != 8 or not all(map(math.isfinite, numbers)):
        return None
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))
