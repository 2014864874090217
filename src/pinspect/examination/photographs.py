"""The photographs behind the rows of the chat dataset, for controls that change a photograph and draw it anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pinspect.composites.views import Style, draw_view
from pinspect.core.errors import AlignmentError
from pinspect.core.images import read_image
from pinspect.core.lines import COLUMNS, Line, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.params import Params
from pinspect.core.rows import Row
from pinspect.model.families import composite_cell
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.unit_space import UnitSpace

Light = Callable[[np.ndarray], np.ndarray]  # maps float32 (H, W, 3) in 0..1 to the same


@dataclass(frozen=True)
class Photographs:
    """The photographs of a project.

    Attributes:
        raw: The raw folder.
        dst: The dst folder, with the unit spaces.
        params: The parameters of the project.
    """

    raw: Path
    dst: Path
    params: Params
    _unit_spaces: dict[Line, UnitSpace] = field(default_factory=dict, init=False, repr=False, compare=False)

    def relit(self, row: Row, light: Light) -> np.ndarray | None:
        """Draw the inspected capture of a row in the row's view, under another light.

        Args:
            row: Row of the chat dataset.
            light: The change of the photograph.

        Returns:
            The single composite, uint8 (H, W, 3), RGB; None if the relit photograph cannot be aligned.
        """
        image = np.asarray(read_image(self.raw / str(row["file"]), self.params.raw.max_pixels))
        changed = light(image.astype(np.float32) / 255)
        image = (changed * 255 + 0.5).clip(0, 255).astype(np.uint8)
        line = self._lines[str(row["file"])]
        if line not in self._unit_spaces:
            self._unit_spaces[line] = UnitSpace.load(self.dst / line.unit_space)
        space = self._unit_spaces[line]
        try:
            capture = align_capture(image, space, self.params.dst.maximum_shift)
        except AlignmentError:
            return None
        return draw_view(str(row["view"]), image, capture, Style.of(self.params, composite_cell(self.params)))

    @cached_property
    def _lines(self) -> dict[str, Line]:
        return lines_of(read_manifest(self.raw / MANIFEST, COLUMNS))
