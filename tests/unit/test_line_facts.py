"""Line facts of a capture: a dimmed lamp changes brightness, a lens out of focus changes the background."""

import dataclasses

import cv2
import numpy as np
import pytest
from test_unit_space import built, capture

from pinspect.core.images import to_gray
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.nsoartc.aligned import align_capture, place_capture
from pinspect.nsoartc.alignment import AlignmentTarget
from pinspect.nsoartc.unit_space import UnitSpace


@pytest.fixture(scope="module")
def unit_space() -> UnitSpace:
    """A unit space of six passed references."""
    return built([capture("CYLN", seed) for seed in range(6)])


def facts_of(gray: np.ndarray, unit_space: UnitSpace) -> dict[str, float]:
    return line_facts(align_capture(gray, unit_space, 40))


def gray_of(seed: int) -> np.ndarray:
    return to_gray(capture("CYLN", seed).image)


def test_passed_captures_of_a_line_have_similar_facts(unit_space):
    samples = [facts_of(gray_of(seed), unit_space) for seed in range(20, 26)]
    assert {tuple(facts) for facts in samples} == {LINE_FACTS}
    assert all(0.05 < facts["brightness"] < 0.7 for facts in samples)
    assert all(0.01 < facts["dst_background"] < 0.3 for facts in samples)


def test_brightness_is_the_mean_of_the_pin_field_alone(unit_space):
    mean = unit_space.mean
    x0, y0, x1, y1 = map(round, unit_space.cell_box)
    still = dataclasses.replace(AlignmentTarget(mean).align(mean, 40), matrix=np.eye(2, 3, dtype=np.float32))
    expected = float(mean[y0:y1, x0:x1].mean())
    assert line_facts(place_capture(mean, still, unit_space))["brightness"] == pytest.approx(expected)
    around = np.ones_like(mean)
    around[y0:y1, x0:x1] = mean[y0:y1, x0:x1]
    assert line_facts(place_capture(around, still, unit_space))["brightness"] == pytest.approx(expected)


def test_a_lamp_that_dims_moves_brightness_by_its_share_and_leaves_the_background(unit_space):
    gray = gray_of(30)
    before, after = facts_of(gray, unit_space), facts_of(gray * np.float32(0.6), unit_space)
    assert after["brightness"] == pytest.approx(0.6 * before["brightness"], rel=0.01)
    assert after["dst_background"] == pytest.approx(before["dst_background"], rel=0.1)


def test_a_missing_pin_changes_neither_fact(unit_space):
    gray = gray_of(31)
    passed, half = facts_of(gray, unit_space), round(unit_space.pitch / 2)
    for x, y in unit_space.pin_centers[[0, 13, 26]].round().astype(int):
        emptied = gray.copy()
        emptied[y - half : y + half, x - half : x + half] = 0.05
        facts = facts_of(emptied, unit_space)
        assert facts["brightness"] == pytest.approx(passed["brightness"], rel=0.1)
        assert facts["dst_background"] == pytest.approx(passed["dst_background"], rel=0.25)


def test_a_lens_out_of_focus_moves_the_background(unit_space):
    gray = gray_of(34)
    blurred = cv2.GaussianBlur(gray, (0, 0), 5)
    assert facts_of(blurred, unit_space)["dst_background"] > 1.5 * facts_of(gray, unit_space)["dst_background"]


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (9, 3), (15, 4), (31, 16)])
def test_parts_of_any_size_and_step_measure_the_pin_field(size, stride):
    space = built([capture("CYLN", seed) for seed in range(6)], size=size, stride=stride)
    assert 0 < facts_of(gray_of(35), space)["dst_background"] < 1
