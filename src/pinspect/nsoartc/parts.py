"""The parts of NSOARTC: small matrices that respond to corners, diagonals and crosses.

A part is a square matrix. Its response at a place of an image is the sum of the image times the matrix, with the
matrix laid over the image as it is drawn (no flip). The seven default parts are ones on a pattern, zeros elsewhere:

    BEND1  top row and right column         LINE1  anti-diagonal
    BEND2  right column and bottom row      LINE2  main diagonal
    BEND3  left column and bottom row       DATUM  center row and center column
    BEND4  top row and left column
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pinspect.core.errors import ParamsError
from pinspect.core.nsoartc_settings import PART_NAMES, NsoartcSettings

FloatImage = npt.NDArray[np.float32]


def matrix_of(settings: NsoartcSettings, name: str) -> FloatImage:
    """Return the part called `name` as float32 (size, size)."""
    if name in settings.own_parts:
        return np.array(settings.own_parts[name], np.float32)
    return default_part(name, settings.size)


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
