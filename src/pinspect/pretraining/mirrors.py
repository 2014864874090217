"""Mirror images of the rendered set-ups: the lessons see each of them in four."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pinspect.core.layout import Layout
from pinspect.pretraining import pretext
from pinspect.pretraining.pretext import CELL_CLASSES, SetupPool


class MirroredSetup:
    """A rendered set-up in a mirror image; the address grid keeps its place.

    Args:
        pool: The set-up.
        layout: The pins.
        cell: Side of one pin's cell in px.
        columns: Whether the columns are mirrored, left to right.
        rows: Whether the rows are mirrored, top to bottom.

    Attributes:
        shape: Pin shape.
        cells: int8 (inspected, pins), an index into CELL_CLASSES for each pin.
    """

    def __init__(self, pool: SetupPool, layout: Layout, cell: int, columns: bool, rows: bool) -> None:
        self._pool, self._cell = pool, cell
        self._mirror = slice(None, None, -1 if rows else 1), slice(None, None, -1 if columns else 1)
        self.shape = pool.shape
        directions = {"left": "right", "right": "left"} if columns else {}
        directions |= {"up": "down", "down": "up"} if rows else {}
        renamed = [CELL_CLASSES.index(_turned(name, directions)) for name in CELL_CLASSES]
        pins = pool.cells.reshape(-1, len(layout.rows), layout.columns)[:, *self._mirror]
        self.cells = np.array(renamed, np.int8)[pins].reshape(pool.cells.shape)

    def reference(self, rng: np.random.Generator, view: str) -> np.ndarray:
        """Return one of the references: uint8 (H, W, 3)."""
        return self._picture(self._pool.references[view][rng.integers(len(self._pool.references[view]))])

    def inspected(self, view: str, index: int) -> np.ndarray:
        """Return an inspected picture: uint8 (H, W, 3)."""
        return self._picture(self._pool.inspected[view][index])

    def _picture(self, jpeg: bytes) -> np.ndarray:
        picture = pretext.decode(jpeg)
        field = picture[self._cell :, self._cell :]
        field[:] = field[self._mirror].copy()
        return picture


def _turned(change: str, directions: Mapping[str, str]) -> str:
    """Return what a change becomes in the mirror."""
    name, _, direction = change.rpartition("-")
    return f"{name}-{directions[direction]}" if direction in directions else change
