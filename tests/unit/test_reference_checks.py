"""Before anything is trained, remarks name what the references of a line lack."""

import numpy as np
import pytest

from pinspect.core.errors import UnitSpaceError
from pinspect.core.images import read_image
from pinspect.core.lines import Line
from pinspect.nsoartc.reference_checks import check_spread, mixed_eyes
from pinspect.nsoartc.unit_space import build_unit_space
from pinspect.virtual_line import LineSetup, render, tolerated_pins
from tests.support.sample import ROOT, params

LAYOUT = params().layout.layout()


SETUP = LineSetup("CYLN")
NAMES = [f"r{number}" for number in range(6)]


def shots(seeds: range) -> list[np.ndarray]:
    generators = [np.random.default_rng([5, seed]) for seed in seeds]
    return [render(rng, SETUP, tolerated_pins(rng, SETUP, LAYOUT), LAYOUT).image for rng in generators]


def checked(images: list[np.ndarray]) -> str:
    space = build_unit_space(images, NAMES, None, "CYLN", LAYOUT, params().dst)
    return check_spread(images, NAMES, space, 40)


def test_references_of_several_connectors_need_no_remark():
    assert not checked(shots(range(6)))


def test_repeated_shots_of_one_connector_are_too_alike():
    (image,), rng = shots(range(1)), np.random.default_rng(0)
    noisy = [np.roll(image, shot, axis=1) + rng.normal(0, 3, image.shape) for shot in range(6)]
    remark = checked([np.clip(each, 0, 255).astype(np.uint8) for each in noisy])
    assert "take each reference of another passed connector" in remark


def test_references_of_two_cameras_are_refused_with_their_names():
    folder = ROOT / "lines/series/data/captures/images"
    images = [
        np.asarray(read_image(next(folder.glob(f"OK_camera{shot}_{eye}_*.jpg")))) for eye in (0, 2) for shot in range(3)
    ]
    with pytest.raises(UnitSpaceError, match=r"two views: r0, r1, r2; and r3, r4, r5\. A left and a right camera"):
        checked(images)


def test_references_with_and_without_an_eye_are_remarked_on():
    left, right, shared = (Line("camera", "CYLN", eye) for eye in ("left", "right", ""))
    assert not mixed_eyes([left, right, Line("camera", "SQUR"), Line("virtual", "CYLN")])
    for lines in ((left, right, shared), (left, shared)):
        (remark,) = mixed_eyes(lines)
        assert "camera line, shape CYLN: some references have no eye in their names" in remark
