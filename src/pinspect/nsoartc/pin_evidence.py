"""How conspicuous is each pin, without a model: its white in the DST picture, the color of its top, and its shape.

The DST picture compares with a gray mean image, and square and round pins differ by little in it, so that a pin of
another color or of the other shape can stay dark. But a pin can be compared with the other pins of its capture in any
light: the color of its top, and how well its shape fits the mean image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pinspect.nsoartc.aligned import AlignedCapture
from pinspect.nsoartc.dst_view import dst_view, pin_whiteness
from pinspect.nsoartc.light import without_trend

# Above what passed captures of two lines reach: a color of 0.036, a misfit of 2.15 times the median (docs/LOG.md).
COLOR_THRESHOLD = 0.05
SHAPE_THRESHOLD = 2.3
EVIDENT = 0.5  # evidence of a pin at its threshold
_STEEPNESS = 4.0
_COLOR_FLOOR = np.full(3, 0.002, np.float32)  # least spread assumed of the tops' colors
_DARK = 4.0  # levels that are added to each channel: a dark top has no reliable color


def pin_evidence(capture: AlignedCapture, localizer_threshold: float) -> npt.NDArray[np.float64]:
    """Return how conspicuous each pin of a capture is.

    Args:
        capture: The aligned capture, in color.
        localizer_threshold: Score of the localizer from which a pin is called defective.

    Returns:
        float64 (pins,), 0..1, in the order of `layout.addresses`: `EVIDENT` for a pin at the threshold of its
        whiteness, its color or its shape, whichever is clearest. It orders pins and is not calibrated; several pins
        can be near 1.
    """
    white = pin_whiteness(dst_view(capture), capture.unit_space) / localizer_threshold
    color = color_deviations(capture) / COLOR_THRESHOLD
    shape = capture.pin_misfits / max(capture.misfit, 1e-6) / SHAPE_THRESHOLD
    ratio = np.maximum.reduce([white, color, shape, np.full(len(white), 1e-6)]).astype(np.float64)
    return 1 / (1 + ratio**-_STEEPNESS)


def color_deviations(capture: AlignedCapture) -> npt.NDArray[np.float32]:
    """Return how far the color of each pin's top is from the color of all tops.

    Args:
        capture: The aligned capture, in color.

    Returns:
        float32 (pins,), the largest deviation of red, green and blue as shares of their sum, 0..1. A linear trend over
        the field, as two lamps of different colors cause, does not count.
    """
    templates = capture.unit_space.templates
    pixels = capture.image.reshape(-1, 3)[templates.top_pixels]
    tops = np.median(pixels, axis=1) + _DARK
    shares = tops / tops.sum(axis=1, keepdims=True)
    even = without_trend(shares, templates.centers, capture.unit_space.size, _COLOR_FLOOR)
    return np.abs(even - np.median(even, axis=0)).max(axis=1)
