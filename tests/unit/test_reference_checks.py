"""Before anything is trained, remarks name what the references of a line lack."""

import numpy as np
import pytest

from pinspect.core.lines import Line
from pinspect.nsoartc.reference_checks import mixed_eyes, too_alike
from pinspect.nsoartc.unit_space import build_unit_space
from pinspect.virtual_line import LineSetup, render, tolerated_pins
from tests.support.sample import params

LAYOUT = params().layout.layout()


@pytest.mark.parametrize("connectors", [1, 6])
def test_repeated_shots_of_one_connector_are_too_alike(connectors):
    setup = LineSetup("CYLN")
    images = []
    for shot in range(6):
        pins = tolerated_pins(np.random.default_rng(shot % connectors), setup, LAYOUT)
        images.append(render(np.random.default_rng(1 + shot), setup, pins, LAYOUT).image)
    if connectors == 1:  # one shot with other noise, and moved
        rng = np.random.default_rng(0)
        noisy = [np.roll(images[0], shot, axis=1) + rng.normal(0, 3, images[0].shape) for shot in range(6)]
        images = [np.clip(image, 0, 255).astype(np.uint8) for image in noisy]
    space = build_unit_space(images, [f"r{n}" for n in range(6)], None, "CYLN", LAYOUT, params().dst)
    remark = too_alike(images, space, 40)
    assert ("take each reference of another passed connector" in remark) == (connectors == 1)


def test_references_with_and_without_an_eye_are_remarked_on():
    left, right, shared = (Line("camera", "CYLN", eye) for eye in ("left", "right", ""))
    assert not mixed_eyes([left, right, Line("camera", "SQUR"), Line("virtual", "CYLN")])
    for lines in ((left, right, shared), (left, shared)):
        (remark,) = mixed_eyes(lines)
        assert "camera line, shape CYLN: some references have no eye in their names" in remark
