"""The parts of NSOARTC: small matrices that respond to corners, diagonals and crosses.

A part is a square matrix. Its response at a place of an image is the sum of the image times the matrix, with the
matrix laid over the image as it is drawn (no flip). The seven default parts are ones on a pattern, zeros elsewhere:

    BEND1  top row and right column         LINE1  anti-diagonal
    BEND2  right column and bottom row      LINE2  main diagonal
    BEND3  left column and bottom row       DATUM  center row and center column
    BEND4  top row and left column
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pinspect.core.errors import ParamsError

FloatImage = npt.NDArray[np.float32]
Matrix = tuple[tuple[float, ...], ...]

PART_NAMES = ("BEND1", "BEND2", "BEND3", "BEND4", "LINE1", "LINE2", "DATUM")
FRAME_PAIRS = (("BEND1", "BEND3"), ("BEND2", "BEND4"), ("LINE1", "LINE2"))
LARGEST_PART = 255  # px


@dataclass(frozen=True)
class NsoartcSettings:
    """How stage 1 of NSOARTC compares a capture with its reference.

    Attributes:
        parts: Names of default parts (`PART_NAMES`) to use. Names that `own_parts` defines are allowed too.
        size: Side of the default parts, px, 1 to 255.
        stride: Distance of neighboring results, px, at least 1.
        p: Exponent of the Minkowski distance over the parts' responses, at least 1.
        variant: `distance` compares the responses of all parts. `difference` (the series' frame image) compares
            BEND1 - BEND3, BEND2 - BEND4 and LINE1 - LINE2.
        own_parts: Further parts by name, each a `size` x `size` matrix. A name of `PART_NAMES` replaces that part.

    Raises:
        ParamsError: A value is out of range, a part is unknown or is no `size` x `size` matrix.
    """

    parts: tuple[str, ...] = PART_NAMES
    size: int = 5
    stride: int = 1
    p: float = 4.0
    variant: Literal["distance", "difference"] = "distance"
    own_parts: Mapping[str, Matrix] = field(default_factory=dict[str, Matrix])

    def __post_init__(self) -> None:
        if not 1 <= self.size <= LARGEST_PART:
            raise ParamsError(f"NSOARTC: the size of a part is {self.size} px; use 1 to {LARGEST_PART}")
        if self.stride < 1:
            raise ParamsError(f"NSOARTC: the stride is {self.stride} px; use at least 1")
        if not (np.isfinite(self.p) and self.p >= 1):
            raise ParamsError(f"NSOARTC: the Minkowski exponent p is {self.p:g}; use a number of at least 1")
        if self.variant not in ("distance", "difference"):
            raise ParamsError(f"NSOARTC: unknown variant {self.variant!r}; use 'distance' or 'difference'")
        self._check_parts()

    def _check_parts(self) -> None:
        if not self.parts:
            raise ParamsError(f"NSOARTC: no part is named; name some of {', '.join(PART_NAMES)}, or own parts")
        for name in self.parts:
            if name not in PART_NAMES and name not in self.own_parts:
                known = ", ".join(dict.fromkeys((*PART_NAMES, *self.own_parts)))
                raise ParamsError(f"NSOARTC: unknown part {name!r}; the parts are {known}")
        for name, rows in self.own_parts.items():
            _check_own_part(name, rows, self.size)
        if self.variant == "difference":
            missing = [name for pair in FRAME_PAIRS for name in pair if name not in self.parts]
            if missing:
                raise ParamsError(f"NSOARTC: the difference variant needs {', '.join(missing)} among the parts")

    def matrix(self, name: str) -> FloatImage:
        """Return the part called `name` as float32 (size, size)."""
        if name in self.own_parts:
            return np.array(self.own_parts[name], np.float32)
        return default_part(name, self.size)

    def is_default(self, name: str) -> bool:
        """Return whether `name` is a default part that no own part replaces."""
        return name in PART_NAMES and name not in self.own_parts


def default_part(name: str, size: int) -> FloatImage:
    """Return a default part.

    Args:
        name: One of `PART_NAMES`.
        size: Side in px, at least 1. The center of an even size is the lower right of the middle four pixels.

    Returns:
        float32 (size, size), ones on the part's pattern, zeros elsewhere.

    Raises:
        ParamsError: No default part has this name.
    """
    part = np.zeros((size, size), np.float32)
    first, last, center = 0, size - 1, size // 2
    rows_and_columns = {
        "BEND1": (first, last),
        "BEND2": (last, last),
        "BEND3": (last, first),
        "BEND4": (first, first),
        "DATUM": (center, center),
    }
    if name in rows_and_columns:
        row, column = rows_and_columns[name]
        part[row] = 1
        part[:, column] = 1
    elif name == "LINE1":
        np.fill_diagonal(part[:, ::-1], 1)
    elif name == "LINE2":
        np.fill_diagonal(part, 1)
    else:
        raise ParamsError(f"NSOARTC: unknown part {name!r}; the default parts are {', '.join(PART_NAMES)}")
    return part


def _check_own_part(name: str, rows: Matrix, size: int) -> None:
    if len(rows) != size or any(len(row) != size for row in rows):
        widths = sorted({len(row) for row in rows})
        shape = f"{len(rows)} rows of {' or '.join(map(str, widths))}"
        raise ParamsError(f"NSOARTC: own part {name!r} has {shape} values; expected {size} x {size} (size: {size})")
    if not np.isfinite(np.array(rows, np.float64)).all():
        raise ParamsError(f"NSOARTC: own part {name!r} holds a value that is no finite number")
