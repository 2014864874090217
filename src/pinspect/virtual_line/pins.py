"""The state of a virtual connector's pins, and what may happen to a pin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pinspect.core.drawings import ANY_DIRECTION, ModeDrawing
from pinspect.core.layout import Layout
from pinspect.virtual_line.setups import LineSetup

DIRECTIONS = {"right": 0.0, "down": np.pi / 2, "left": np.pi, "up": -np.pi / 2}  # in radians, in image axes
LEAN_DEGREES = (7.0, 20.0)
LEAN_SPREAD = 12.0  # degrees on either side of a mode's direction
LOWER_SHARE = (0.2, 0.6)
HIGHER_SHARE = (0.2, 0.6)
DARKER_SHARE = (0.55, 0.85)


@dataclass
class Pins:
    """The state of every pin of one connector; each array is float64 (pins,) unless noted, in the order of the layout.

    Attributes:
        lean: Tilt of the pin about its foot, in degrees.
        lean_direction: Direction of the tilt, in radians, in image axes.
        height: Height as a share of `LineSetup.pin_height`.
        width: Width as a share of `LineSetup.pin_width`.
        shift_x: Shift of the foot to the right, in pitches.
        shift_y: Shift of the foot downward, in pitches.
        gray: Brightness as a share of the brightness of `LineSetup.pin_color`.
        present: 1, or 0 for a missing pin.
        tint: float64 (pins, 3), RGB factors of `LineSetup.pin_color`.
        foreign: Whether the pin has the other shape, bool (pins,): square among round ones, or round among square ones.
    """

    lean: np.ndarray
    lean_direction: np.ndarray
    height: np.ndarray
    width: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    gray: np.ndarray
    present: np.ndarray
    tint: np.ndarray
    foreign: np.ndarray


def tolerated_pins(rng: np.random.Generator, setup: LineSetup, layout: Layout) -> Pins:
    """Draw the pins of a passed connector: tilts, heights and grays within the natural tolerance."""
    n = layout.pins
    return Pins(
        lean=rng.uniform(0, setup.tilt_tolerance, n),
        lean_direction=rng.uniform(0, 2 * np.pi, n),
        height=1 + rng.uniform(-setup.height_tolerance, setup.height_tolerance, n),
        width=np.ones(n),
        shift_x=np.zeros(n),
        shift_y=np.zeros(n),
        gray=1 + rng.uniform(-setup.gray_tolerance, setup.gray_tolerance, n),
        present=np.ones(n),
        tint=np.ones((n, 3)),
        foreign=np.zeros(n, bool),
    )


def change_pin(
    pins: Pins,
    pin: int,
    drawing: ModeDrawing,
    rng: np.random.Generator,
    layout: Layout,
    setup: LineSetup,
    skew: float = 1.0,
) -> None:
    """Change one pin as a defect mode is drawn; the amount of the change is random.

    Args:
        pins: The pins, changed in place.
        pin: Index of the pin in the layout.
        drawing: What happens to the pin, and in which direction.
        rng: Source of amount and direction.
        layout: Rows and columns of the pin field.
        setup: The line.
        skew: 1 draws all amounts alike; above 1, small leans and small changes of height are more frequent.

    Raises:
        ValueError: The drawing is `nothing`.
    """
    if drawing.draw == "lean" and drawing.direction == ANY_DIRECTION:
        lean_clear_of_neighbors(pins, pin, _amount(rng, LEAN_DEGREES, skew), rng, layout, setup)
    elif drawing.draw == "lean":
        lean_towards(pins, pin, drawing.direction, rng, setup, skew=skew)
    elif drawing.draw == "lower":
        pins.height[pin] *= 1 - _amount(rng, LOWER_SHARE, skew)
    elif drawing.draw == "higher":
        pins.height[pin] *= 1 + _amount(rng, HIGHER_SHARE, skew)
    elif drawing.draw == "absent":
        pins.present[pin] = 0
    elif drawing.draw == "darker":
        pins.gray[pin] *= rng.uniform(*DARKER_SHARE)
    else:
        raise ValueError(f"the virtual line draws nothing for 'draw: {drawing.draw}'")


def _amount(rng: np.random.Generator, between: tuple[float, float], skew: float) -> float:
    low, high = between
    return low + (high - low) * rng.random() ** skew


def lean_towards(
    pins: Pins,
    pin: int,
    direction: str,
    rng: np.random.Generator,
    setup: LineSetup,
    spread: float = LEAN_SPREAD,
    *,
    skew: float = 1.0,
) -> None:
    """Lean one pin about its foot to one side of the picture, not further than the next pin.

    Args:
        pins: The pins; the pin's lean and its direction are changed in place.
        pin: Index of the pin in the layout.
        direction: `left`, `right`, `up` or `down`.
        rng: Source of the angle.
        setup: The line.
        spread: Largest deviation from the direction, in degrees.
        skew: See `change_pin`.
    """
    reach = max(0.2, 1 - setup.pin_width) / (setup.pin_height * pins.height[pin])
    largest = np.degrees(np.arcsin(min(1.0, reach)))
    pins.lean[pin] = min(_amount(rng, LEAN_DEGREES, skew), largest)
    pins.lean_direction[pin] = DIRECTIONS[direction] + np.radians(rng.uniform(-spread, spread))


def lean_clear_of_neighbors(
    pins: Pins, pin: int, degrees: float, rng: np.random.Generator, layout: Layout, setup: LineSetup
) -> None:
    """Lean one pin about its foot, in a random direction in which its top touches no neighbor.

    Args:
        pins: The pins; the pin's lean and its direction are changed in place.
        pin: Index of the pin in the layout.
        degrees: Angle of the lean.
        rng: Source of the direction.
        layout: Rows and columns of the pin field.
        setup: The line.
    """
    reach = setup.pin_height * pins.height[pin] * np.sin(np.radians(degrees))
    feet = feet_of(layout, pins)[:, :2]
    others = np.delete(feet[pins.present > 0], np.flatnonzero(np.flatnonzero(pins.present) == pin), axis=0)
    directions = rng.uniform(0, 2 * np.pi, 32)
    tops = feet[pin] + reach * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    clearance = np.linalg.norm(tops[:, None] - others[None], axis=2).min(axis=1)
    free = np.flatnonzero(clearance > setup.pin_width * 1.1)
    pins.lean[pin] = degrees
    pins.lean_direction[pin] = directions[free[0] if len(free) else int(clearance.argmax())]


def feet_of(layout: Layout, pins: Pins) -> np.ndarray:
    """Return the feet of all pins, in the order of the layout: float64 (pins, 3), x, y, z in pitches."""
    column = np.tile(np.arange(layout.columns), len(layout.rows)) - (layout.columns - 1) / 2
    row = np.repeat(np.arange(len(layout.rows)), layout.columns) - (len(layout.rows) - 1) / 2
    return np.stack([column + pins.shift_x, row + pins.shift_y, np.zeros(layout.pins)], axis=1)
