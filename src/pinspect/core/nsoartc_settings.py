"""The settings of NSOARTC's stage 1: which parts, of which size, and how their responses are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pinspect.core.errors import ParamsError

Matrix = tuple[tuple[float, ...], ...]
Variant = Literal["distance", "difference"]

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
    variant: Variant = "distance"
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

    def is_default(self, name: str) -> bool:
        """Return whether `name` is a default part that no own part replaces."""
        return name in PART_NAMES and name not in self.own_parts


def _check_own_part(name: str, rows: Matrix, size: int) -> None:
    if len(rows) != size or any(len(row) != size for row in rows):
        widths = sorted({len(row) for row in rows})
        shape = f"{len(rows)} rows of {' or '.join(map(str, widths))}"
        raise ParamsError(f"NSOARTC: own part {name!r} has {shape} values; expected {size} x {size} (size: {size})")
    if not np.isfinite(np.array(rows, np.float64)).all():
        raise ParamsError(f"NSOARTC: own part {name!r} holds a value that is no finite number")
