"""NSOARTC with one factor per window: rotation, brightness and distance of a capture against its unit space.

RT (Recognition-Taguchi) compares a measured vector y with a reference vector x; SOART adds brightness to rotation and
distance. The convolved form takes both vectors from a window that slides over two images of equal size::

    beta  = (x . y) / (x . x)             rotation, also called sensitivity
    delta = sum(y) / sum(x) - beta        brightness, with beta taken out
    DST   = mean |y - beta x|             the distance image

A window in which x . x < 1e-5 is dark: it has no pattern to rotate and no brightness to compare, so its beta is 1 and
its delta is 0. Its DST still shows light that the reference does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

DARK = 1e-5
_TINY = 1e-9
_BAND = 1 << 18  # windows at a time, which bounds the memory for very large images


def nsoartc(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute beta, delta and DST of every window that lies within the image.

    Beside its results the function holds at most ten float32 images, whatever the size of the batch.

    Args:
        y: Gray captures, float32 (H, W) or a batch (N, H, W), 0..1.
        x: The unit space's mean image, float32 (H, W), 0..1.
        window: Side of the window, px.
        stride: Distance of neighboring windows, px.

    Returns:
        beta, delta and DST, each float32 ((H - window) // stride + 1, (W - window) // stride + 1), with the batch axis
        in front where `y` has one.

    Raises:
        ValueError: The sizes differ, or the image is smaller than the window.
    """
    y, x = np.asarray(y, np.float32), np.ascontiguousarray(x, np.float32)
    _check(y, x, window, stride)
    reference = _reference(x, window, stride)
    images = y[None] if y.ndim == 2 else y
    rows, columns = ((side - window) // stride + 1 for side in x.shape)
    beta, delta, distance = (np.empty((len(images), rows, columns), np.float32) for _ in range(3))
    for number, image in enumerate(images):
        # No name for the results: they would stay in memory while the next image is compared.
        for target, values in zip(
            (beta, delta, distance), _compare(np.ascontiguousarray(image), x, reference), strict=True
        ):
            target[number] = values[:rows, :columns]
    return (beta, delta, distance) if y.ndim == 3 else (beta[0], delta[0], distance[0])


def distance_image(y: np.ndarray, x: np.ndarray, window: int, stride: int = 1) -> np.ndarray:
    """Compute the DST with one gain for the whole image: mean |y - x| in every window.

    Each window's beta would hide a missing pin: in an empty cell beta falls to 0, and the distance falls with it.

    Args:
        y: One gray capture, float32 (H, W), 0..1, with its light evened to `x`.
        x: The unit space's mean image, float32 (H, W), 0..1.
        window: Side of the window, px.
        stride: Distance of neighboring windows, px.

    Returns:
        float32 ((H - window) // stride + 1, (W - window) // stride + 1).

    Raises:
        ValueError: The sizes differ, or the image is smaller than the window.
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
    """Arrays that depend on x alone, for windows of `window` px every `stride` px.

    Windows are numbered by their first pixel. Windows that reach over the edge of the image are computed too and cut
    off at the end, so that all arrays have the width of a phase.

    Attributes:
        window: Side of the window, px.
        stride: Distance of neighboring windows, px.
        squares: x . x of every window, 1 in dark windows.
        sums: sum(x) of every window, 1 in dark windows.
        dark: Indices of the dark windows in the flat arrays.
        phases: `_phases` of x, with 0 replaced by 1e-9.
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


def _compare(y: np.ndarray, x: np.ndarray, reference: _Reference) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    beta = _window_sums(x * y, reference.window, reference.stride)
    beta /= reference.squares
    beta.ravel()[reference.dark] = 1
    delta = _window_sums(y, reference.window, reference.stride)
    delta /= reference.sums
    delta -= beta
    delta.ravel()[reference.dark] = 0
    return beta, delta, _distance(_phases(y, reference.stride) / reference.phases, beta, reference)


def _window_sums(image: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Return sums over the windows by their first pixel; OpenCV sums float32 images in float64."""
    sums = cv2.boxFilter(image, -1, (window, window), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.ascontiguousarray(sums[::stride, ::stride])


def _distance(ratio: np.ndarray, beta: np.ndarray, reference: _Reference) -> np.ndarray:
    """Return mean |y - beta x| = mean x |ratio - beta| of every window, with ratio = y / x in phases.

    No box filter computes it, because beta differs from window to window inside the absolute value. All windows take
    their first pixel together, then their second, and so on. In phases these pixels are one slice at each step, and
    each step needs two passes over that slice.
    """
    window, stride, width = reference.window, reference.stride, beta.shape[1]
    # Each array has a first axis of length 1: OpenCV takes a very short array of one axis for a scalar.
    ratio, x = (phases.reshape(stride, stride, 1, -1) for phases in (ratio, reference.phases))
    gain, total = beta.reshape(1, -1), np.zeros((1, beta.size), np.float32)
    part = np.empty((1, min(beta.size, _BAND)), np.float32)
    # Windows of the last rows and columns that reach over the end of the arrays are cut off by the caller.
    length = beta.size - (window - 1) // stride * (width + 1)
    for start in range(0, length, _BAND):
        stop = min(length, start + _BAND)
        difference, gains, band = part[:, : stop - start], gain[:, start:stop], total[:, start:stop]
        for i in range(window):
            for j in range(window):
                step = i // stride * width + j // stride
                place = slice(start + step, stop + step)
                cv2.absdiff(ratio[i % stride, j % stride, :, place], gains, dst=difference)
                cv2.accumulateProduct(difference, x[i % stride, j % stride, :, place], band)
    total *= np.float32(1 / window**2)
    return total.reshape(beta.shape)


def _phases(image: np.ndarray, stride: int) -> np.ndarray:
    """Split an image by pixel place modulo `stride`: (stride, stride, rows, columns).

    A step of one window becomes a step of one element.
    """
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
    """Subtract the distance images of two views of one connector: left minus right.

    A difference that both views show alike, such as a stained top, cancels. A pin of another height does not cancel,
    since its top moves in another direction in each view.

    Args:
        left: Distance image of the left view, float32 (H, W), in px of the left unit space.
        right: Distance image of the right view, float32 (H, W), in px of the right unit space.
        left_box: x0, y0, x1, y1, px, a part of the connector in the left view, such as the unit space's cell box.
        right_box: x0, y0, x1, y1, px, the same part of the connector in the right view.

    Returns:
        float32 (H, W) in px of the left view, positive where only the left view shows a distance.
    """
    (lx0, ly0, lx1, ly1), (rx0, ry0, rx1, ry1) = left_box, right_box
    scale_x, scale_y = (lx1 - lx0) / (rx1 - rx0), (ly1 - ly0) / (ry1 - ry0)
    over = np.array([[scale_x, 0, lx0 - scale_x * rx0], [0, scale_y, ly0 - scale_y * ry0]])
    right_over_left = cv2.warpAffine(
        right, over, left.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return left - right_over_left
