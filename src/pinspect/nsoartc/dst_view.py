"""The DST view: the picture of an aligned capture's distance from its unit space, as the model sees it.

Normal pins are faint rings: the edges of their tops, where the natural tolerance shows, over a gray outline of the
unit space's mean image, which shows the pins' shape. A defective pin is a solid white disc, whatever its defect mode;
the pin's Mahalanobis distance sets the disc's brightness. Tint and surroundings show the kind of difference: orange
where the capture is brighter than the unit space, blue where it is darker, and green in the disc of a pin whose top has
become smaller.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.unit_space import UnitSpace, even_light

_DISC_RADIUS = 0.30  # pitches
_RING = 0.5  # brightness at which the references' high quantile is shown
_DARK_DISC, _WHITE_DISC = 0.7, 2.5  # times the distance that few passed pins reach: below: no disc, above: a white disc
_TINT = 0.45
_OUTLINE = 0.30  # brightness of the mean's steepest edges
_SMALLER = 0.06  # a top smaller by this share tints its disc in full
_ZERO: Any = 0.0  # OpenCV's type stubs omit scalars
_FULL: Any = 1.0


def dst_view(gray_aligned: np.ndarray, unit_space: UnitSpace) -> np.ndarray:
    """Draw the DST view of an aligned capture.

    All scales are constants of the unit space, so that brightness can be compared between images.

    Args:
        gray_aligned: The capture in the unit space's px, float32 (H, W), 0..1.
        unit_space: The unit space.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    evened = even_light(gray_aligned, unit_space.templates)
    measures = measure_pins(evened, unit_space.templates)
    return paint_dst_view(evened, measures, unit_space.pin_distances(measures), unit_space)


def paint_dst_view(
    evened: np.ndarray, measures: np.ndarray, distances: np.ndarray, unit_space: UnitSpace
) -> np.ndarray:
    """Draw the DST view from a capture's measures, for callers that need the measures too.

    Args:
        evened: The aligned capture with its light evened, float32 (H, W), 0..1.
        measures: float32 (pins, 6), as `measure_pins` returns them.
        distances: float32 (pins,), the pins' Mahalanobis distances.
        unit_space: The unit space.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    brighter, darker = _signed_distances(evened, unit_space)
    disc, smaller = _discs(measures, distances, unit_space)
    red = np.maximum(disc * (1 - _TINT * darker), brighter)
    blue = np.maximum(disc * (1 - _TINT * brighter), darker)
    green = np.maximum(disc * (1 - 0.6 * _TINT * (1 - smaller)), 0.6 * np.minimum(brighter + darker, 1))
    distance = cv2.merge([red, green, blue])
    return cv2.convertScaleAbs(np.maximum(distance, _OUTLINE * unit_space.outline[..., None]), alpha=255)


def paint_double_eye(difference: np.ndarray, white: float) -> np.ndarray:
    """Draw the double-eye as a gray picture.

    Args:
        difference: float32 (H, W), as `window_beta.double_eye` returns it.
        white: Mean of the two unit spaces' `white`, the difference that is drawn halfway from mid-gray: a constant, so
            that brightness can be compared between connectors.

    Returns:
        uint8 (H, W). Mid-gray (128) is zero; brighter pixels have more distance in the left view, darker pixels in the
        right view.
    """
    return (128 + 127 * np.clip(_RING * difference / white, -1, 1)).round().astype(np.uint8)


def _signed_distances(evened: np.ndarray, unit_space: UnitSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return how much brighter and how much darker than the mean image each window is, both float32 (H, W), 0..1.

    Both together are the DST. The power of 1.5 keeps shadows on the floor, which are weak but wide, behind the rings.
    """
    brighter, darker = cv2.subtract(evened, unit_space.mean), cv2.subtract(unit_space.mean, evened)
    return _window_means(brighter, unit_space), _window_means(darker, unit_space)


def _window_means(difference: np.ndarray, unit_space: UnitSpace) -> np.ndarray:
    window = (unit_space.window, unit_space.window)
    share = cv2.blur(cv2.max(difference, _ZERO), window) * np.float32(1 / unit_space.white)
    return cv2.min(cv2.multiply(share, np.sqrt(share), scale=_RING), _FULL)


def _discs(measures: np.ndarray, distances: np.ndarray, unit_space: UnitSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return one disc per pin: its brightness, and how much smaller the pin's top is; both float32 (H, W), 0..1."""
    glow = np.clip((distances / unit_space.pin_white - _DARK_DISC) / (_WHITE_DISC - _DARK_DISC), 0, 1)
    shrunk = np.clip(-measures[:, 3] / _SMALLER, 0, 1)
    height, width = unit_space.mean.shape
    disc, smaller = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    radius = _DISC_RADIUS * unit_space.pitch
    for (x, y), level, share in zip(unit_space.pin_centers, glow, shrunk, strict=True):
        if level <= 0:
            continue
        left, top = int(x - radius) - 2, int(y - radius) - 2
        right, bottom = int(x + radius) + 4, int(y + radius) + 4
        left, top = max(left, 0), max(top, 0)
        part = disc[top:bottom, left:right]
        rows, columns = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]].astype(np.float32)
        cover = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
        np.maximum(part, level * cover, out=part)
        np.maximum(smaller[top:bottom, left:right], share * (cover > 0), out=smaller[top:bottom, left:right])
    return disc, smaller
