"""Line facts: what a capture shows about its line rather than about a pin.

No answer depends on these facts. Training captures and the station's captures are measured in the same way; when their
distributions differ, the line has changed.
"""

from __future__ import annotations

import numpy as np

from pinspect.nsoartc.aligned import AlignedCapture
from pinspect.nsoartc.unit_space import UnitSpace

LINE_FACTS = ("brightness", "dst_background")


def line_facts(capture: AlignedCapture) -> dict[str, float]:
    """Measure the `LINE_FACTS` of an aligned capture.

    Args:
        capture: The capture.

    Returns:
        `brightness`: mean gray of the pin field's box, 0..1. `dst_background`: median over the pin field and the colors
        of the NSOARTC distance, in units of the unit space's white; 0 and up. A defective pin is one cell of many and
        does not move the median.
    """
    rows, columns = _field_box(capture.unit_space)
    stride = capture.unit_space.nsoartc.stride
    inside = [slice(-(-side.start // stride), -(-side.stop // stride)) for side in (rows, columns)]
    return {
        "brightness": float(capture.gray[rows, columns].mean()),
        "dst_background": float(np.median(capture.distance[tuple(inside)]) / capture.unit_space.white),
    }


def _field_box(unit_space: UnitSpace) -> tuple[slice, slice]:
    """Return rows and columns of the pin field, in px of the unit space."""
    x0, y0, x1, y1 = unit_space.cell_box
    height, width = unit_space.mean.shape
    return slice(max(0, round(y0)), min(height, round(y1))), slice(max(0, round(x0)), min(width, round(x1)))
