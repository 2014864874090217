"""Measure each pin of a capture, and its distance from the unit space.

Each pin's top is compared with the same top in the unit space's mean image: relative brightness, shift in x and y,
relative size, and mean distance of the pixels. The Mahalanobis distance of the MT (Mahalanobis-Taguchi) method turns
these five features into one number, with the references' pins as the unit group. First, each feature loses the linear
trend that all pins of a capture share: a moved camera or lamp is no defect of a pin.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pinspect.nsoartc.light import without_trend

FEATURES = ("brightness", "shift_x", "shift_y", "size", "distance", "likeness")
SCORED = 5  # the first five features make the score; likeness serves the defect mode alone
MODE_FEATURES = ("brightness", "size", "likeness", "distance", "inward", "across", "off_centre", "sink")
_BRIGHTNESS, _SHIFT, _SIZE, _DISTANCE, _LIKENESS = 0, slice(1, 3), 3, 4, 5
FEATURE_FLOORS = np.array([0.008, 0.25, 0.25, 0.006, 0.004], np.float32)  # least spread assumed of passed pins
_ROUNDS = 3
_TOP_SAMPLES = 256  # pixels of a top; more change its median brightness by less than the noise of a capture
_STEP = 2.0  # px: the linear model of a top's displacement holds for about that much at a time
_NEAR = 4.0  # px: a top that lies further off is found by a search


@dataclass(frozen=True)
class PinTemplates:
    """The pins of a unit space's mean image, prepared for measuring.

    Attributes:
        centers: float32 (pins, 2), x and y, px.
        pitch: Distance of neighboring pins, px.
        patches: float32 (pins, side * side), the mean image around each center.
        weight: float32 (side * side,), 1 on a top and its rim, 0 outside.
        top_pixels: int64 (pins, samples), pixels on each pin's top, as indices of the flat mean image.
        top_levels: float32 (pins, samples), the mean image at these pixels, above 0.
        jacobian: float32 (pins, side * side, 4), derivative of a patch by brightness, shift x, shift y and size.
        solve: float32 (pins, 4, side * side), weighted pseudo-inverse of `jacobian`.
    """

    centers: np.ndarray
    pitch: float
    patches: np.ndarray
    weight: np.ndarray
    top_pixels: np.ndarray
    top_levels: np.ndarray
    jacobian: np.ndarray
    solve: np.ndarray

    @property
    def side(self) -> int:
        """Return the side of a patch, px (odd)."""
        return round(self.weight.size**0.5)


def pin_templates(mean: np.ndarray, centers: np.ndarray, pitch: float) -> PinTemplates:
    """Prepare the pins of a mean image for measuring.

    Args:
        mean: float32 (H, W), 0..1.
        centers: float (pins, 2), x and y of the pins' tops, px.
        pitch: Distance of neighboring pins, px.

    Returns:
        Everything that measuring needs and that does not depend on the capture.
    """
    reach = max(4, round(pitch / 2))
    side = 2 * reach + 1
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    weight = (1 / (1 + np.exp((radius - 0.36 * pitch) / 1.5))).astype(np.float32).ravel()
    slope_x, slope_y = (cv2.Sobel(mean, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    patches, along_x, along_y = (_cut(image, centers, side) for image in (mean, slope_x, slope_y))
    growth = -(x.ravel() * along_x + y.ravel() * along_y)
    jacobian = np.stack([patches, -along_x, -along_y, growth], axis=-1)
    weighted = jacobian * weight[:, None]
    normal = jacobian.transpose(0, 2, 1) @ weighted + 1e-6 * np.eye(4, dtype=np.float32)
    solve = np.linalg.solve(normal, weighted.transpose(0, 2, 1))
    middle = (radius < 0.08 * pitch).ravel()
    level = patches[:, middle].mean(axis=1, keepdims=True)
    tops = (patches > 0.8 * level) & (radius < 0.3 * pitch).ravel()
    top_pixels = np.stack([
        _top_pixels(np.stack([x.ravel()[top], y.ravel()[top]], axis=1) + center, mean.shape)
        for top, center in zip(tops, centers, strict=True)
    ])  # fmt: skip
    return PinTemplates(
        centers=centers.astype(np.float32),
        pitch=float(pitch),
        patches=patches,
        weight=weight,
        top_pixels=top_pixels,
        top_levels=np.maximum(mean.ravel()[top_pixels], 1e-3),
        jacobian=jacobian,
        solve=solve.astype(np.float32),
    )


def _top_pixels(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `_TOP_SAMPLES` of a top's pixels, as indices of the flat image; of a top without pixels, the first one."""
    if not len(places):
        return np.zeros(_TOP_SAMPLES, np.int64)
    chosen = places[np.linspace(0, len(places) - 1, _TOP_SAMPLES).round().astype(int)].round().astype(np.int64)
    column, row = np.clip(chosen, 0, np.array([shape[1], shape[0]]) - 1).T
    return row * shape[1] + column


