"""Bring images to other sizes; pixel centers lie at whole numbers."""

from __future__ import annotations

import cv2
import numpy as np

_SMALLEST_SHRINKAGE = 1.5  # bilinear interpolation shrinks by less without aliasing
_SAME_ASPECT = 0.02


def is_same_picture(size: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two sizes, each of two numbers in one order, have one aspect ratio (within 2 %)."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= _SAME_ASPECT


def scaling(size: tuple[int, ...], other: tuple[int, ...]) -> np.ndarray:
    """Return the map from an image of a size (width, height) to the same image of another size, float64 (3, 3)."""
    x, y = other[0] / size[0], other[1] / size[1]
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def resized(gray: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return an image, float32 (H, W), at another size (width, height)."""
    if gray.shape[::-1] == tuple(size):
        return gray
    interpolation = cv2.INTER_AREA if size[0] < gray.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(gray, size, interpolation=interpolation), np.float32)


def shrunk(image: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Shrink an image that is about to be mapped to a much smaller one, so that no detail aliases.

    Args:
        image: uint8 or float32, (H, W) or (H, W, 3).
        scale: The scale of the map; an image that it shrinks by less than 1.5 times stays as it is.

    Returns:
        The image, and the map from its px to px of the original, float64 (3, 3); None if the image is the original.
    """
    if scale * _SMALLEST_SHRINKAGE > 1:
        return image, None
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), scaling(size, image.shape[1::-1])
