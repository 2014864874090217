"""NSOARTC: rotation, brightness and distance of a capture against its unit space, window by window.

RT (Recognition-Taguchi) compares a measured vector y with a reference vector x; SOART adds brightness to rotation and
distance. The convolved form takes both from a window that slides over two images of equal size::

    beta  = (x . y) / (x . x)             rotation, also called sensitivity
    delta = sum(y) / sum(x) - beta        brightness, with beta taken out
    DST   = mean |y - beta x|             the distance image

A window in which x . x < 1e-5 is dark: there is no pattern to rotate and no brightness to compare, so beta is 1 and
delta is 0 there, while DST still sees light that should not be there.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

DARK = 1e-5
_TINY = 1e-9
_BAND = 1 << 18  # windows at a time, which bounds what is held for very large images


def nsoartc(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, delta and DST of `y` against `x` for every window that lies within the image.

    y: float32 (H, W) or a batch (N, H, W), gray in 0..1. x: float32 (H, W), the mean of the unit space. window: side in
    px. stride: px between windows. Each result is float32 ((H - window) // stride + 1, (W - window) // stride + 1),
    with the batch axis in front where `y` has one. Beside its results it holds ten images' worth of float32 at most,
    whatever the size of the batch.

    Raises ValueError when the sizes differ or the image is smaller than the window.
    """
    y, x = np.asarray(y, np.float32), np.ascontiguousarray(x, np.float32)
    _check(y, x, window, stride)
    reference = _reference(x, window, stride)
    images = y[None] if y.ndim == 2 else y
    rows, columns = ((side - window) // stride + 1 for side in x.shape)
    results = tuple(np.empty((len(images), rows, columns), np.float32) for _ in range(3))
    for number, image in enumerate(images):
        for result, found in zip(results, _one(np.ascontiguousarray(image), x, reference), strict=True):
            result[number] = found[:rows, :columns]
    return results if y.ndim == 3 else tuple(result[0] for result in results)


def distance_image(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> np.ndarray:
    """DST with one gain for the whole image in place of each window's beta: mean |y - x| in every window.

    `y` must have been evened to the light of `x`. Window beta hides a missing pin: in an empty cell beta falls to 0 and
    the distance with it. Arguments, result and errors as in `nsoartc`, for one image.
    """
    y, x = np.asarray(y, np.float32), np.asarray(x, np.float32)
    _check(y, x, window, stride)
    rows, columns = ((side - window) // stride + 1 for side in x.shape)
    return _window_sums(cv2.absdiff(y, x), window, stride)[:rows, :columns] * np.float32(1 / window**2)


def _check(y: np.ndarray, x: np.ndarray, window: int, stride: int) -> None:
    if x.ndim != 2 or y.ndim not in (2, 3) or y.shape[-2:] != x.shape:
        raise ValueError(f"expected y (H, W) or (N, H, W) and x (H, W), found {y.shape} and {x.shape}")
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride must be at least 1 px, found {window} and {stride}")
    if min(x.shape) < window:
        raise ValueError(f"an image of {x.shape[1]} x {x.shape[0]} px holds no window of {window} px")


@dataclass(frozen=True)
class _Reference:
    """What depends on x alone, for windows of `window` px every `stride` px.

    Windows are numbered by their first pixel, also those that reach over the edge of the image: they are computed and
    cut off at the end, so that all arrays have the width of a phase. squares, sums: of every window, 1 in dark ones.
    dark: their places in a flat array. phases: as `_phases` gives them, nowhere exactly 0.
    """

    window: int
    stride: int
    squares: np.ndarray
    sums: np.ndarray
    dark: np.ndarray
    phases: np.ndarray


def _reference(x: np.ndarray, window: int, stride: int) -> _Reference:
    squares, sums = _window_sums(x * x, window, stride), _window_sums(x, window, stride)
    dark = np.flatnonzero(squares < DARK)
    squares.ravel()[dark] = sums.ravel()[dark] = 1
    # |y - beta x| is taken as x |y/x - beta|; with 1e-9 for 0 it stays |y| to the last digit that float32 has.
    return _Reference(window, stride, squares, sums, dark, _phases(np.maximum(x, np.float32(_TINY)), stride))


def _one(y: np.ndarray, x: np.ndarray, reference: _Reference) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    beta = _window_sums(x * y, reference.window, reference.stride)
    beta /= reference.squares
    beta.ravel()[reference.dark] = 1
    delta = _window_sums(y, reference.window, reference.stride)
    delta /= reference.sums
    delta -= beta
    delta.ravel()[reference.dark] = 0
    return beta, delta, _distance(_phases(y, reference.stride) / reference.phases, beta, reference)


def _window_sums(image: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Sums over the windows by their first pixel; OpenCV keeps the running sums of float32 images in float64."""
    sums = cv2.boxFilter(image, -1, (window, window), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.ascontiguousarray(sums[::stride, ::stride])


def _distance(ratio: np.ndarray, beta: np.ndarray, reference: _Reference) -> np.ndarray:
    """mean |y - beta x| = mean x |ratio - beta| of every window, with ratio = y / x in phases.

    The absolute value stands inside and beta belongs to the window, so that no box filter gives it. All windows take
    their first pixel together, then their second, and so on; laid out in one row, the pixels that they take are one
    slice each time, and two passes over it are all the arithmetic there is.
    """
    window, stride, width = reference.window, reference.stride, beta.shape[1]
    # Each has a first axis of length 1: OpenCV takes a very short array of one axis for a scalar.
    ratio, x = (phases.reshape(stride, stride, 1, -1) for phases in (ratio, reference.phases))
    gain, total = beta.reshape(1, -1), np.zeros((1, beta.size), np.float32)
    part = np.empty((1, min(beta.size, _BAND)), np.float32)
    # The windows of the last rows and columns that reach over the end of the arrays are the ones that are cut off.
    length = beta.size - (window - 1) // stride * (width + 1)
    for start in range(0, length, _BAND):
        stop = min(length, start + _BAND)
        one, gains, band = part[:, : stop - start], gain[:, start:stop], total[:, start:stop]
        for i in range(window):
            for j in range(window):
                step = i // stride * width + j // stride
                place = slice(start + step, stop + step)
                cv2.absdiff(ratio[i % stride, j % stride, :, place], gains, dst=one)
                cv2.accumulateProduct(one, x[i % stride, j % stride, :, place], band)
    total *= np.float32(1 / window**2)
    return total.reshape(beta.shape)


def _phases(image: np.ndarray, stride: int) -> np.ndarray:
    """The image split by pixel place modulo `stride`, (stride, stride, rows, columns): a step of one window becomes a
    step of one element."""
    if stride == 1:
        return image[None, None]
    height, width = (-(-side // stride) * stride for side in image.shape)
    padded = np.ones((height, width), np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    split = padded.reshape(height // stride, stride, width // stride, stride)
    return np.ascontiguousarray(split.transpose(1, 3, 0, 2))


def double_eye(
    left: np.ndarray,
    right: np.ndarray,
    left_box: tuple[float, float, float, float],
    right_box: tuple[float, float, float, float],
) -> np.ndarray:
    """The difference of the distance images of two views of one connector, distance_left - distance_right.

    left, right: float32 (H, W), each in the px of its own view's unit space. left_box, right_box: x0, y0, x1, y1 (px),
    the same part of the connector in the two, such as their unit spaces' cell boxes: the right view is laid over the
    left one by them. Returns float32 (H, W) in px of the left view, positive where only the left eye sees a distance.
    What both see alike, such as stained tops, cancels; a pin of another height does not, since each eye sees its top
    move its own way.
    """
    (lx0, ly0, lx1, ly1), (rx0, ry0, rx1, ry1) = left_box, right_box
    scale_x, scale_y = (lx1 - lx0) / (rx1 - rx0), (ly1 - ly0) / (ry1 - ry0)
    over = np.array([[scale_x, 0, lx0 - scale_x * rx0], [0, scale_y, ly0 - scale_y * ry0]])
    laid = cv2.warpAffine(right, over, left.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return left - laid
