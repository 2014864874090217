"""Pixels as NSOARTC takes them: float32 in 0..1, a gray reference and captures of three channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pinspect.core.errors import ImageError
from pinspect.core.images import to_gray
from pinspect.nsoartc.parts import FloatImage

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_LARGEST_VALUE = 16.0  # a gain may lift a float capture above 1; 0..255 as float is a mistake


def as_captures(capture: Image.Image | npt.ArrayLike) -> tuple[FloatImage, bool]:
    """Return captures as one batch of float32 RGB images.

    Args:
        capture: A Pillow image, or an array (rows, columns) gray, (rows, columns, channels) or (captures, rows,
            columns, channels) with 1 (gray), 3 (RGB) or 4 (RGB and alpha) channels. uint8 and uint16 are scaled by
            their full range, bool is 0 and 1, floating point is taken as 0..1. Transparency is laid over black.

    Returns:
        float32 (captures, rows, columns, 3), or (captures, rows, columns, 1) for gray captures, and whether the
        argument was a batch.

    Raises:
        ImageError: The array has another shape, another kind of number, or values that are no photograph.
    """
    pixels = _in_unit_range(capture, "the capture")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    is_batch = pixels.ndim == 4
    if pixels.ndim not in (3, 4) or pixels.shape[-1] not in (1, 3, 4):
        raise ImageError(
            f"the capture has the shape {_text(pixels.shape)}; expected (rows, columns), (rows, columns, 3) or "
            "(captures, rows, columns, 3)"
        )
    if pixels.shape[-1] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:]
    return np.ascontiguousarray(pixels if is_batch else pixels[None]), is_batch


def as_reference(reference: Image.Image | npt.ArrayLike) -> FloatImage:
    """Return a reference as a float32 gray image.

    Args:
        reference: A Pillow image or an array (rows, columns) gray, or (rows, columns, channels) with 1, 3 or 4
            channels. Numbers are scaled as by `as_captures`; color becomes luminance (ITU-R BT.601).

    Returns:
        float32 (rows, columns).

    Raises:
        ImageError: The array has another shape, another kind of number, or values that are no photograph.
    """
    pixels = _in_unit_range(reference, "the reference")
    if pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4):
        if pixels.shape[-1] == 4:
            pixels = pixels[..., :3] * pixels[..., 3:]
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels @ LUMINANCE
    if pixels.ndim != 2:
        raise ImageError(
            f"the reference has the shape {_text(pixels.shape)}; expected (rows, columns), the gray mean of passed "
            "captures"
        )
    return np.ascontiguousarray(pixels)


def gray_of(image: npt.NDArray[Any]) -> FloatImage:
    """Return the luminance of a capture, float32 (H, W), 0..1.

    Args:
        image: uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
    """
    return to_gray(image) if image.ndim == 3 else image


def _in_unit_range(image: Image.Image | npt.ArrayLike, name: str) -> FloatImage:
    if isinstance(image, Image.Image):
        image = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode in "PCMYK" else image
    pixels: npt.NDArray[Any] = np.asarray(image)
    if pixels.size == 0:
        raise ImageError(f"{name} is empty: its shape is {_text(pixels.shape)}")
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return np.multiply(pixels, np.float32(1 / np.iinfo(pixels.dtype).max), dtype=np.float32)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.float32)
    if pixels.dtype.kind != "f":
        raise ImageError(f"{name} has pixels of type {pixels.dtype}; expected uint8, uint16, or floats in 0..1")
    pixels = pixels.astype(np.float32, copy=False)
    smallest, largest = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ImageError(f"{name} holds NaN or infinite values")
    if smallest < -_LARGEST_VALUE or largest > _LARGEST_VALUE:
        raise ImageError(
            f"{name} has floating-point values from {smallest:.3g} to {largest:.3g}; expected 0..1: divide by its white"
        )
    return pixels


def _text(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"
