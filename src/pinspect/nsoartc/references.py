"""The references of a line, as the raw folder or the captures' folder has them."""

# Cells of a manifest are strings, but pandas types them as Any.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pinspect.captures.labels import REFERENCE
from pinspect.captures.table import FIELD_BOX
from pinspect.core.answers import DEFECTIVE
from pinspect.core.corners import Corners
from pinspect.core.errors import UnitSpaceError
from pinspect.core.lines import Line

GRIDS = "grid"  # a folder beside the dst folder: pictures of the lines' grids


def grid_picture(line: Line) -> str:
    """Return the file name of the picture of a line's grid."""
    return f"{line.source}-{line.aspect}.png"


@dataclass(frozen=True)
class References:
    """The references of one line.

    Attributes:
        line: The line.
        paths: Path of each reference.
        names: Name of each reference in labels.csv.
        sha256: Hash of each reference.
        field_boxes: x0, y0, x1, y1, px, of each reference; None unless every reference has a box.
        corners: Corner pins that a person has marked in one of the references, or None.
    """

    line: Line
    paths: tuple[str, ...]
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    field_boxes: tuple[tuple[float, ...], ...] | None
    corners: Corners | None

    @property
    def line_name(self) -> str:
        """The line's source and eye, for messages."""
        return f"{self.line.source} line{f', {self.line.eye} eye' if self.line.eye else ''}"


def line_references(
    captures: pd.DataFrame, lines: Mapping[str, Line], every: Iterable[Line], folder: Path, corners: Sequence[Corners]
) -> dict[Line, References]:
    """Return the references of every line, in the order of the lines.

    Args:
        captures: The references at least; columns file, sha256, capture, judgement, role and the field box.
        lines: The line of each of these captures, by its file.
        every: All lines that have captures.
        folder: The folder of the files.
        corners: All corners that a person has marked.

    Raises:
        UnitSpaceError: A reference is labeled defective, or a line has corners in two references.
    """
    return {
        line: _of_line(
            line, captures[np.array([lines[file] == line for file in captures["file"]], bool)], folder, corners
        )
        for line in sorted(set(every))
    }


def _of_line(line: Line, rows: pd.DataFrame, folder: Path, corners: Sequence[Corners]) -> References:
    rows = rows[rows["role"] == REFERENCE]
    boxes = rows[list(FIELD_BOX)]
    has_boxes = len(rows) > 0 and not (boxes == "").any(axis=None)
    names: tuple[str, ...] = tuple(rows["capture"])
    marked = [each for each in corners if each.reference in names]
    references = References(
        line=line,
        paths=tuple(str(folder / file) for file in rows["file"]),
        names=names,
        sha256=tuple(rows["sha256"]),
        field_boxes=tuple(map(tuple, boxes.astype(float).to_numpy().tolist())) if has_boxes else None,
        corners=marked[0] if marked else None,
    )
    defective = rows.loc[rows["judgement"] == DEFECTIVE, "capture"].tolist()
    if defective:
        raise UnitSpaceError(
            f"{references.line_name}, shape {line.shape}: reference {defective[0]} is labeled defective; a reference "
            "is a passed capture: correct its judgement or its role in labels.csv"
        )
    if len(marked) > 1:
        raise UnitSpaceError(
            f"{references.line_name}, shape {line.shape}: corners are marked in {marked[0].reference} and "
            f"{marked[1].reference}; remove one of the two rows from corners.csv"
        )
    return references
