"""What all pins of a capture share: light, place and focus change smoothly over the field and are no defect."""

from __future__ import annotations

import numpy as np

_ROUNDS = 8
_BRIGHTNESS_FLOOR = 0.005  # log brightness: pins of one capture never agree better than to half a percent
_MAXIMUM_LOG = 2.5


def light_field(brightness: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A smooth light field from the relative brightness of the pins' tops.

    brightness: float (pins,), each pin's top divided by the unit space's. places: float (pins, 2), x and y in px. size:
    width and height of the field. Returns float32 (height, width), by which to divide the capture. The logarithm of
    the field is a robust polynomial of second order.
    """
    logarithm = np.log(np.clip(brightness, 0.02, 50))[:, None]
    coefficients = _fit(logarithm, _polynomial(places, size, order=2), np.array([_BRIGHTNESS_FLOOR]))[0]
    a = np.zeros(6, np.float32)
    a[: len(coefficients)] = coefficients
    width, height = size
    u = (np.arange(width, dtype=np.float32) * np.float32(2 / width) - 1)[None]
    v = (np.arange(height, dtype=np.float32) * np.float32(2 / height) - 1)[:, None]
    field = a[4] * v * u
    field += a[0] + a[1] * u + a[3] * u * u
    field += a[2] * v + a[5] * v * v
    return np.exp(np.clip(field, -_MAXIMUM_LOG, _MAXIMUM_LOG, out=field), out=field)


def without_trend(values: np.ndarray, places: np.ndarray, size: tuple[int, int], floors: np.ndarray) -> np.ndarray:
    """Take out of each column what changes linearly over the pin field: that belongs to the capture, not to a pin.

    values: float (pins, columns). places, size: as in `light_field`. floors: float (columns,), how well pins agree at
    best, in the columns' own units. Returns float32 (pins, columns).
    """
    basis = _polynomial(places, size, order=1)
    return (values - basis @ _fit(values, basis, floors).T).astype(np.float32)


def _polynomial(places: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    """Terms (pins, 6, 3 or 1); few pins bear few terms: second order from 18 pins on, first order from 6 on."""
    u, v = (np.asarray(places, np.float64) / (np.array(size) / 2) - 1).T
    terms = {0: 1, 1: 3, 2: 6}[min(order, 2 if len(places) >= 18 else 1 if len(places) >= 6 else 0)]
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)[:, :terms]


def _fit(values: np.ndarray, basis: np.ndarray, floors: np.ndarray) -> np.ndarray:
    """Coefficients (columns, terms) of `values` (pins, columns), with Cauchy weights: a defect does not count."""
    columns = np.asarray(values, np.float64).T[..., None]
    weight = np.ones_like(columns)
    for _ in range(_ROUNDS):
        weighted = basis * weight
        normal = basis.T @ weighted + 1e-9 * np.eye(basis.shape[1])
        coefficients = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ columns)
        residual = columns - basis @ coefficients
        spread = 1.4826 * np.median(np.abs(residual), axis=1, keepdims=True) + floors[:, None, None]
        weight = 1 / (1 + (residual / (2 * spread)) ** 2)
    return coefficients[..., 0]
