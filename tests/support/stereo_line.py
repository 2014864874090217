"""Captures of the virtual line by two cameras, one at the left and one at the right."""

import dataclasses

import numpy as np

from pinspect.virtual_line import LineSetup, Pins, VirtualCapture, encode_jpeg, render, tolerated_pins
from tests.support.sample import params

LAYOUT = params().layout.layout()
TILTS = {"left": -3.0, "right": 3.0}  # degrees from the vertical


def stereo(
    name: str, pins: Pins, seed: int, *, mode: str = "passed", position: str = "passed", role: str = "inspected"
):
    """Return the left and the right capture of one connector, named `<eye>_<name>`."""
    return [
        _capture(f"{eye}_{name}.jpg", tilt, pins, [seed, number], mode, position, role)
        for number, (eye, tilt) in enumerate(TILTS.items())
    ]


def passed_pins(seed: int) -> Pins:
    return tolerated_pins(np.random.default_rng(seed), LineSetup("CYLN", tilt_tolerance=0.2), LAYOUT)


def stereo_line(references: int = 5) -> list[VirtualCapture]:
    """Return references of both eyes, a passed connector, and a connector with a retracted pin."""
    captures = [
        capture
        for number in range(references)
        for capture in stereo(f"reference_{number}", passed_pins(number), 100 + number, role="reference")
    ]
    low = passed_pins(50)
    low.height[LAYOUT.index(LAYOUT.address("X:6, Y:C"))] *= 0.6
    return [
        *captures,
        *stereo("good_OK", passed_pins(51), 151),
        *stereo("low_RETRACTNG", low, 150, mode="retract", position="X:6, Y:C"),
    ]


def _capture(
    name: str, tilt: float, pins: Pins, seed: list[int], mode: str, position: str, role: str
) -> VirtualCapture:
    setup = dataclasses.replace(LineSetup("CYLN"), camera_tilt=(0.0, tilt), place_jitter_px=(2.0, 2.0))
    rendered = render(np.random.default_rng(seed), setup, pins, LAYOUT)
    judgement = "passed" if mode == "passed" else "defective"
    split = "train" if role == "reference" else "test"
    jpeg = encode_jpeg(rendered.image, 92)
    return VirtualCapture(name, "CYLN", judgement, mode, position, role, split, jpeg, rendered.field_box, None)
