"""Align a capture to its unit space, so that each pin is compared with the same pin of the references.

Normalized cross-correlation at a quarter of the size finds the shift in steps of 4 px, for some rotations. Gauss-Newton
steps refine an affine map at a quarter of the size, then at half the size. They minimize the squared difference over
the map, and over gain and offset of the light, which maximizes the correlation. The steps are inverse compositional
(Baker and Matthews 2004, "Lucas-Kanade 20 years on"): the derivatives are those of the mean image and are computed
once, so a step costs a warp and a product. OpenCV's findTransformECC maximizes the correlation, too, at twice the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from pinspect.core.errors import AlignmentError
from pinspect.core.scaling import shrunk
from pinspect.nsoartc.parts import FloatImage

MINIMUM_SCORE = 0.6
_COARSE = 4
_ROTATIONS = (0.0, -2.5, 2.5)  # degrees
_SURE = 0.85  # a correlation of the coarse search at which no other rotation is tried
_STEPS = 30  # at each size, at most
_STILL = 0.02  # px of the reduced image: after a smaller step the next one moves no pin by a visible distance
_INVERSE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
LARGEST_DEFORMATION = 0.12  # 4 degrees and 3 % together have 0.11
_ENLARGED = 1.5  # a map that enlarges by more needs a smoother interpolation
_NOTHING_IN_COMMON = "it shares no structure with the references; check that it shows this connector"


@dataclass(frozen=True)
class Alignment:
    """Where a capture lies in its unit space.

    Attributes:
        matrix: float32 (2, 3), maps capture px to unit-space px.
        score: Correlation of the aligned capture with the unit space's mean image, -1..1.
        shift: How far the capture's center lies off the place where it was expected, x and y, px of the unit space.
    """

    matrix: np.ndarray
    score: float
    shift: tuple[float, float]

    def between(self, first: np.ndarray, last: np.ndarray | None = None) -> Alignment:
        """Return the alignment of an image that another map leads to this alignment's capture.

        Args:
            first: float (3, 3), maps px of the image to px of this alignment's capture.
            last: float (3, 3), maps px of this alignment's unit space to px of another one; None if it is the same.
        """
        matrix = square(self.matrix) @ first
        return replace(self, matrix=(matrix if last is None else last @ matrix)[:2].astype(np.float32))


class OffPlaceError(AlignmentError):
    """A capture shows its connector too far off its place."""


class AlignmentTarget:
    """A mean image, prepared for aligning many captures to it.

    Args:
        mean: float32 (H, W), 0..1.
    """

    def __init__(self, mean: FloatImage) -> None:
        half = _halved(mean)
        self._half, self._quarter = _Level(half), _Level(_halved(half))

    def align(self, gray: FloatImage, maximum_shift: float) -> Alignment:
        """Find the affine map from a capture to the mean image.

        Args:
            gray: The capture, float32 (H, W), 0..1, of the size of the mean image (`place.py` brings it there).
            maximum_shift: How far the capture may lie off its place, px.

        Returns:
            The affine map, with its correlation and shift.

        Raises:
            OffPlaceError: The capture lies further off than `maximum_shift`.
            AlignmentError: The capture is flat, or has too little in common with the mean image.
        """
        if float(np.ptp(gray)) < 1e-3:
            raise AlignmentError("the image is flat: it shows nothing that could be aligned")
        half = _halved(gray)
        quarter = _halved(half)
        place = _coarse_place(quarter, self._quarter.mean, maximum_shift / _COARSE)
        place = self._half.refine(half, _at_twice_the_size(self._quarter.refine(quarter, place)))
        return _checked(_at_twice_the_size(place), self._half.correlation(half, place), gray.shape, maximum_shift)


def warp(image: np.ndarray, alignment: Alignment, size: tuple[int, int]) -> np.ndarray:
    """Map a capture's image to the unit space; outside the capture the image's border repeats.

    Args:
        image: float32 or uint8, (H, W) or (H, W, 3), in the capture's px.
        alignment: The map from the capture to the unit space.
        size: Width and height of the unit space, px.

    Returns:
        The image in the unit space's px, with the dtype and channels of `image`.
    """
    return resampled(image, alignment.matrix, size)


def resampled(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Map an image by an affine map as `warp` does.

    Args:
        image: float32 or uint8, (H, W) or (H, W, 3).
        matrix: float (2, 3), maps px of the image to px of the result.
        size: Width and height of the result, px.
    """
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    image, to_full_size = shrunk(image, scale)
    if to_full_size is not None:
        matrix = (square(matrix) @ to_full_size)[:2]
    flags = cv2.INTER_CUBIC if scale > _ENLARGED else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def square(matrix: np.ndarray) -> np.ndarray:
    """Return an affine map, (2, 3), as a float64 (3, 3) matrix."""
    return np.vstack([matrix.astype(np.float64), [0, 0, 1]])


