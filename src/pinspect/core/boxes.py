"""Boxes as text, in the form of the public series: a word and four numbers.

An example is `Y-minus<loc_108><loc_187><loc_148><loc_239>`: the left, top, right and bottom edge of the box. Their unit
is not in the text, so writer and reader both name it: the series wrote pixels of its composites, and models that are
trained on `<loc_...>` read thousandths of the picture.
"""

from __future__ import annotations

import re
from typing import Literal

BoxUnit = Literal["px", "thousandths"]
Box = tuple[float, float, float, float]

_BOX = re.compile(r"(?P<word>[^<>]+)" + "".join(rf"<loc_(?P<{edge}>\d+)>" for edge in ("x0", "y0", "x1", "y1")))


def box_text(word: str, box: Box, unit: BoxUnit, size: tuple[int, int]) -> str:
    """Write a box; its edges are rounded to whole numbers of the unit.

    Args:
        word: What is in the box, such as a defect mode.
        box: Left, top, right and bottom edge, in px of the picture.
        unit: Unit of the numbers in the text.
        size: Width and height of the picture in px.

    Raises:
        ValueError: The box is empty or reaches beyond the picture, or the word has an angle bracket.
    """
    if not re.fullmatch(r"[^<>]+", word):
        raise ValueError(f"expected a word without < and >, found {word!r}")
    _require_inside(box, size)
    edges = [edge * scale for edge, scale in zip(box, _scales(unit, size), strict=True)]
    return word + "".join(f"<loc_{round(edge)}>" for edge in edges)


def read_box_text(text: str, unit: BoxUnit, size: tuple[int, int]) -> tuple[str, Box]:
    """Read a box that `box_text` wrote.

    Args:
        text: The text.
        unit: Unit of its numbers.
        size: Width and height of the picture in px.

    Returns:
        The word, and the edges of the box in px: exact for the unit `px`, else within half a thousandth of the picture.

    Raises:
        ValueError: The text has another form, or the box is empty or reaches beyond the picture, as pixels that are
            read as thousandths often do.
    """
    match = _BOX.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a box such as 'bend<loc_10><loc_20><loc_30><loc_40>', found {text!r}")
    x0, y0, x1, y1 = (
        int(match[edge]) / scale for edge, scale in zip(("x0", "y0", "x1", "y1"), _scales(unit, size), strict=True)
    )
    _require_inside((x0, y0, x1, y1), size)
    return match["word"], (x0, y0, x1, y1)


def _scales(unit: BoxUnit, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the units per px of the four edges."""
    across, down = (1.0, 1.0) if unit == "px" else (1000 / size[0], 1000 / size[1])
    return across, down, across, down


def _require_inside(box: Box, size: tuple[int, int]) -> None:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise ValueError(f"expected a box inside the picture of {size[0]} x {size[1]} px, found {box} in px")
