"""NSOARTC, stage 2: a DST picture reduced to a small gray picture, for very small models.

SOART3 compares a window y of a DST channel with the same window x of the reference, the gray mean of passed captures'
DST pictures:

    beta  = (x . y + 1e-4) / (x . x + 1e-4)            how much of the reference the window holds
    r     = y - beta x                                 the remainder
    eta   = ln(sum |r| + 1)
    gamma = eta - ln((sum |r|^4)^(1/4) + 1)            local and of high order: large where the whole window differs

The reduced picture shows gamma only: max(0, root mean square over the channels - cut-off), scaled and cropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pinspect.core.errors import ImageError, ParamsError
from pinspect.nsoartc.parts import FloatImage

_EPSILON = 1e-4


@dataclass(frozen=True)
class ReductionSettings:
    """How stage 2 reduces a DST picture.

    Attributes:
        window: Rows and columns of a window, px.
        step: Distance of neighboring windows, rows and columns, px.
        cut_off: Root mean square of gamma over the channels that becomes black.
        scale: How far above `cut_off` white lies.
        crop: First row, first column, rows and columns of the reduced picture that are kept: the pin field. None keeps
            all.

    Raises:
        ParamsError: A number is out of range.
    """

    window: tuple[int, int] = (5, 9)
    step: tuple[int, int] = (6, 10)
    cut_off: float = 1.0
    scale: float = 1.2
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if min(*self.window, *self.step) < 1:
            raise ParamsError(f"stage 2: window {self.window} and step {self.step} must be at least 1 px")
        if self.scale <= 0:
            raise ParamsError(f"stage 2: the scale is {self.scale:g}; use a number above 0")
        if self.crop is not None and (min(self.crop[:2]) < 0 or min(self.crop[2:]) < 1):
            raise ParamsError(f"stage 2: no part of a picture is cropped by {self.crop}")


DEFAULT_REDUCTION = ReductionSettings()


def soart3(
    y: npt.ArrayLike, x: npt.ArrayLike, window: tuple[int, int], step: tuple[int, int]
) -> tuple[FloatImage, FloatImage, FloatImage]:
    """Compute beta, eta and gamma of every window.

    Args:
        y: (rows, columns, channels), in 0..1.
        x: (rows, columns), the reference, in 0..1.
        window: Rows and columns of a window, px.
        step: Distance of neighboring windows, rows and columns, px.

    Returns:
        Three arrays, float32 (windows down, windows across, channels).

    Raises:
        ImageError: The sizes differ, or the images are smaller than the window.
    """
    measured, reference = np.asarray(y, np.float64), np.asarray(x, np.float64)
    if measured.ndim != 3 or reference.shape != measured.shape[:2]:
        raise ImageError(
            f"stage 2 expects a DST picture (rows, columns, channels) and a gray reference of its size, found "
            f"{measured.shape} and {reference.shape}"
        )
    if reference.shape[0] < window[0] or reference.shape[1] < window[1]:
        raise ImageError(
            f"a DST picture of {reference.shape[1]} x {reference.shape[0]} px is smaller than the window of "
            f"{window[1]} x {window[0]} px"
        )
    every = np.s_[:: step[0], :: step[1]]
    ys = np.lib.stride_tricks.sliding_window_view(measured, window, axis=(0, 1))[every]
    xs = np.lib.stride_tricks.sliding_window_view(reference, window)[every][:, :, None]
    beta = ((xs * ys).sum(axis=(-1, -2)) + _EPSILON) / ((xs * xs).sum(axis=(-1, -2)) + _EPSILON)
    remainder = np.abs(ys - beta[..., None, None] * xs)
    eta = np.log(remainder.sum(axis=(-1, -2)) + 1)
    gamma = eta - np.log((remainder**4).sum(axis=(-1, -2)) ** 0.25 + 1)
    return beta.astype(np.float32), eta.astype(np.float32), gamma.astype(np.float32)


def reduce_dst(
    picture: npt.NDArray[np.uint8], reference: npt.ArrayLike, settings: ReductionSettings = DEFAULT_REDUCTION
) -> npt.NDArray[np.uint8]:
    """Reduce a DST picture to a small gray picture.

    Args:
        picture: uint8 (rows, columns, 3), as `dst_picture` returns it.
        reference: (rows, columns), the gray mean of passed captures' DST pictures in 0..255.
        settings: Windows, cut-off, scale and crop.

    Returns:
        uint8 (windows down, windows across), or the cropped part of it.

    Raises:
        ImageError: The sizes differ, the picture is smaller than the window, or the crop lies outside the result.
    """
    gray = np.asarray(reference, np.float64) / 255
    gamma = soart3(np.asarray(picture, np.float64) / 255, gray, settings.window, settings.step)[2]
    value = np.maximum(0, np.sqrt(np.mean(np.square(gamma, dtype=np.float64), axis=-1)) - settings.cut_off)
    if settings.crop is not None:
        top, first, rows, columns = settings.crop
        if top + rows > value.shape[0] or first + columns > value.shape[1]:
            raise ImageError(f"stage 2: the crop {settings.crop} leaves the reduced picture of {value.shape}")
        value = value[top : top + rows, first : first + columns]
    return np.clip(np.rint(255 * value / settings.scale), 0, 255).astype(np.uint8)