class _Level:
    """The mean image at one size, with the derivatives of its pixels by the map, the gain and the offset."""

    def __init__(self, mean: FloatImage) -> None:
        self.mean, self._size = mean, (mean.shape[1], mean.shape[0])
        x_slope, y_slope = (
            cv2.Sobel(mean, cv2.CV_32F, *order, ksize=3, scale=1 / 8).astype(np.float64) for order in ((1, 0), (0, 1))
        )
        y, x = np.indices(mean.shape)
        derivatives = np.stack([
            *(slope * place for slope in (x_slope, y_slope) for place in (x, y, 1.0)),
            mean,
            np.ones(mean.shape),
        ]).reshape(8, -1)  # fmt: skip
        solve = np.linalg.pinv(derivatives @ derivatives.T, hermitian=True) @ derivatives
        self._solve = solve[:6].astype(np.float32)  # gain and offset are solved for, and not needed

    def refine(self, gray: FloatImage, place: FloatImage) -> FloatImage:
        """Refine a map from the px of the mean image to the px of a capture.

        Args:
            gray: The capture, float32 (H, W), of the size of the mean image.
            place: The first guess, (2, 3).

        Returns:
            The map, float32 (2, 3).

        Raises:
            AlignmentError: The steps lead away.
        """
        gray = _like(gray, self.mean)
        width, height = self._size
        corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1), (width, height, 1)])
        matrix = square(place)
        for _ in range(_STEPS):
            seen = cv2.warpAffine(gray, matrix[:2], self._size, flags=_INVERSE, borderValue=np.nan)
            difference = seen - self.mean
            difference[np.isnan(difference)] = 0  # pixels outside of the capture are NaN; they ask for no change
            change = np.eye(3)
            change[:2] += (self._solve @ difference.ravel()).reshape(2, 3)
            if np.abs(change[:2, :2] - np.eye(2)).max() > LARGEST_DEFORMATION:
                raise AlignmentError(_NOTHING_IN_COMMON)
            matrix = matrix @ np.linalg.inv(change)
            if np.abs(corners @ (change - np.eye(3)).T).max() < _STILL:
                break
        return matrix[:2].astype(np.float32)

    def correlation(self, gray: FloatImage, place: FloatImage) -> float:
        """Return the correlation, -1..1, of the mean image with a capture that is mapped by `place`."""
        seen = cv2.warpAffine(gray, place, self._size, flags=_INVERSE, borderMode=cv2.BORDER_REPLICATE)
        return float(cv2.matchTemplate(seen, self.mean, cv2.TM_CCOEFF_NORMED)[0, 0])


def _like(gray: FloatImage, mean: FloatImage) -> FloatImage:
    """Give a capture the mean and the spread of the mean image: steps are exact for equal gains only."""
    (middle, spread), (mean_middle, mean_spread) = (
        (float(value[0, 0]) for value in cv2.meanStdDev(image)) for image in (gray, mean)
    )
    gain = mean_spread / max(spread, 1e-6)
    return gray * np.float32(gain) + np.float32(mean_middle - gain * middle)


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
        straight = cv2.warpAffine(gray, turned, (width, height), flags=_INVERSE, borderMode=cv2.BORDER_REPLICATE)
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
    if not score >= MINIMUM_SCORE:
        raise AlignmentError(f"{_NOTHING_IN_COMMON} (correlation {score:.2f}, {MINIMUM_SCORE} at least)")
    deformation = deformation_of(matrix)
    if deformation > LARGEST_DEFORMATION:
        raise AlignmentError(
            f"it would have to be turned or stretched by {deformation:.0%}, {LARGEST_DEFORMATION:.0%} at most; "
            "check that it shows this connector, from the same camera"
        )
    return Alignment(matrix.astype(np.float32), score, shift_of(matrix, shape, maximum_shift))


def deformation_of(matrix: np.ndarray) -> float:
    """Return how much an affine map, (2, 3) or (3, 3), turns and stretches: 0 if it only shifts."""
    return float(np.abs(matrix[:2, :2] - np.eye(2)).max())


def shift_of(matrix: np.ndarray, shape: tuple[int, ...], maximum_shift: float) -> tuple[float, float]:
    """Return how far an affine map, (2, 3) or (3, 3), shifts the center of an image, x and y, px.

    Args:
        matrix: The map.
        shape: Height and width of the image, px.
        maximum_shift: The largest shift to allow, px.

    Raises:
        OffPlaceError: The shift is larger.
    """
    center = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    x, y = matrix[:2, :2] @ center + matrix[:2, 2] - center
    distance = float(np.hypot(x, y))
    if distance > maximum_shift:
        raise OffPlaceError(
            f"the connector lies {distance:.0f} px off its place, {maximum_shift:g} px at most (dst.maximum_shift); "
            "put it back into its holder"
        )
    return float(x), float(y)
