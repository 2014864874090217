"""What a capture tells of its line rather than of a pin: how bright it is, and how much passed pins differ.

No answer hangs on these facts. They are measured the same way on what the model learnt from and on what the station
inspects, so that the two can be compared: when they part, the line has changed.
"""

from __future__ import annotations

import numpy as np

from pinspect.nsoartc.alignment import Alignment, warp
from pinspect.nsoartc.unit_space import UnitSpace, even_light
from pinspect.nsoartc.window_beta import distance_image

LINE_FACTS = ("brightness", "dst_background")


def line_facts(gray: np.ndarray, alignment: Alignment, unit_space: UnitSpace) -> dict[str, float]:
    """The `LINE_FACTS` of a capture (float32 (H, W), 0..1) that `alignment` lays over `unit_space`.

    brightness: mean gray of the pin field's box, 0..1. dst_background: the median over the pin field of the DST image,
    whose light is evened, in units of the unit space's white; 0 and up. A defective pin is one cell of many, so that it
    does not move the median.
    """
    aligned = warp(gray, alignment, unit_space.size)
    return facts_of_evened(aligned, even_light(aligned, unit_space.templates), unit_space)


def facts_of_evened(aligned: np.ndarray, evened: np.ndarray, unit_space: UnitSpace) -> dict[str, float]:
    """As `line_facts`, of a capture that is aligned, and of the same with its light evened."""
    dst = distance_image(evened, unit_space.mean, unit_space.window, unit_space.stride)
    box = _field_box(unit_space)
    return {
        "brightness": float(aligned[box].mean()),
        "dst_background": float(np.median(dst[_windows(box, unit_space)]) / unit_space.white),
    }


def _field_box(unit_space: UnitSpace) -> tuple[slice, slice]:
    """Rows and columns of the pin field, px of the unit space."""
    x0, y0, x1, y1 = unit_space.cell_box
    height, width = unit_space.mean.shape
    return slice(max(0, round(y0)), min(height, round(y1))), slice(max(0, round(x0)), min(width, round(x1)))


def _windows(box: tuple[slice, slice], unit_space: UnitSpace) -> tuple[slice, ...]:
    """The windows of a DST image whose middle lies in `box`."""
    middle, stride = unit_space.window // 2, unit_space.stride
    return tuple(slice(max(0, part.start - middle) // stride, (part.stop - middle) // stride) for part in box)
