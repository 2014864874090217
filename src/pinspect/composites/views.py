"""The two views of a capture as single composites: the photograph (`RAW`) and its distance image (`DST`)."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pinspect.composites.drawing import rectify, single
from pinspect.core.layout import Layout
from pinspect.core.params import Params
from pinspect.nsoartc.aligned import AlignedCapture
from pinspect.nsoartc.dst_view import dst_view


@dataclass(frozen=True)
class Style:
    """How composites are drawn and written.

    Attributes:
        layout: Rows and columns of the pin field.
        cell: Side of one pin's cell, in px.
        grid: Whether to draw the column numbers and row letters.
        jpeg_quality: Quality of the JPEG files, 1..100.
    """

    layout: Layout
    cell: int
    grid: bool
    jpeg_quality: int

    @classmethod
    def of(cls, params: Params, cell: int) -> Style:
        """Return the style of `params.yaml`, with `cell` px per pin."""
        return cls(params.layout.layout(), cell, params.composite.grid, params.composite.jpeg_quality)

    def composite(self, image: np.ndarray, matrix: np.ndarray, pin_grid: np.ndarray) -> np.ndarray:
        """Draw the single composite of an image.

        Args:
            image: uint8 (H, W, 3), RGB.
            matrix: float (2, 3), maps px of `image` to px of the unit space; the identity for an aligned image.
            pin_grid: float (3, 3), maps column and row of a pin, both from 0, to px of the unit space.

        Returns:
            uint8 ((rows + 1) * cell, (columns + 1) * cell, 3), RGB.
        """
        return single(rectify(image, matrix, pin_grid, self.layout, self.cell), self.layout, self.cell, grid=self.grid)

    def encode(self, composite: np.ndarray) -> bytes:
        """Return a composite as the bytes of a JPEG file; colors keep their full resolution, since the star is red."""
        encoded = io.BytesIO()
        Image.fromarray(composite).save(encoded, "JPEG", quality=self.jpeg_quality, subsampling=0)
        return encoded.getvalue()


def draw_view(view: str, image: np.ndarray, capture: AlignedCapture, style: Style) -> np.ndarray:
    """Draw the single composite of one view of a capture.

    Args:
        view: `RAW` or `DST`.
        image: The photograph, uint8 (H, W, 3), RGB.
        capture: The same photograph, aligned to its unit space.
        style: How composites are drawn.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    pin_grid = capture.unit_space.grid
    if view == "RAW":
        return style.composite(image, capture.alignment.matrix, pin_grid)
    return style.composite(dst_view(capture), capture.unit_space.picture_matrix, pin_grid)
