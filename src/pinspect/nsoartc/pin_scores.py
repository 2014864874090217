"""What can be measured on each pin, and how far that lies from the unit space.

Each pin's top is compared with the mean's at its place: how much brighter it is (beta), where it lies, how large it is,
and what distance is left. The five together give one number by the Mahalanobis distance of the MT
(Mahalanobis-Taguchi) method, with the references' pins as the unit group. What all pins of a capture share is taken out
first: a camera that moved or a lamp that shines from elsewhere is no defect of a pin.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pinspect.nsoartc.light import without_trend

FEATURES = ("brightness", "shift_x", "shift_y", "size", "distance", "likeness")
SCORED = 5  # the first five features make the score; likeness tells the defect modes apart
MODE_FEATURES = ("brightness", "size", "likeness", "distance", "inward", "across", "off_centre", "sink")
_BRIGHTNESS, _SHIFT, _SIZE, _DISTANCE, _LIKENESS = 0, slice(1, 3), 3, 4, 5
FEATURE_FLOORS = np.array([0.008, 0.25, 0.25, 0.006, 0.004], np.float32)  # passed pins never agree better than this
_ROUNDS = 3
_STEP = 2.0  # px: the linear model of a top's displacement holds for about that much at a time
_NEAR = 4.0  # px: further off, the top is searched for


@dataclass(frozen=True)
class PinTemplates:
    """The mean's pins, prepared for measuring: everything that does not depend on the capture.

    centres: float32 (pins, 2) px. pitch: px. patches: float32 (pins, side * side), the mean round each centre.
    weight: float32 (side * side,), 1 on a top and its rim, 0 outside. tops: bool (pins, side * side). jacobian: float32
    (pins, side * side, 4), how a patch answers to brightness, shift x, shift y and size; solve: float32 (pins, 4,
    side * side), its weighted pseudo-inverse.
    """

    centres: np.ndarray
    pitch: float
    patches: np.ndarray
    weight: np.ndarray
    tops: np.ndarray
    jacobian: np.ndarray
    solve: np.ndarray

    @property
    def side(self) -> int:
        """Side of a patch, px (odd)."""
        return round(self.weight.size**0.5)


def pin_templates(mean: np.ndarray, centres: np.ndarray, pitch: float) -> PinTemplates:
    """Prepare the pins of `mean` (float32 (H, W)) at `centres` (float (pins, 2), px), `pitch` px apart."""
    reach = max(4, round(pitch / 2))
    side = 2 * reach + 1
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    weight = (1 / (1 + np.exp((radius - 0.36 * pitch) / 1.5))).astype(np.float32).ravel()
    slope_x, slope_y = (cv2.Sobel(mean, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    patches, along_x, along_y = (_cut(image, centres, side) for image in (mean, slope_x, slope_y))
    growth = -(x.ravel() * along_x + y.ravel() * along_y)
    jacobian = np.stack([patches, -along_x, -along_y, growth], axis=-1)
    weighted = jacobian * weight[:, None]
    normal = jacobian.transpose(0, 2, 1) @ weighted + 1e-6 * np.eye(4, dtype=np.float32)
    solve = np.linalg.solve(normal, weighted.transpose(0, 2, 1))
    middle = (radius < 0.08 * pitch).ravel()
    level = patches[:, middle].mean(axis=1, keepdims=True)
    tops = (patches > 0.8 * level) & (radius < 0.3 * pitch).ravel()
    return PinTemplates(
        centres.astype(np.float32), float(pitch), patches, weight, tops, jacobian, solve.astype(np.float32)
    )


def top_brightness(aligned: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """The median brightness of each pin's top relative to the mean's: float64 (pins,)."""
    patches = _cut(aligned, templates.centres, templates.side)
    tops = zip(patches, templates.patches, templates.tops, strict=True)
    return np.array([np.median(patch[top] / (mean[top] + 1e-3)) if top.any() else 1.0 for patch, mean, top in tops])


def measure_pins(evened: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Measure every pin of an aligned capture whose light is evened: float32 (pins, 6), columns as in `FEATURES`.

    brightness: relative to the mean, less 1. shift_x, shift_y: px. size: share by which the top is larger.
    distance: mean |y - x| over the top and its rim, as found, before any fit. These five are relative to what the
    capture's pins share, a linear trend over the field. likeness: correlation (-1..1) of the best place near by with
    the mean's top; 1 where no search was needed.
    """
    fitted = _fit_tops(evened, templates)
    found = np.ones((len(templates.centres), len(FEATURES)), np.float32)
    fit, offset = fitted.coefficients, fitted.offset
    found[:, _BRIGHTNESS], found[:, _SIZE], found[:, _DISTANCE] = fit[:, 0], fit[:, 3], fitted.distance
    found[:, _SHIFT] = offset + fit[:, _SHIFT]
    lost = np.abs(offset).max(axis=1) >= _NEAR
    lost |= np.abs(fit[:, _SHIFT]).max(axis=1) >= _STEP
    lost |= np.abs(fit[:, 0]) > 0.3
    for pin in np.flatnonzero(lost):
        _search(found[pin], evened, templates, pin)
    size = (evened.shape[1], evened.shape[0])
    found[:, :SCORED] = without_trend(found[:, :SCORED], templates.centres, size, FEATURE_FLOORS / 2)
    return found


