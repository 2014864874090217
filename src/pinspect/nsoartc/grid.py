"""Find the pin field: the layout's rows x columns grid, fitted to the mean of the references.

Pins are a periodic pattern of round or square tops. Nothing else is assumed: pins may be brighter or darker than what
surrounds them, the background may hold anything, the field may be turned by a few degrees and seen in perspective.

1. Search. For each pitch that fits into the image: how much every place looks like the middle of a disc (a correlation
   from -1 to 1, so that light and contrast do not count), summed over the nodes of a grid, for every place of the grid,
   some angles and some ratios of row pitch to column pitch.
2. Refinement. The mean of all pins' patches becomes the template; every pin moves to where the template fits best; a
   projective grid is laid through all pins. Pins that do not fit are outvoted.
3. Tops. A pin in perspective shows its side as well. The circle along which brightness changes everywhere around it
   gives the middle of its top, and the grid is laid through the tops.
4. Confidence. How alike the pins are, and how different the places one pitch outside of each side are from the pins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from pinspect.core.errors import UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.nsoartc.grid_fit import SMALLEST_PITCH, Points, fit_grid, largest_pitch, mean_pitch, nodes_of, project
from pinspect.nsoartc.parts import FloatImage

MINIMUM_CONFIDENCE = 0.6  # pins have 0.9 and more, noise, wood and stripes 0.35 and less (benchmarks/grid.py)

_TOP_SHARE = 0.52  # of a pitch: a top's size where the box does not determine it, with as many rows as columns
_YELLOW = (255, 220, 0)


@dataclass(frozen=True)
class PinGrid:
    """A rows x columns grid in an image, seen from any direction.

    Attributes:
        matrix: float64 (3, 3), maps the column and row of a pin, both from 0, to x and y px of its top (a homography).
        layout: The grid's rows and columns.
        diameter: Of a pin's top, px. 0: half a pitch.
        confidence: 0..1; below `MINIMUM_CONFIDENCE` a person should look at the grid.
    """

    matrix: Points
    layout: Layout
    diameter: float = 0.0
    confidence: float = 1.0

    @cached_property
    def centers(self) -> Points:
        """Return the places of the pins' tops, float64 (pins, 2), x and y px, in the order of `layout.addresses`."""
        return project(self.matrix, nodes_of(self.layout))

    @cached_property
    def pitch(self) -> float:
        """Return the mean distance of neighboring pins, px."""
        return mean_pitch(self.centers, self.layout)

    def seen_in(self, matrix: npt.ArrayLike) -> PinGrid:
        """Return the grid in the px of another image.

        Args:
            matrix: float (2, 3), maps px of the grid's image to px of the other image.
        """
        square = np.vstack([np.asarray(matrix, np.float64), [0, 0, 1]])
        return PinGrid(square @ self.matrix, self.layout, self.diameter, self.confidence)


class DoubtfulGridError(UnitSpaceError):
    """No grid fits the image well enough.

    Attributes:
        picture: uint8 (rows, columns, 3), RGB: the image with the best grid drawn on it.
    """

    def __init__(self, message: str, picture: npt.NDArray[np.uint8]) -> None:
        super().__init__(message)
        self.picture = picture


def find_grid(gray: FloatImage, layout: Layout) -> PinGrid:
    """Fit the layout's grid to an image.

    Args:
        gray: float32 (rows, columns), 0..1: the mean of a line's references, or a capture.
        layout: The connector's rows and columns. One pin alone makes no grid.

    Returns:
        The best grid, with its confidence.

    Raises:
        UnitSpaceError: The image is too small for the layout, is flat, or the layout has fewer than two pins.
    """
    if layout.pins < 2:
        raise UnitSpaceError("a single pin makes no grid; give the field boxes of the references in labels.csv")
    if min(gray.shape) < 3 * SMALLEST_PITCH / 2 or largest_pitch(gray, layout) < SMALLEST_PITCH:
        raise UnitSpaceError(f"an image of {gray.shape[1]} x {gray.shape[0]} px is too small for {layout}")
    if float(np.ptp(gray)) < 1e-3:
        raise UnitSpaceError("the image is flat: it shows no pins")
    fitted = fit_grid(gray, layout)
    return PinGrid(fitted.matrix, layout, fitted.diameter, fitted.confidence)


