"""A capture aligned to a unit space, and the choice of the unit space that a capture fits best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pinspect.core.errors import AlignmentError
from pinspect.nsoartc.alignment import Alignment, align, warp
from pinspect.nsoartc.pin_scores import misfit
from pinspect.nsoartc.unit_space import UnitSpace, even_light


@dataclass(frozen=True)
class AlignedCapture:
    """A capture in the coordinates of a unit space.

    Attributes:
        unit_space: The unit space.
        alignment: Where the capture lies in the unit space.
        gray: The aligned capture, float32 (H, W), 0..1, in the size of the unit space.
        evened: `gray` without the smooth difference in light to the unit space's mean image.
    """

    unit_space: UnitSpace
    alignment: Alignment
    gray: np.ndarray
    evened: np.ndarray

    @cached_property
    def misfit(self) -> float:
        """Return how little the capture looks like the shape of the unit space, 0 or more."""
        return misfit(self.evened, self.unit_space.templates)


def align_capture(gray: np.ndarray, unit_space: UnitSpace, maximum_shift: float) -> AlignedCapture:
    """Align a capture to a unit space.

    Args:
        gray: The capture, float32 (H, W), 0..1.
        unit_space: The unit space of the capture's line.
        maximum_shift: How far the capture may lie off its place, in px.

    Returns:
        The aligned capture.

    Raises:
        AlignmentError: The capture has another size, shows something else, or lies too far off.
    """
    alignment = align(gray, unit_space.mean, maximum_shift)
    aligned = warp(gray, alignment, unit_space.size)
    return AlignedCapture(unit_space, alignment, aligned, even_light(aligned, unit_space.templates))


def align_to_best(
    gray: np.ndarray, unit_spaces: Mapping[str, UnitSpace], maximum_shift: float
) -> tuple[str, AlignedCapture]:
    """Align a capture to the unit space that it fits best.

    Args:
        gray: The capture, float32 (H, W), 0..1.
        unit_spaces: The candidates by name, such as the shape.
        maximum_shift: How far the capture may lie off its place, in px.

    Returns:
        The name of the unit space, and the capture aligned to it.

    Raises:
        AlignmentError: The capture fits none of them; the message has the reason for each.
    """
    fits: dict[str, AlignedCapture] = {}
    reasons: list[str] = []
    for name, unit_space in unit_spaces.items():
        try:
            fits[name] = align_capture(gray, unit_space, maximum_shift)
        except AlignmentError as error:
            reasons.append(f"{name}: {error}")
    if not fits:
        raise AlignmentError("; ".join(reasons))
    best = min(fits, key=lambda name: fits[name].misfit)
    return best, fits[best]