def top_brightness(aligned: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Return the median brightness of each pin's top relative to the mean image.

    Args:
        aligned: The aligned capture, float32 (H, W), 0..1.
        templates: The pins of the mean image.

    Returns:
        float64 (pins,), 1 for equal brightness.
    """
    return np.median(aligned.ravel()[templates.top_pixels] / templates.top_levels, axis=1).astype(np.float64)


def measure_pins(evened: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Measure every pin of a capture.

    The columns of the result are those of `FEATURES`:

    - brightness: relative to the mean image, minus 1.
    - shift_x, shift_y: px.
    - size: share by which the top is larger.
    - distance: mean |y - x| over the top and its rim, before any fit.
    - likeness: correlation (-1..1) of the best place nearby with the mean image's top; 1 where no search was needed.

    The first five are relative to a linear trend over the field, which all pins of the capture share.

    Args:
        evened: The aligned capture with its light evened, float32 (H, W), 0..1.
        templates: The pins of the mean image.

    Returns:
        float32 (pins, 6).
    """
    fitted = _fit_tops(evened, templates)
    measures = np.ones((len(templates.centers), len(FEATURES)), np.float32)
    fit, offset = fitted.coefficients, fitted.offset
    measures[:, _BRIGHTNESS], measures[:, _SIZE], measures[:, _DISTANCE] = fit[:, 0], fit[:, 3], fitted.distance
    measures[:, _SHIFT] = offset + fit[:, _SHIFT]
    lost = np.abs(offset).max(axis=1) >= _NEAR
    lost |= np.abs(fit[:, _SHIFT]).max(axis=1) >= _STEP
    lost |= np.abs(fit[:, 0]) > 0.3
    for pin in np.flatnonzero(lost):
        _search(measures[pin], evened, templates, int(pin))
    size = (evened.shape[1], evened.shape[0])
    measures[:, :SCORED] = without_trend(measures[:, :SCORED], templates.centers, size, FEATURE_FLOORS / 2)
    return measures


def pin_misfits(evened: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Return how little each pin's top looks like that of the mean image.

    Args:
        evened: The aligned capture with its light evened, float32 (H, W), 0..1.
        templates: The pins of the mean image.

    Returns:
        float32 (pins,), the mean distance (0..1) that remains after a fit of place, size and brightness.
    """
    fitted = _fit_tops(evened, templates)
    remainder = fitted.residual - (templates.jacobian @ fitted.coefficients[..., None])[..., 0]
    return np.abs(remainder) @ templates.weight / templates.weight.sum()


def misfit(evened: np.ndarray, templates: PinTemplates) -> float:
    """Return how little the pins' tops look like those of the mean image: the median of `pin_misfits`.

    Of several shapes, the one with the smallest misfit is the shape of the capture.
    """
    return float(np.median(pin_misfits(evened, templates)))


def pin_distances(measures: np.ndarray, location: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the Mahalanobis distance of each pin's scored features.

    Args:
        measures: float32 (pins, 6), as `measure_pins` returns them.
        location: float32 (pins, 5), the unit group's medians.
        precision: float32 (5, 5), the unit group's inverse covariance.

    Returns:
        float32 (pins,), 0 or more.
    """
    deviation = measures[:, :SCORED] - location
    return np.sqrt(np.maximum(np.einsum("nk,kl,nl->n", deviation, precision, deviation), 0)).astype(np.float32)


def mode_features(measures: np.ndarray, templates: PinTemplates, pin: int) -> np.ndarray:
    """Return the features that distinguish the defect modes of one pin.

    In perspective, the top of a retracted pin moves towards the middle of the field and becomes smaller by the same
    share; a bent pin's top moves in any direction and keeps its size; a missing pin has no top.

    Besides the columns of `measure_pins`, the features are:

    - inward, across: shift of the top towards the middle, and at right angles to that direction, pitches.
    - off_centre: distance of the pin's place from the middle, pitches.
    - sink: inward as a share of off_centre.

    Args:
        measures: float32 (pins, 6), as `measure_pins` returns them.
        templates: The pins of the mean image.
        pin: Index of the pin.

    Returns:
        float32 (8,), in the order of `MODE_FEATURES`.
    """
    values = dict(zip(FEATURES, measures[pin].astype(np.float64), strict=True))
    shift = measures[pin, _SHIFT].astype(np.float64) / templates.pitch
    outward = (templates.centers[pin] - templates.centers.mean(axis=0)).astype(np.float64) / templates.pitch
    off_centre = float(np.hypot(*outward))
    direction = outward / off_centre if off_centre > 0.1 else np.zeros(2)
    inward = -float(shift @ direction)
    values |= {
        "inward": inward,
        "across": float(np.hypot(*(shift + inward * direction))),
        "off_centre": off_centre,
        "sink": inward / max(off_centre, 0.5),
    }
    return np.array([values[name] for name in MODE_FEATURES], np.float32)


@dataclass(frozen=True)
class _FittedTops:
    """Each pin's top, fitted by the linear model.

    Attributes:
        distance: (pins,), mean distance before the fit.
        offset: (pins, 2), px, of the patch that was compared last.
        residual: (pins, side * side), of that patch before its fit.
        coefficients: (pins, 4), of that patch's fit.
    """

    distance: np.ndarray
    offset: np.ndarray
    residual: np.ndarray
    coefficients: np.ndarray


def _fit_tops(evened: np.ndarray, templates: PinTemplates) -> _FittedTops:
    residual = _cut(evened, templates.centers, templates.side) - templates.patches
    distance = np.abs(residual) @ templates.weight / templates.weight.sum()
    offset = np.zeros_like(templates.centers)
    for _ in range(_ROUNDS - 1):
        step = (templates.solve @ residual[..., None])[:, _SHIFT, 0]
        offset = np.clip(offset + np.clip(step, -_STEP, _STEP), -_NEAR, _NEAR)
        residual = _cut(evened, templates.centers + offset, templates.side) - templates.patches
    return _FittedTops(distance, offset, residual, (templates.solve @ residual[..., None])[..., 0])


def _search(measures: np.ndarray, evened: np.ndarray, templates: PinTemplates, pin: int) -> None:
    """Search a pin's top within half a pitch of its place at half the size; write shift, size and likeness."""
    side, reach = templates.side, templates.side // 2
    keep = slice(reach - round(0.32 * templates.pitch), reach + round(0.32 * templates.pitch) + 1)
    template = templates.patches[pin].reshape(side, side)[keep, keep]
    room = 2 * round(0.45 * templates.pitch)
    center = templates.centers[pin]
    place = cv2.getRectSubPix(evened, (template.shape[1] + room, template.shape[0] + room), _point(center))
    half_place, half_template = (
        cv2.resize(array, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for array in (place, template)
    )
    match = cv2.matchTemplate(half_place, half_template, cv2.TM_CCOEFF_NORMED)
    _, likeness, _, best = cv2.minMaxLoc(match)
    shift = (np.array(best, np.float32) - (np.array(match.shape[::-1], np.float32) - 1) / 2) * 2
    fit = np.zeros(4, np.float32)
    for _ in range(2):
        patch = cv2.getRectSubPix(evened, (side, side), _point(center + shift)).ravel()
        fit = templates.solve[pin] @ (patch - templates.patches[pin])
        shift = shift + np.clip(fit[_SHIFT], -_STEP, _STEP)
    measures[_SHIFT], measures[_SIZE], measures[_LIKENESS] = shift, fit[3], likeness


def _cut(image: np.ndarray, centers: np.ndarray, side: int) -> np.ndarray:
    """Return patches, float32 (pins, side * side), at sub-pixel places; outside the image its border repeats."""
    return np.stack([cv2.getRectSubPix(image, (side, side), _point(center)).ravel() for center in centers])


def _point(place: np.ndarray) -> tuple[float, float]:
    return float(place[0]), float(place[1])
