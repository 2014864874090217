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

import cv2
import numpy as np

DARK = 1e-5
_BAND_ELEMENTS = 8192  # windows at a time: the four working arrays of a band stay in a core's own cache


def nsoartc(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """beta, delta and DST of `y` against `x` for every window that lies within the image.

    y: float32 (H, W) or a batch (N, H, W), gray in 0..1. x: float32 (H, W), the mean of the unit space. window: side in
    px. stride: px between windows. Each result is float32 ((H - window) // stride + 1, (W - window) // stride + 1),
    with the batch axis in front where `y` has one. Beside its results it holds five images' worth of float32 at most,
    whatever the size of the batch.

    Raises ValueError when the sizes differ or the image is smaller than the window.
    """
    y, x = np.asarray(y, np.float32), np.ascontiguousarray(x, np.float32)
    _check(y, x, window, stride)
    if y.ndim == 2:
        return _one(np.ascontiguousarray(y), x, window, stride)
    results = tuple(np.empty((len(y), *_places(x.shape, window, stride)), np.float32) for _ in range(3))
    for number, image in enumerate(y):
        for result, found in zip(results, _one(np.ascontiguousarray(image), x, window, stride), strict=True):
            result[number] = found
    return results


def distance_image(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> np.ndarray:
    """DST with one gain for the whole image in place of each window's beta: mean |y - x| in every window.

    `y` must have been evened to the light of `x`. Window beta hides a missing pin: in an empty cell beta falls to 0 and
    the distance with it. Arguments, result and errors as in `nsoartc`, for one image.
    """
    y, x = np.asarray(y, np.float32), np.asarray(x, np.float32)
    _check(y, x, window, stride)
    return _window_sums(cv2.absdiff(y, x), window, stride) * np.float32(1 / window**2)


def _check(y: np.ndarray, x: np.ndarray, window: int, stride: int) -> None:
    if x.ndim != 2 or y.ndim not in (2, 3) or y.shape[-2:] != x.shape:
        raise ValueError(f"expected y (H, W) or (N, H, W) and x (H, W), found {y.shape} and {x.shape}")
    if window < 1 or stride < 1:
        raise ValueError(f"window and stride must be at least 1 px, found {window} and {stride}")
    if min(x.shape) < window:
        raise ValueError(f"an image of {x.shape[1]} x {x.shape[0]} px holds no window of {window} px")


def _places(shape: tuple[int, int], window: int, stride: int) -> tuple[int, int]:
    return (shape[0] - window) // stride + 1, (shape[1] - window) // stride + 1


def _one(y: np.ndarray, x: np.ndarray, window: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    xy = _window_sums(x * y, window, stride)
    xx = _window_sums(x * x, window, stride)
    sum_x, sum_y = _window_sums(x, window, stride), _window_sums(y, window, stride)
    dark = xx < DARK
    beta = np.divide(xy, xx, out=np.ones_like(xy), where=~dark)
    dark |= sum_x == 0
    delta = np.divide(sum_y, sum_x, out=np.zeros_like(sum_y), where=~dark)
    np.subtract(delta, beta, out=delta, where=~dark)
    return beta, delta, _distance(y, x, beta, window, stride)


def _window_sums(image: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Sums over the windows within the image; OpenCV keeps the running sums of float32 images in float64."""
    sums = cv2.boxFilter(image, -1, (window, window), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    height, width = image.shape
    return np.ascontiguousarray(sums[: height - window + 1 : stride, : width - window + 1 : stride])


def _distance(y: np.ndarray, x: np.ndarray, beta: np.ndarray, window: int, stride: int) -> np.ndarray:
    """mean |y - beta x|. The absolute value stands inside and beta belongs to the window, so that no box filter gives
    it: all windows take their first pixel together, then their second, and so on, a band of windows at a time."""
    rows, columns = beta.shape
    phases_y, phases_x = _phases(y, stride), _phases(x, stride)
    distance = np.zeros_like(beta)
    band = max(1, _BAND_ELEMENTS // columns)
    product = np.empty((band, columns), np.float32)
    for top in range(0, rows, band):
        bottom = min(rows, top + band)
        total, gain, part = distance[top:bottom], beta[top:bottom], product[: bottom - top]
        for i in range(window):
            for j in range(window):
                phase = (i % stride, j % stride)
                place = (slice(top + i // stride, bottom + i // stride), slice(j // stride, j // stride + columns))
                np.multiply(gain, phases_x[phase][place], out=part)
                cv2.absdiff(phases_y[phase][place], part, dst=part)
                cv2.add(total, part, dst=total)
    distance *= np.float32(1 / window**2)
    return distance


def _phases(image: np.ndarray, stride: int) -> dict[tuple[int, int], np.ndarray]:
    """The image split by pixel place modulo `stride`, so that a step of one window is a step of one element."""
    return {
        (i, j): np.ascontiguousarray(image[i::stride, j::stride]) if stride > 1 else image
        for i in range(stride)
        for j in range(stride)
    }
