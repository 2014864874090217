"""Align a capture to its unit space, so that each pin is compared with the same pin of the references.

Normalized cross-correlation at a quarter of the size finds the shift in steps of 4 px. ECC (enhanced correlation
coefficient, Evangelidis and Psarakis 2008, the implementation of OpenCV) at half the size then refines a translation
and an affine map. Gain and offset of the light change neither result, and one missing pin among many moves neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pinspect.core.errors import AlignmentError

MINIMUM_SCORE = 0.6
_COARSE = 4
_TRANSLATION_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-3)
_AFFINE_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-4)
_LARGEST_DEFORMATION = 0.08
_NO_MASK: Any = None  # OpenCV's type stubs omit None
_NOTHING_IN_COMMON = "it shares no structure with the references; check that it shows this connector"


@dataclass(frozen=True)
class Alignment:
    """Where a capture lies in its unit space.

    Attributes:
        matrix: float32 (2, 3), maps capture px to unit-space px.
        score: Correlation of the aligned capture with the unit space's mean image, -1..1.
        shift: How far the capture's center moves to the unit space, x and y, px.
    """

    matrix: np.ndarray
    score: float
    shift: tuple[float, float]


def align(gray: np.ndarray, mean: np.ndarray, maximum_shift: float) -> Alignment:
    """Find the affine map from a capture to its unit space.

    Args:
        gray: The capture, float32 (H, W), 0..1.
        mean: The unit space's mean image, float32 (H, W), 0..1.
        maximum_shift: How far the capture may lie off its place, px.

    Returns:
        The affine map, with its correlation and shift.

    Raises:
        AlignmentError: The sizes differ, the capture is flat or has too little in common with the mean image, or the
            capture lies further off than `maximum_shift`.
    """
    if gray.shape != mean.shape:
        size, expected = (f"{array.shape[1]} x {array.shape[0]} px" for array in (gray, mean))
        raise AlignmentError(f"the capture has {size}, its references have {expected}; capture it at their size")
    if float(np.ptp(gray)) < 1e-3:
        raise AlignmentError("the image is flat: it shows nothing that could be aligned")
    shift = _coarse_shift(gray, mean, maximum_shift)
    half_gray, half_mean = (
        cv2.resize(array, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for array in (gray, mean)
    )
    inverse = np.array([[1, 0, shift[0] / 2], [0, 1, shift[1] / 2]], np.float32)
    try:
        _, inverse = cv2.findTransformECC(
            half_mean, half_gray, inverse, cv2.MOTION_TRANSLATION, _TRANSLATION_STEPS, _NO_MASK, 3
        )
        score, inverse = cv2.findTransformECC(
            half_mean, half_gray, inverse, cv2.MOTION_AFFINE, _AFFINE_STEPS, _NO_MASK, 3
        )
    except cv2.error:
        raise AlignmentError(_NOTHING_IN_COMMON) from None
    return _checked(_at_full_size(inverse), float(score), gray.shape, maximum_shift)


def warp(image: np.ndarray, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
    """Map a capture's image to the unit space; outside the capture the image's border repeats.

    Args:
        image: float32 or uint8, (H, W) or (H, W, 3), in the capture's px.
        alignment: The map from the capture to the unit space.
        size: Width and height of the unit space, px.

    Returns:
        The image in the unit space's px, with the dtype and channels of `image`.
    """
    return cv2.warpAffine(image, alignment.matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _coarse_shift(gray: np.ndarray, mean: np.ndarray, maximum_shift: float) -> tuple[float, float]:
    """Return the shift from unit-space px to capture px in steps of 4 px; search within `maximum_shift`.

    Phase correlation over the whole image does not work: in a regular field it locks on to a neighboring pin.
    """
    height, width = mean.shape
    reach = int(np.ceil(maximum_shift / _COARSE))
    reach = max(1, min(reach, width // _COARSE // 4, height // _COARSE // 4))
    size = (width // _COARSE, height // _COARSE)
    small_gray, small_mean = (cv2.resize(array, size, interpolation=cv2.INTER_AREA) for array in (gray, mean))
    match = cv2.matchTemplate(small_gray, small_mean[reach:-reach, reach:-reach], cv2.TM_CCOEFF_NORMED)
    _, _, _, (column, row) = cv2.minMaxLoc(match)
    return (column - reach) * _COARSE, (row - reach) * _COARSE


def _at_full_size(half: np.ndarray) -> np.ndarray:
    """Convert a matrix between half-size images to full size; pixel centers lie at whole numbers."""
    full = half.astype(np.float64)
    full[:, 2] = 2 * full[:, 2] + 0.5 * (1 - full[:, :2].sum(axis=1))
    return full


def _checked(inverse: np.ndarray, score: float, shape: tuple[int, int], maximum_shift: float) -> Alignment:
    matrix = cv2.invertAffineTransform(inverse)
    center = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    shift = matrix[:, :2] @ center + matrix[:, 2] - center
    if not score >= MINIMUM_SCORE:
        raise AlignmentError(f"{_NOTHING_IN_COMMON} (correlation {score:.2f}, {MINIMUM_SCORE} at least)")
    deformation = float(np.abs(matrix[:, :2] - np.eye(2)).max())
    if deformation > _LARGEST_DEFORMATION:
        raise AlignmentError(
            f"it would have to be turned or stretched by {deformation:.0%}, {_LARGEST_DEFORMATION:.0%} at most; "
            "check that it shows this connector, from the same camera"
        )
    distance = float(np.hypot(*shift))
    if distance > maximum_shift:
        raise AlignmentError(
            f"the connector lies {distance:.0f} px off its place, {maximum_shift:g} px at most (dst.maximum_shift); "
            "put it back into its holder"
        )
    return Alignment(matrix.astype(np.float32), score, (float(shift[0]), float(shift[1])))