def misfit(evened: np.ndarray, templates: PinTemplates) -> float:
    """How little the pins' tops look like the mean's: what is left of their distance (0..1) when place, size and
    brightness have been fitted, the median of the pins. Of several shapes, a capture has the one with the least."""
    fitted = _fit_tops(evened, templates)
    left = fitted.residual - (templates.jacobian @ fitted.coefficients[..., None])[..., 0]
    return float(np.median(np.abs(left) @ templates.weight / templates.weight.sum()))


def pin_distances(measures: np.ndarray, location: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Mahalanobis distances, float32 (pins,), of the scored features of `measures` (pins, 6) from `location` (pins, 5)
    under `precision` (5, 5)."""
    deviation = measures[:, :SCORED] - location
    return np.sqrt(np.maximum(np.einsum("nk,kl,nl->n", deviation, precision, deviation), 0)).astype(np.float32)


def mode_features(measures: np.ndarray, templates: PinTemplates, pin: int) -> np.ndarray:
    """What tells the defect modes of one pin apart: float32 (8,), as in `MODE_FEATURES`.

    In perspective, the top of a retracted pin moves towards the middle of the field and becomes smaller by the same
    share; a bent pin's top moves anywhere and stays as large; a missing one has no top.
    inward, across: the top's shift towards the middle and at right angles to that, pitches. off_centre: distance of its
    place from the middle, pitches. sink: inward as a share of off_centre. The others: as `measure_pins` gives them.
    """
    found = dict(zip(FEATURES, measures[pin].astype(np.float64), strict=True))
    shift = measures[pin, _SHIFT].astype(np.float64) / templates.pitch
    outward = (templates.centres[pin] - templates.centres.mean(axis=0)).astype(np.float64) / templates.pitch
    off_centre = float(np.hypot(*outward))
    direction = outward / off_centre if off_centre > 0.1 else np.zeros(2)
    inward = -float(shift @ direction)
    found |= {
        "inward": inward,
        "across": float(np.hypot(*(shift + inward * direction))),
        "off_centre": off_centre,
        "sink": inward / max(off_centre, 0.5),
    }
    return np.array([found[name] for name in MODE_FEATURES], np.float32)


@dataclass(frozen=True)
class _FittedTops:
    """Each pin's top, fitted by the linear model: distance (pins,) as found before; offset (pins, 2) px of the patch
    that was compared last; its residual (pins, side * side) and coefficients (pins, 4)."""

    distance: np.ndarray
    offset: np.ndarray
    residual: np.ndarray
    coefficients: np.ndarray


def _fit_tops(evened: np.ndarray, templates: PinTemplates) -> _FittedTops:
    residual = _cut(evened, templates.centres, templates.side) - templates.patches
    distance = np.abs(residual) @ templates.weight / templates.weight.sum()
    offset = np.zeros_like(templates.centres)
    for _ in range(_ROUNDS - 1):
        step = (templates.solve @ residual[..., None])[:, _SHIFT, 0]
        offset = np.clip(offset + np.clip(step, -_STEP, _STEP), -_NEAR, _NEAR)
        residual = _cut(evened, templates.centres + offset, templates.side) - templates.patches
    return _FittedTops(distance, offset, residual, (templates.solve @ residual[..., None])[..., 0])


def _search(found: np.ndarray, evened: np.ndarray, templates: PinTemplates, pin: int) -> None:
    """Look for a pin's top within half a pitch of its place, on half the size, and refit its size there."""
    side, reach = templates.side, templates.side // 2
    keep = slice(reach - round(0.32 * templates.pitch), reach + round(0.32 * templates.pitch) + 1)
    template = templates.patches[pin].reshape(side, side)[keep, keep]
    room = 2 * round(0.45 * templates.pitch)
    centre = templates.centres[pin]
    place = cv2.getRectSubPix(evened, (template.shape[1] + room, template.shape[0] + room), _point(centre))
    half_place, half_template = (
        cv2.resize(array, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for array in (place, template)
    )
    match = cv2.matchTemplate(half_place, half_template, cv2.TM_CCOEFF_NORMED)
    _, likeness, _, best = cv2.minMaxLoc(match)
    shift = (np.array(best, np.float32) - (np.array(match.shape[::-1], np.float32) - 1) / 2) * 2
    for _ in range(2):
        patch = cv2.getRectSubPix(evened, (side, side), _point(centre + shift)).ravel()
        fit = templates.solve[pin] @ (patch - templates.patches[pin])
        shift = shift + np.clip(fit[_SHIFT], -_STEP, _STEP)
    found[_SHIFT], found[_SIZE], found[_LIKENESS] = shift, fit[3], likeness


def _cut(image: np.ndarray, centres: np.ndarray, side: int) -> np.ndarray:
    """Square patches, float32 (pins, side * side), at sub-pixel places; outside the image its border repeats."""
    return np.stack([cv2.getRectSubPix(image, (side, side), _point(centre)).ravel() for centre in centres])


def _point(place: np.ndarray) -> tuple[float, float]:
    return float(place[0]), float(place[1])
