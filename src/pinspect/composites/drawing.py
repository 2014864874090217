"""Draw composites: the pictures for the model, aligned with its grid of visual tokens.

A composite shows the rectified pin field: every pin has a square cell of `cell` px. A margin of one cell above has the
column numbers, a margin of one cell at the left has the row letters. Where `cell` is a multiple of the model's visual
token (patch x merge), each pin covers whole tokens.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pinspect.core.layout import Address, Layout
from pinspect.core.scaling import shrunk

YELLOW = (255, 214, 0)
RED = (235, 20, 20)


def composite_size(layout: Layout, cell: int) -> tuple[int, int]:
    """Return width and height in px of a single composite, margins included."""
    return (layout.columns + 1) * cell, (len(layout.rows) + 1) * cell


def rectify(image: np.ndarray, matrix: np.ndarray, grid: np.ndarray, layout: Layout, cell: int) -> np.ndarray:
    """Cut the pin field out of an image so that every pin lies in the middle of a cell of `cell` x `cell` px.

    Rotation and perspective of the field are taken out.

    Args:
        image: uint8 (H, W, 3).
        matrix: float (2, 3), maps px of the image to px of the unit space; the identity for an aligned image.
        grid: float (3, 3), maps column and row of a pin, both from 0, to px of the unit space.
        layout: Rows and columns of the pin field.
        cell: Side of a cell, in px.

    Returns:
        uint8 (rows * cell, columns * cell, 3); places outside the image are black.
    """
    middle = (cell - 1) / 2  # of a cell; pixel centers lie at whole numbers
    pins_to_cells = np.array([[cell, 0, middle], [0, cell, middle], [0, 0, 1]], np.float64)
    capture_to_unit = np.vstack([np.asarray(matrix, np.float64), [0, 0, 1]])
    place = pins_to_cells @ np.linalg.inv(np.asarray(grid, np.float64)) @ capture_to_unit
    width, height = layout.columns * cell, len(layout.rows) * cell
    outline = np.array([[(0, 0), (width, 0), (width, height), (0, height)]], np.float64)
    area = cv2.contourArea(cv2.perspectiveTransform(outline, np.linalg.inv(place)).astype(np.float32))
    image, to_full_size = shrunk(image, float(np.sqrt(width * height / area)))
    place = place if to_full_size is None else place @ to_full_size
    return cv2.warpPerspective(image, place, (width, height), flags=cv2.INTER_LINEAR)


def single(field: np.ndarray, layout: Layout, cell: int, *, grid: bool = True) -> np.ndarray:
    """Draw a single composite from a rectified pin field.

    Args:
        field: uint8 (rows * cell, columns * cell, 3), from `rectify`.
        layout: Rows and columns of the pin field.
        cell: Side of a cell, in px.
        grid: Whether to draw column numbers and row letters; without them the margins stay black.

    Returns:
        uint8 ((rows + 1) * cell, (columns + 1) * cell, 3).
    """
    composite = (_grid(layout, cell) if grid else np.zeros_like(_grid(layout, cell))).copy()
    composite[cell:, cell:] = field
    return composite


def stacked(passed: np.ndarray, inspected: np.ndarray) -> np.ndarray:
    """Put the passed composite above the inspected one, both uint8 (H, W, 3): uint8 (2 * H, W, 3)."""
    return np.vstack([passed, inspected])


def draw_star(composite: np.ndarray, address: Address, layout: Layout, cell: int) -> np.ndarray:
    """Return a copy of a single composite (uint8 (H, W, 3)) with a red five-pointed star on the pin at `address`."""
    row = layout.rows.index(address.row)
    top, left = (row + 1) * cell, address.column * cell
    starred = composite.copy()
    patch = starred[top : top + cell, left : left + cell]
    mask = _star(cell)[..., None]
    patch[:] = (patch * (1 - mask) + np.array(RED) * mask).round().astype(np.uint8)
    return starred


@lru_cache(maxsize=8)
def _grid(layout: Layout, cell: int) -> np.ndarray:
    width, height = composite_size(layout, cell)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=round(cell * 0.55))
    for column in range(1, layout.columns + 1):
        draw.text(((column + 0.5) * cell, cell / 2), str(column), fill=YELLOW, font=font, anchor="mm")
    for number, row in enumerate(layout.rows, start=1):
        draw.text((cell / 2, (number + 0.5) * cell), row, fill=YELLOW, font=font, anchor="mm")
    return np.asarray(image)


@lru_cache(maxsize=8)
def _star(cell: int) -> np.ndarray:
    """Return the coverage of the star, float32 (cell, cell), 0..1, antialiased by drawing at four times the size."""
    size = cell * 4
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.40, 0.16) * size
    points = np.stack([size / 2 + radii * np.cos(angles), size / 2 + radii * np.sin(angles)], axis=1)
    image = Image.new("L", (size, size))
    ImageDraw.Draw(image).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(image.resize((cell, cell), Image.Resampling.BOX), np.float32) / 255
