"""Estimate what all pins of a capture share: light, place and focus change smoothly over the field."""

from __future__ import annotations

import cv2
import numpy as np

MAD_TO_SIGMA = 1.4826  # of a normal distribution: its standard deviation over its median absolute deviation
_ROUNDS = 8
_BRIGHTNESS_FLOOR = 0.005  # log brightness: assume at least half a percent of spread between a capture's pins
_MAXIMUM_LOG = 2.5
_STEP = 8  # px


def light_field(brightness: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fit a smooth light field to the relative brightness of the pins' tops.

    The logarithm of the field is a polynomial of second order, fitted robustly; outside the pins it is constant.

    Args:
        brightness: float (pins,), brightness of each pin's top divided by that of the unit space.
        places: float (pins, 2), x and y, px.
        size: Width and height of the field, px.

    Returns:
        float32 (height, width), the factor by which to divide the capture.
    """
    logarithm = np.log(np.clip(brightness, 0.02, 50))[:, None]
    coefficients = _fit(logarithm, _polynomial(places, size, order=2), np.array([_BRIGHTNESS_FLOOR]))[0]
    terms = np.zeros(6, np.float32)
    terms[: len(coefficients)] = coefficients
    # The field is smooth: every eighth pixel is enough. Beyond the outer pins, where a polynomial would run away, the
    # field goes on as it is there.
    u, v = (
        np.clip(_centers(side), low, high) * (2 / side) - 1
        for side, low, high in zip(size, places.min(axis=0), places.max(axis=0), strict=True)
    )
    u, v = u[None].astype(np.float32), v[:, None].astype(np.float32)
    field = terms[4] * v * u
    field += terms[0] + terms[1] * u + terms[3] * u * u
    field += terms[2] * v + terms[5] * v * v
    field = np.exp(np.clip(field, -_MAXIMUM_LOG, _MAXIMUM_LOG))
    return np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_LINEAR), np.float32)


def without_light(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Divide an image by a light field.

    Args:
        image: uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        light: The light field, float32 (H, W), a factor.

    Returns:
        float32, of the shape of `image`; about 0..1, above 1 where the capture is brighter than the unit space.
    """
    if image.ndim == 2:
        return image / light
    gain = np.float32(1 / 255) / light
    return np.asarray(cv2.multiply(image, cv2.merge([gain] * 3), dtype=cv2.CV_32F), np.float32)


def without_trend(values: np.ndarray, places: np.ndarray, size: tuple[int, int], floors: np.ndarray) -> np.ndarray:
    """Subtract from each column its linear trend over the pin field, which belongs to the capture, not to a pin.

    Args:
        values: float (pins, columns).
        places: float (pins, 2), x and y, px.
        size: Width and height of the field, px.
        floors: float (columns,), the smallest spread to assume between pins, in the units of the columns.

    Returns:
        float32 (pins, columns).
    """
    basis = _polynomial(places, size, order=1)
    return (values - basis @ _fit(values, basis, floors).T).astype(np.float32)


def _centers(side: int) -> np.ndarray:
    """Return the centers, px, of the intervals of about `_STEP` px that a side is cut into."""
    intervals = -(-side // _STEP)
    return (np.arange(intervals) + 0.5) * (side / intervals) - 0.5


def _polynomial(places: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    """Return terms (pins, 6, 3 or 1): second order needs 18 pins, first order 6 pins."""
    u, v = (np.asarray(places, np.float64) / (np.array(size) / 2) - 1).T
    terms = {0: 1, 1: 3, 2: 6}[min(order, 2 if len(places) >= 18 else 1 if len(places) >= 6 else 0)]
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)[:, :terms]


def _medians(values: np.ndarray) -> np.ndarray:
    """Return the medians of `values` (columns, pins, 1) over the pins; for few values a sort beats np.median."""
    ordered, middle = np.sort(values, axis=1), values.shape[1] // 2
    return ordered[:, middle - 1 + values.shape[1] % 2 : middle + 1].mean(axis=1, keepdims=True)


def _fit(values: np.ndarray, basis: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Return coefficients (columns, terms) of `values` (pins, columns); Cauchy weights ignore defective pins."""
    columns = np.asarray(values, np.float64).T[..., None]
    weight = np.ones_like(columns)
    coefficients: np.ndarray = np.zeros((len(columns), basis.shape[1], 1))
    for _ in range(_ROUNDS):
        weighted = basis * weight
        normal = basis.T @ weighted + 1e-9 * np.eye(basis.shape[1])
        coefficients = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ columns)
        residual = columns - basis @ coefficients
        spread = MAD_TO_SIGMA * _medians(np.abs(residual)) + floors[:, None, None]
        weight = 1 / (1 + (residual / (2 * spread)) ** 2)
    return coefficients[..., 0]
