"""A capture aligned to a unit space, and the choice of the unit space that a capture fits best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pinspect.nsoartc.alignment import Alignment, warp
from pinspect.nsoartc.distance import compare
from pinspect.nsoartc.light import without_light
from pinspect.nsoartc.parts import FloatImage
from pinspect.nsoartc.pin_scores import pin_misfits
from pinspect.nsoartc.pixels import gray_of
from pinspect.nsoartc.place import find_places, refuse_half_turn
from pinspect.nsoartc.unit_space import UnitSpace, light_of


@dataclass(frozen=True)
class AlignedCapture:
    """A capture in the coordinates of a unit space.

    Attributes:
        unit_space: The unit space.
        alignment: Where the capture lies in the unit space.
        image: The aligned capture in the size of the unit space: uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        gray: Its luminance, float32 (H, W), 0..1.
    """

    unit_space: UnitSpace
    alignment: Alignment
    image: np.ndarray
    gray: FloatImage

    @cached_property
    def light(self) -> FloatImage:
        """Return the smooth difference in light to the unit space's mean image: a factor, float32 (H, W)."""
        return light_of(self.gray, self.unit_space.templates)

    @cached_property
    def evened(self) -> FloatImage:
        """Return `gray` divided by `light`."""
        return self.gray / self.light

    @cached_property
    def distance(self) -> FloatImage:
        """Return NSOARTC's stage 1: `image` divided by `light` against the mean image.

        Returns:
            float32 (rows, columns, 3), with a value for every `stride`-th pixel of the unit space.
        """
        space = self.unit_space
        pixels = without_light(self.image, self.light)
        return compare(pixels.reshape(1, *pixels.shape[:2], -1), space.mean, space.nsoartc, same_size=True)[0]

    @cached_property
    def pin_misfits(self) -> FloatImage:
        """Return how little each pin looks like the shape of the unit space, float32 (pins,), 0 or more."""
        return pin_misfits(self.evened, self.unit_space.templates)

    @property
    def misfit(self) -> float:
        """Return how little the capture looks like the shape of the unit space, 0 or more."""
        return float(np.median(self.pin_misfits))


def align_capture(image: np.ndarray, unit_space: UnitSpace, maximum_shift: float) -> AlignedCapture:
    """Align a capture to a unit space.

    Args:
        image: The capture, of any size: uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        unit_space: The unit space of the capture's line.
        maximum_shift: How far the capture may lie off its place, px of the unit space.

    Returns:
        The aligned capture.

    Raises:
        AlignmentError: The capture shows something else, is turned, or lies too far off.
    """
    return align_to_best(image, {"": unit_space}, maximum_shift)[1]


def place_capture(image: np.ndarray, alignment: Alignment, unit_space: UnitSpace) -> AlignedCapture:
    """Map a capture to a unit space in which its place is known.

    Args:
        image: The capture, uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        alignment: The place of the capture in the unit space.
        unit_space: The unit space.

    Returns:
        The aligned capture.
    """
    aligned = warp(image, alignment, unit_space.size)
    return AlignedCapture(unit_space, alignment, aligned, gray_of(aligned))


def align_to_best(
    image: np.ndarray, unit_spaces: Mapping[str, UnitSpace], maximum_shift: float
) -> tuple[str, AlignedCapture]:
    """Align a capture to the unit space that it fits best.

    Args:
        image: The capture, uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        unit_spaces: The candidates by name, such as the shape.
        maximum_shift: How far the capture may lie off its place, px of the unit space.

    Returns:
        The name of the unit space, and the capture aligned to it.

    Raises:
        AlignmentError: The capture fits none of them; the message has the reason for each.
    """
    gray = gray_of(image)
    places = find_places(gray, unit_spaces, maximum_shift)
    fits = {name: place_capture(image, place, unit_spaces[name]) for name, place in places.items()}
    best = min(fits, key=lambda name: fits[name].misfit) if len(fits) > 1 else next(iter(fits))
    refuse_half_turn(gray, places[best], unit_spaces[best])
    return best, fits[best]
