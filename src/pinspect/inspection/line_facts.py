"""Line facts: what a capture shows about its line rather than about a pin.

No answer depends on these facts. Training captures and the station's captures are measured in the same way; when their
distributions differ, the line has changed.
"""

from __future__ import annotations

import numpy as np

from pinspect.nsoartc.alignment import Alignment, warp
from pinspect.nsoartc.parts import FloatImage
from pinspect.nsoartc.unit_space import UnitSpace, even_light
from pinspect.nsoartc.window_beta import distance_image

LINE_FACTS = ("brightness", "dst_background")


def line_facts(gray: FloatImage, alignment: Alignment, unit_space: UnitSpace) -> dict[str, float]:
    """Measure the `LINE_FACTS` of a capture.

    Args:
        gray: The capture, float32 (H, W), 0..1.
        alignment: Where the capture lies in the unit space.
        unit_space: The unit space.

    Returns:
        `brightness`: mean gray of the pin field's box, 0..1. `dst_background`: median over the pin field of the DST
        image after its light is evened, in units of the unit space's white; 0 and up. A defective pin is one cell of
        many and does not move the median.
    """
    aligned = warp(gray, alignment, unit_space.size)
    return facts_of_evened(aligned, even_light(aligned, unit_space.templates), unit_space)


def facts_of_evened(aligned: FloatImage, evened: FloatImage, unit_space: UnitSpace) -> dict[str, float]:
    """Measure the `LINE_FACTS` of a capture that is aligned already.

    Args:
        aligned: The aligned capture, float32 (H, W), 0..1.
        evened: The same with its light evened.
        unit_space: The unit space.

    Returns:
        The facts, see `line_facts`.
    """
    dst = distance_image(evened, unit_space.mean, unit_space.window, unit_space.stride)
    box = _field_box(unit_space)
    return {
        "brightness": float(aligned[box].mean()),
        "dst_background": float(np.median(dst[_windows(box, unit_space)]) / unit_space.white),
    }


def _field_box(unit_space: UnitSpace) -> tuple[slice, slice]:
    """Return rows and columns of the pin field, in px of the unit space."""
    x0, y0, x1, y1 = unit_space.cell_box
    height, width = unit_space.mean.shape
    return slice(max(0, round(y0)), min(height, round(y1))), slice(max(0, round(x0)), min(width, round(x1)))


def _windows(box: tuple[slice, slice], unit_space: UnitSpace) -> tuple[slice, ...]:
    """Return the windows of a DST image whose middle lies in `box`."""
    middle, stride = unit_space.window // 2, unit_space.stride
    return tuple(slice(max(0, part.start - middle) // stride, (part.stop - middle) // stride) for part in box)