def draw_grid(image: npt.NDArray[np.uint8], grid: PinGrid) -> npt.NDArray[np.uint8]:
    """Draw a grid over an image.

    Args:
        image: uint8 (rows, columns, 3), RGB.
        grid: The grid, in px of the image.

    Returns:
        uint8 (rows, columns, 3), RGB: a circle around each pin's top, lines between neighbors, column numbers above
        the first row and row letters beside the first column.
    """
    picture, layout = image.copy(), grid.layout
    places = [(round(float(x)), round(float(y))) for x, y in grid.centers]
    rows = [places[start : start + layout.columns] for start in range(0, layout.pins, layout.columns)]
    for line in (*rows, *zip(*rows, strict=True)):
        for start, end in pairwise(line):
            cv2.line(picture, start, end, _YELLOW, 1, cv2.LINE_AA)
    for place in places:
        cv2.circle(picture, place, max(2, round((grid.diameter or grid.pitch / 2) / 2)), _YELLOW, 1, cv2.LINE_AA)
    size = grid.pitch / 80
    for text, (x, y), side in (
        *((str(column + 1), place, (0, -1)) for column, place in enumerate(rows[0])),
        *((letter, row[0], (-1, 0)) for letter, row in zip(layout.rows, rows, strict=True)),
    ):
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
        left = round(x + 0.45 * grid.pitch * side[0] - width / 2)
        bottom = round(y + 0.45 * grid.pitch * side[1] + height / 2)
        cv2.putText(picture, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, size, _YELLOW, 1, cv2.LINE_AA)
    return picture


def grid_from_box(field_box: npt.ArrayLike, layout: Layout) -> PinGrid:
    """Lay an upright grid into the box around the outer pins' tops.

    Args:
        field_box: (4,), x0, y0, x1, y1, px.
        layout: The connector's rows and columns.

    Returns:
        The grid, with a confidence of 1.
    """
    x0, y0, x1, y1 = np.asarray(field_box, np.float64).tolist()
    # The box is (columns - 1) pitches and one top wide, (rows - 1) pitches and one top high.
    difference = layout.columns - len(layout.rows)
    pitch = (x1 - x0 - y1 + y0) / difference if difference else (x1 - x0) / (layout.columns - 1 + _TOP_SHARE)
    left = (x0 + x1 - (layout.columns - 1) * pitch) / 2
    top = (y0 + y1 - (len(layout.rows) - 1) * pitch) / 2
    return PinGrid(np.array([[pitch, 0, left], [0, pitch, top], [0, 0, 1]]), layout)


def grid_from_corners(corners: npt.ArrayLike, layout: Layout) -> PinGrid:
    """Lay a grid through four corner pins that a person has marked.

    Args:
        corners: (4, 2), x and y px of the top left, top right, bottom right and bottom left pin's top.
        layout: The connector's rows and columns, at least two of each.

    Returns:
        The grid, with a confidence of 1.

    Raises:
        UnitSpaceError: The corners make no convex quadrilateral in this order, or the layout has one row or column.
    """
    points = np.asarray(corners, np.float64)
    if points.shape != (4, 2) or not np.isfinite(points).all():
        raise UnitSpaceError(f"expected four corners x,y; found an array of shape {points.shape}")
    if min(len(layout.rows), layout.columns) < 2:
        raise UnitSpaceError(
            f"four corners need two rows and two columns at least; the layout has {layout}: give field_x0, field_y0, "
            "field_x1 and field_y1 of the references in labels.csv instead"
        )
    edges = np.roll(points, -1, axis=0) - points
    turns = [float(np.linalg.det(np.stack([edges[i], edges[(i + 1) % 4]]))) for i in range(4)]
    if min(turns) <= 0:
        raise UnitSpaceError("the corners must go around: top left, top right, bottom right, bottom left")
    last_column, last_row = layout.columns - 1, len(layout.rows) - 1
    places = np.array([(0, 0), (last_column, 0), (last_column, last_row), (0, last_row)], np.float32)
    grid = PinGrid(np.asarray(cv2.getPerspectiveTransform(places, points.astype(np.float32)), np.float64), layout)
    if grid.pitch < SMALLEST_PITCH:
        raise UnitSpaceError(
            f"the corners put neighboring pins {grid.pitch:.1f} px apart, at least {SMALLEST_PITCH:g} px are needed; "
            "give px of the photograph"
        )
    return grid
