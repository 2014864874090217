"""Find the place of a capture of any size in its unit space.

1. The same picture, perhaps at another size: the capture is scaled to the unit space and aligned.
2. Another picture of the connector (cropped, padded, another aspect ratio, a field that fills a part of it): the
   layout's grid is fitted to the capture. The similarity from that grid to the grid of the unit space is the first
   guess, and the pin field alone is aligned from there.

A picture that fits much better if it is turned by a quarter or half turn is refused with a reason that names the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from pinspect.core.errors import AlignmentError, UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.core.scaling import is_same_picture, resized, scaling
from pinspect.nsoartc.alignment import (
    LARGEST_DEFORMATION,
    MINIMUM_SCORE,
    Alignment,
    OffPlaceError,
    deformation_of,
    resampled,
    shift_of,
    square,
)
from pinspect.nsoartc.grid import MINIMUM_CONFIDENCE, PinGrid, find_grid
from pinspect.nsoartc.grid_fit import Points
from pinspect.nsoartc.parts import FloatImage
from pinspect.nsoartc.unit_space import UnitSpace

_SMALLEST_PITCH = 16.0  # px: with less a pin has too few pixels to be inspected
_SURE_SCORE = 0.9  # a pin field that is turned by half a turn has less, or looks the same
_SYMMETRIC = 0.8  # correlation of a field with itself upside down: with more, only the light decides between the two
_LEAD = 0.05  # a correlation higher by this decides between two turns
_TURNS = {90: "90 degrees counterclockwise", 180: "180 degrees", 270: "90 degrees clockwise"}


def find_places(gray: FloatImage, unit_spaces: Mapping[str, UnitSpace], maximum_shift: float) -> dict[str, Alignment]:
    """Find the place of a capture in each unit space that it fits.

    Args:
        gray: The capture, float32 (H, W), 0..1, of any size.
        unit_spaces: The unit spaces of one layout, by name.
        maximum_shift: How far the capture may lie off its place, px of the unit space.

    Returns:
        The place in each unit space that the capture fits, one at least.

    Raises:
        AlignmentError: The capture fits none of them; the message has the reason for each.
    """
    same = {name: space for name, space in unit_spaces.items() if is_same_picture(gray.shape, space.mean.shape)}
    places, reasons = _of_each(same, lambda space: _align_picture(gray, space, maximum_shift))
    if places or _is_off_place(reasons):
        return _require(places, reasons)
    layout = next(iter(unit_spaces.values())).layout
    try:
        grid = _grid_in(gray, layout)
    except AlignmentError as error:
        reasons = dict.fromkeys(unit_spaces, error) | reasons
        turns = {}
    else:
        places, reasons = _of_each(unit_spaces, lambda space: _align_elsewhere(gray, grid, space, maximum_shift))
        is_decidable = not any(map(_looks_the_same_upside_down, unit_spaces.values()))
        turns = {180: (gray, _reversed(grid))} if is_decidable else {}
    if not places and not _is_off_place(reasons):
        _refuse_turned(turns | _quarter_turns(gray, layout), unit_spaces, MINIMUM_SCORE + _LEAD)
    return _require(places, reasons)


def refuse_half_turn(gray: FloatImage, place: Alignment, unit_space: UnitSpace) -> None:
    """Refuse a capture that fits better upside down.

    Nothing is compared where the capture fits very well, or where the line looks the same upside down.

    Args:
        gray: The capture, float32 (H, W), 0..1.
        place: Its place in the unit space.
        unit_space: The unit space.

    Raises:
        AlignmentError: The capture fits better upside down.
    """
    if place.score >= _SURE_SCORE or _looks_the_same_upside_down(unit_space):
        return
    grid = PinGrid(unit_space.grid, unit_space.layout).seen_in(cv2.invertAffineTransform(place.matrix))
    upright, _ = _of_each({"": unit_space}, lambda space: _align_by_grid(gray, grid, space))
    least = max((each.score for each in upright.values()), default=place.score)
    _refuse_turned({180: (gray, _reversed(grid))}, {"": unit_space}, least + _LEAD)


def _looks_the_same_upside_down(unit_space: UnitSpace) -> bool:
    x0, y0, x1, y1 = unit_space.field_box
    field = unit_space.mean[y0:y1, x0:x1]
    return float(np.corrcoef(field.ravel(), field[::-1, ::-1].ravel())[0, 1]) >= _SYMMETRIC


def _of_each(
    unit_spaces: Mapping[str, UnitSpace], place_in: Callable[[UnitSpace], Alignment]
) -> tuple[dict[str, Alignment], dict[str, AlignmentError]]:
    """Return the places in the unit spaces, and the reasons why the capture does not fit the others."""
    places: dict[str, Alignment] = {}
    reasons: dict[str, AlignmentError] = {}
    for name, unit_space in unit_spaces.items():
        try:
            places[name] = place_in(unit_space)
        except AlignmentError as error:
            reasons[name] = error
    return places, reasons


def _is_off_place(reasons: Mapping[str, AlignmentError]) -> bool:
    return any(isinstance(reason, OffPlaceError) for reason in reasons.values())


def _require(places: dict[str, Alignment], reasons: Mapping[str, AlignmentError]) -> dict[str, Alignment]:
    if not places:
        raise AlignmentError(
            "; ".join(f"{name}: {reason}" if len(reasons) > 1 else str(reason) for name, reason in reasons.items())
        )
    return places


def _align_picture(gray: FloatImage, unit_space: UnitSpace, maximum_shift: float) -> Alignment:
    """Align a capture that shows the same picture as the unit space, perhaps at another size."""
    place = unit_space.alignment_target.align(resized(gray, unit_space.size), maximum_shift)
    if gray.shape == unit_space.mean.shape:
        return place
    return place.between(scaling(gray.shape[::-1], unit_space.size))


def _grid_in(gray: FloatImage, layout: Layout) -> PinGrid:
    try:
        grid = find_grid(gray, layout)
    except UnitSpaceError as error:
        raise AlignmentError(str(error)) from None
    if grid.confidence < MINIMUM_CONFIDENCE:
        raise AlignmentError(
            f"it shows no field of {len(layout.rows)} x {layout.columns} pins (confidence {grid.confidence:.2f}, "
            f"{MINIMUM_CONFIDENCE} at least); check that it shows this connector, whole, sharp and upright"
        )
    if grid.pitch < _SMALLEST_PITCH:
        raise AlignmentError(
            f"its pins are {grid.pitch:.0f} px apart, {_SMALLEST_PITCH:.0f} px at least; move the camera nearer, or "
            "save the picture with more pixels"
        )
    if not ((grid.centers >= 0) & (grid.centers <= np.array(gray.shape[::-1]) - 1)).all():
        raise AlignmentError("the pin field lies partly outside of the picture; take a picture of all pins")
    return grid


def _align_by_grid(gray: FloatImage, grid: PinGrid, unit_space: UnitSpace) -> Alignment:
    """Align a capture whose pins are known roughly.

    Only the pin field is compared: what is around it may differ from the references.
    """
    x0, y0, x1, y1 = unit_space.field_box
    to_field = np.array([[1, 0, -x0], [0, 1, -y0], [0, 0, 1]], np.float64)
    guess = to_field @ _similarity(grid.centers, unit_space.pin_centers.astype(np.float64))
    field = np.asarray(resampled(gray, guess[:2], (x1 - x0, y1 - y0)), np.float32)
    # A field that lies more than half a pitch off is its neighbor.
    return unit_space.field_target.align(field, unit_space.pitch / 2).between(guess, np.linalg.inv(to_field))


def _align_elsewhere(gray: FloatImage, grid: PinGrid, unit_space: UnitSpace, maximum_shift: float) -> Alignment:
    """Align a capture whose pins are known roughly; where the same camera took it, its connector must be in place."""
    place = _align_by_grid(gray, grid, unit_space)
    if is_same_picture(gray.shape, unit_space.mean.shape):
        difference = square(place.matrix) @ scaling(unit_space.size, gray.shape[::-1])
        if deformation_of(difference) <= LARGEST_DEFORMATION:
            shift_of(difference, unit_space.mean.shape, maximum_shift)
    return place


def _reversed(grid: PinGrid) -> PinGrid:
    """Return the grid of a field that is upside down: its first pin is the last one."""
    half_turn = np.array([[-1, 0, grid.layout.columns - 1], [0, -1, len(grid.layout.rows) - 1], [0, 0, 1]], np.float64)
    return PinGrid(grid.matrix @ half_turn, grid.layout, grid.diameter, grid.confidence)


def _quarter_turns(gray: FloatImage, layout: Layout) -> dict[int, tuple[FloatImage, PinGrid]]:
    """Return the capture turned by a quarter turn, with the two grids that may be in it, by degrees."""
    turned = np.ascontiguousarray(np.rot90(gray))
    try:
        grid = _grid_in(turned, layout)
    except AlignmentError:
        return {}
    return {90: (turned, grid), 270: (turned, _reversed(grid))}


def _refuse_turned(
    turns: Mapping[int, tuple[FloatImage, PinGrid]], unit_spaces: Mapping[str, UnitSpace], least: float
) -> None:
    """Refuse a capture that fits turned, with a correlation of `least` or more."""
    scores: dict[int, float] = {}
    for each, (image, grid) in turns.items():
        places, _ = _of_each(unit_spaces, lambda space, image=image, grid=grid: _align_by_grid(image, grid, space))
        scores |= {each: max(place.score for place in places.values())} if places else {}
    if not scores or max(scores.values()) < least:
        return
    best = max(scores.values())
    degrees = [each for each, score in scores.items() if score > best - _LEAD]
    other_eye = ", or correct the eye in its name" if degrees == [180] else ""  # two cameras may face each other
    turn = " or ".join(_TURNS[each] for each in degrees)
    raise AlignmentError(f"it fits turned by {turn} (correlation {best:.2f}); turn the camera or the file{other_eye}")


def _similarity(source: Points, target: Points) -> Points:
    """Return the similarity, float64 (3, 3), that brings points, (n, 2), nearest to other points."""
    middles = source.mean(axis=0), target.mean(axis=0)
    from_middle, to_middle = (
        (points - middle) @ (1, 1j) for points, middle in zip((source, target), middles, strict=True)
    )
    factor = (from_middle.conj() @ to_middle) / (from_middle.conj() @ from_middle)
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return square(np.column_stack([turn, middles[1] - turn @ middles[0]]))
