"""Align a capture to its unit space, so that each pin is compared with the same pin of the references.

Normalized cross-correlation at a quarter of the size finds the shift in steps of 4 px, for some rotations. ECC
(enhanced correlation coefficient, Evangelidis and Psarakis 2008, the implementation of OpenCV) refines an affine map at
a quarter of the size, then at half the size. Gain and offset of the light change neither result, and one missing pin
among many moves neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pinspect.core.errors import AlignmentError
from pinspect.nsoartc.parts import FloatImage

MINIMUM_SCORE = 0.6
_COARSE = 4
_ROTATIONS = (0.0, -2.5, 2.5)  # degrees
_SURE = 0.85  # a correlation of the coarse search at which no other rotation is tried
_QUARTER_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-4)
_HALF_STEPS = (cv2.TERM_CRITERIA_COUNT, 2, 0.0)  # a third step moves no pin by more than 0.02 px
_LARGEST_DEFORMATION = 0.12  # 4 degrees and 3 % together have 0.11
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
    half_gray, half_mean = _halved(gray), _halved(mean)
    quarter_gray, quarter_mean = _halved(half_gray), _halved(half_mean)
    inverse = _coarse_place(quarter_gray, quarter_mean, maximum_shift / _COARSE)
    try:
        _, inverse = cv2.findTransformECC(
            quarter_mean, quarter_gray, inverse, cv2.MOTION_AFFINE, _QUARTER_STEPS, _NO_MASK, 3
        )
        score, inverse = cv2.findTransformECC(
            half_mean, half_gray, _at_twice_the_size(inverse), cv2.MOTION_AFFINE, _HALF_STEPS, _NO_MASK, 3
        )
    except cv2.error:
        raise AlignmentError(_NOTHING_IN_COMMON) from None
    return _checked(_at_twice_the_size(inverse).astype(np.float64), float(score), gray.shape, maximum_shift)


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


def _halved(image: FloatImage) -> FloatImage:
    # Whole blocks of 2 x 2 px, so that each size has its pixels in the same places.
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    return np.asarray(cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)


def _coarse_place(gray: FloatImage, mean: FloatImage, maximum_shift: float) -> FloatImage:
    """Return a map from the px of `mean` to the px of `gray`, float32 (2, 3): whole px, one of `_ROTATIONS`.

    Phase correlation over the whole image does not work: in a regular field it locks on to a neighboring pin.
    """
    height, width = mean.shape
    reach = max(1, min(int(np.ceil(maximum_shift)), width // 4, height // 4))
    template = mean[reach:-reach, reach:-reach]
    best, place = -2.0, np.eye(2, 3, dtype=np.float32)
    for degrees in _ROTATIONS:
        turned = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0), np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        straight = cv2.warpAffine(gray, turned, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        match = cv2.matchTemplate(straight if degrees else gray, template, cv2.TM_CCOEFF_NORMED)
        _, score, _, (column, row) = cv2.minMaxLoc(match)
        if score > best:
            shift = np.array([column - reach, row - reach], np.float32)
            best, place = score, turned.copy()
            place[:, 2] += turned[:, :2] @ shift
        if best > _SURE:
            break
    return place


def _at_twice_the_size(matrix: np.ndarray) -> FloatImage:
    """Convert a matrix between images to images of twice the size; pixel centers lie at whole numbers."""
    full = matrix.astype(np.float64)
    full[:, 2] = 2 * full[:, 2] + 0.5 * (1 - full[:, :2].sum(axis=1))
    return full.astype(np.float32)


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
