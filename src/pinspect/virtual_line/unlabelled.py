"""Captures with things that nobody labels: two defects, a foreign pin, a wrong color, a foreign object.

Benchmarks and tests render them; no stage does, so that no model is trained on them.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import numpy as np

from pinspect.core.drawings import ModeDrawing
from pinspect.core.layout import Layout
from pinspect.virtual_line.line import PIN_WIDTH
from pinspect.virtual_line.pins import Pins, change_pin, feet_of, tolerated_pins
from pinspect.virtual_line.renderer import ForeignObject, encode_jpeg, render
from pinspect.virtual_line.setups import Color, LineSetup

KINDS = ("passed", "two defects", "foreign pin", "wrong color", "wire clipping", "washer")

_SATURATION = (0.4, 0.9)  # of a pin of a wrong color
_WIRE_WIDTH = (0.08, 0.16)  # pitches
_WIRE_LENGTH = (0.8, 2.0)  # pitches
_WIRE_BEND = 1.2  # radians between a clipping's ends, at most
_WASHER_RADIUS = (0.3, 0.55)  # pitches
_WASHER_WIDTH = (0.12, 0.22)  # pitches
_TOUCHED = 0.5  # pitches: an object touches the pins whose cells it covers
_WIRES: tuple[Color, ...] = ((0.72, 0.36, 0.16), (0.7, 0.7, 0.72), (0.6, 0.06, 0.05))  # copper, tinned, red insulation
_STEEL = (0.55, 0.55, 0.57)


def render_unlabelled(
    kind: str, rng: np.random.Generator, setup: LineSetup, layout: Layout, drawings: Mapping[str, ModeDrawing]
) -> tuple[bytes, tuple[int, ...]]:
    """Render a capture with something that nobody labels.

    Args:
        kind: One of `KINDS`.
        rng: Source of all random values.
        setup: The line.
        layout: Rows and columns of the pin field.
        drawings: Defect mode -> how it is drawn; for two defects.

    Returns:
        The bytes of the JPEG file, and the indices of the pins that differ: both defective pins, the foreign or wrongly
        colored pin, the pins whose cells the object covers. Empty for a passed capture.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, found {kind!r}")
    pins = tolerated_pins(rng, setup, layout)
    changed, things = (), []
    if kind == "two defects":
        changed = _pick(rng, layout, 2)
        modes = [drawing for drawing in drawings.values() if drawing.draw != "nothing"]
        for pin in changed:
            change_pin(pins, pin, modes[rng.integers(len(modes))], rng, layout, setup)
    elif kind == "foreign pin":
        changed = _pick(rng, layout, 1)
        pins.foreign[changed] = True
        pins.width[changed] = PIN_WIDTH["CYLN" if setup.shape == "SQUR" else "SQUR"] / PIN_WIDTH[setup.shape]
    elif kind == "wrong color":
        changed = _pick(rng, layout, 1)
        color = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*_SATURATION), max(setup.pin_color))
        pins.tint[changed] = np.divide(color, setup.pin_color)
    elif kind != "passed":
        things = [_object(kind, rng, setup, layout, pins)]
        changed = _touched(things[0], layout, pins)
    rendered = render(rng, setup, pins, layout, things)
    return encode_jpeg(rendered.image, int(rng.integers(*setup.jpeg_range))), changed


def _pick(rng: np.random.Generator, layout: Layout, count: int) -> tuple[int, ...]:
    return tuple(int(pin) for pin in rng.choice(layout.pins, count, replace=False))


def _object(kind: str, rng: np.random.Generator, setup: LineSetup, layout: Layout, pins: Pins) -> ForeignObject:
    """Draw a thing anywhere in the pin field, on the pins or, as often, on the floor between them."""
    on_pins = bool(rng.random() < 0.5)
    if kind == "washer":
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        path = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(*_WASHER_RADIUS)
        width, color = rng.uniform(*_WASHER_WIDTH), _STEEL
    else:
        along = np.linspace(-0.5, 0.5, 24)
        angles = rng.uniform(0, 2 * np.pi) + rng.uniform(-_WIRE_BEND, _WIRE_BEND) * along
        steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(*_WIRE_LENGTH) / len(along)
        path = np.cumsum(steps, axis=0) - steps.sum(axis=0) / 2
        width, color = rng.uniform(*_WIRE_WIDTH), _WIRES[rng.integers(len(_WIRES))]
    feet = feet_of(layout, pins)[:, :2]
    middle = rng.uniform(feet.min(axis=0), feet.max(axis=0))
    height = np.full(len(path), setup.pin_height if on_pins else 0.0)
    return ForeignObject(np.column_stack([path + middle, height]), width, color, kind == "washer", on_pins)


def _touched(thing: ForeignObject, layout: Layout, pins: Pins) -> tuple[int, ...]:
    """Return the pins whose cells a thing covers."""
    away = np.abs(feet_of(layout, pins)[:, None, :2] - thing.path[:, :2]).max(axis=2).min(axis=1)
    return tuple(int(pin) for pin in np.flatnonzero(away <= _TOUCHED))
