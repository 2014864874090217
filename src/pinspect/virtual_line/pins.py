"""The constants of a virtual line, and the state of its pins: passed, bent, retracted or missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pinspect.core.drawings import ANY_DIRECTION, ModeDrawing
from pinspect.core.layout import Layout

DIRECTIONS = {"right": 0.0, "down": np.pi / 2, "left": np.pi, "up": -np.pi / 2}  # in radians, in image axes
LEAN_DEGREES = (7.0, 20.0)
LEAN_SPREAD = 12.0  # degrees on either side of a mode's direction
LOWER_SHARE = (0.2, 0.6)
HIGHER_SHARE = (0.2, 0.6)
DARKER_SHARE = (0.55, 0.85)


@dataclass(frozen=True)
class LineSetup:
    """The constants of a line: its camera, its pins and how much its captures vary.

    Lengths are in pitches, angles in degrees, image size and pitch in px, gray levels 0..1.
    """

    shape: str
    image_width: int = 640
    image_height: int = 260
    pitch_px: float = 65.5
    camera_height: float = 10.6
    camera_tilt: tuple[float, float] = (0.0, 0.0)
    camera_roll: float = 0.0
    lens_k1: float = 0.0
    center_px: tuple[float, float] = (321.0, 131.0)
    pin_height: float = 1.6
    pin_width: float = 0.52
    corner: float = 0.0
    pin_gray: float = 0.8
    side_gray: float = 0.5
    floor_gray: float = 0.14
    shadow: float = 0.6
    place_jitter_px: tuple[float, float] = (8.0, 7.0)
    tilt_tolerance: float = 0.9
    height_tolerance: float = 0.018
    gray_tolerance: float = 0.02
    light_range: tuple[float, float] = (0.75, 1.15)
    noise_range: tuple[float, float] = (0.002, 0.008)
    blur_range: tuple[float, float] = (0.3, 0.9)
    jpeg_range: tuple[int, int] = (86, 96)


@dataclass
class Pins:
    """The state of every pin of one connector; each array is float64 (pins,), in the order of the layout.

    Attributes:
        lean: Tilt of the pin about its foot, in degrees.
        lean_direction: Direction of the tilt, in radians, in image axes.
        height: Height as a share of `LineSetup.pin_height`.
        width: Width as a share of `LineSetup.pin_width`.
        shift_x: Shift of the foot to the right, in pitches.
        shift_y: Shift of the foot downward, in pitches.
        gray: Brightness as a share of `LineSetup.pin_gray`.
        present: 1, or 0 for a missing pin.
    """

    lean: np.ndarray
    lean_direction: np.ndarray
    height: np.ndarray
    width: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    gray: np.ndarray
    present: np.ndarray


def random_setup(rng: np.random.Generator, shape: str) -> LineSetup:
    """Draw a line from a wide range of cameras, lenses, pins, materials and lights."""
    pitch = rng.uniform(58, 69)
    return LineSetup(
        shape=shape,
        pitch_px=pitch,
        camera_height=rng.uniform(8.0, 14.0),
        camera_tilt=(rng.normal(0, 1.0), rng.normal(0, 1.0)),
        camera_roll=rng.normal(0, 0.5),
        lens_k1=rng.uniform(-0.03, 0.03),
        center_px=(320 + rng.uniform(-8, 8), 130 + rng.uniform(-8, 8)),
        pin_height=rng.uniform(1.2, 2.1),
        pin_width=rng.uniform(0.44, 0.6),
        corner=rng.uniform(0, 0.06),
        pin_gray=rng.uniform(0.5, 0.95),
        side_gray=rng.uniform(0.22, 0.62),
        floor_gray=rng.uniform(0.05, 0.22),
        shadow=rng.uniform(0.1, 0.85),
        light_range=(rng.uniform(0.6, 0.85), rng.uniform(1.0, 1.25)),
        noise_range=(0.001, rng.uniform(0.004, 0.014)),
        blur_range=(0.3, rng.uniform(0.5, 1.2)),
    )


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
    )


def change_pin(
    pins: Pins, pin: int, drawing: ModeDrawing, rng: np.random.Generator, layout: Layout, setup: LineSetup
) -> None:
    """Change one pin as a defect mode is drawn; the amount of the change is random.

    Args:
        pins: The pins, changed in place.
        pin: Index of the pin in the layout.
        drawing: What happens to the pin, and in which direction.
        rng: Source of amount and direction.
        layout: Rows and columns of the pin field.
        setup: The line.

    Raises:
        ValueError: The drawing is `nothing`.
    """
    if drawing.draw == "lean" and drawing.direction == ANY_DIRECTION:
        lean_clear_of_neighbors(pins, pin, rng.uniform(*LEAN_DEGREES), rng, layout, setup)
    elif drawing.draw == "lean":
        lean_towards(pins, pin, drawing.direction, rng, setup)
    elif drawing.draw == "lower":
        pins.height[pin] *= 1 - rng.uniform(*LOWER_SHARE)
    elif drawing.draw == "higher":
        pins.height[pin] *= 1 + rng.uniform(*HIGHER_SHARE)
    elif drawing.draw == "absent":
        pins.present[pin] = 0
    elif drawing.draw == "darker":
        pins.gray[pin] *= rng.uniform(*DARKER_SHARE)
    else:
        raise ValueError(f"the virtual line draws nothing for 'draw: {drawing.draw}'")


def lean_towards(
    pins: Pins, pin: int, direction: str, rng: np.random.Generator, setup: LineSetup, spread: float = LEAN_SPREAD
) -> None:
    """Lean one pin about its foot to one side of the picture, not further than the next pin.

    Args:
        pins: The pins; the pin's lean and its direction are changed in place.
        pin: Index of the pin in the layout.
        direction: `left`, `right`, `up` or `down`.
        rng: Source of the angle.
        setup: The line.
        spread: Largest deviation from the direction, in degrees.
    """
    reach = max(0.2, 1 - setup.pin_width) / (setup.pin_height * pins.height[pin])
    largest = np.degrees(np.arcsin(min(1.0, reach)))
    pins.lean[pin] = min(rng.uniform(*LEAN_DEGREES), largest)
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
