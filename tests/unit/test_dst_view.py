"""The DST picture: the real NSOARTC distance of an aligned capture, and nothing else."""

import dataclasses
import json
from functools import lru_cache

import cv2
import numpy as np
import pytest
from test_unit_space import DRAWINGS, LAYOUT, SETUPS, built, capture, unit_space

from pinspect.nsoartc.aligned import AlignedCapture, align_capture
from pinspect.nsoartc.alignment import AlignmentTarget, warp
from pinspect.nsoartc.distance import dst_picture, nsoartc
from pinspect.nsoartc.dst_view import double_eye, dst_view, localize_pin
from pinspect.nsoartc.light import without_light
from pinspect.nsoartc.unit_space import UnitSpace
from pinspect.virtual_line import LineSetup, Pins, render, tolerated_pins

DEFECT = LAYOUT.index(LAYOUT.address("X:7, Y:C"))


def seen(shape: str, seed: int, mode: str = "", space: UnitSpace | None = None) -> AlignedCapture:
    return align_capture(capture(shape, seed, mode, "X:7, Y:C").image, space or unit_space(shape), 40)


def tops(picture: np.ndarray, space: UnitSpace, share: float = 0.2) -> np.ndarray:
    """Return the brightness of the darkest channel on each pin's top: (pins,)."""
    stride = space.nsoartc.stride
    reach = round(share * space.pitch / stride)
    places = (space.pin_centers / stride).round().astype(int)
    return np.array(
        [picture[y - reach : y + reach, x - reach : x + reach].min(axis=-1).mean() for x, y in places.tolist()]
    )


@lru_cache
def space_with(**changes: object) -> UnitSpace:
    return built([capture("CYLN", seed) for seed in range(6)], **changes)


def test_the_picture_is_stage_1_of_the_aligned_color_capture_and_nothing_else():
    space = unit_space()
    image = capture("CYLN", 400, "bend", "X:7, Y:C").image
    aligned = align_capture(image, space, 40)
    color = without_light(warp(image, aligned.alignment, space.size), aligned.light)
    expected = dst_picture(nsoartc(color, space.mean, space.nsoartc, same_size=True), space.white)
    np.testing.assert_array_equal(dst_view(aligned), expected)


@pytest.mark.parametrize("shape", SETUPS)
@pytest.mark.parametrize("mode", DRAWINGS)
def test_a_defective_pin_is_bright_and_passed_pins_are_dim(shape, mode):
    space = unit_space(shape)
    picture = dst_view(seen(shape, 400, mode))
    assert picture.dtype == np.uint8 and picture.shape == (130, 320, 3)
    levels = tops(picture, space)
    assert levels.argmax() == DEFECT
    assert levels.max() > 80 and np.delete(levels, DEFECT).max() < 50
    assert tops(dst_view(seen(shape, 401)), space).max() < 60


def test_the_brightness_of_a_pin_does_not_depend_on_other_pins():
    space = unit_space()
    passed = space.mean.copy()
    passed[100:110, 200:210] += 0.05
    defective = passed.copy()
    x, y = space.pin_centers[26].round().astype(int)
    defective[y - 20 : y + 20, x - 20 : x + 20] = 0.05
    still = AlignmentTarget(space.mean).align(space.mean, 40)
    pictures = [dst_view(AlignedCapture(space, still, gray, gray)) for gray in (passed, defective)]
    np.testing.assert_allclose(pictures[0][:, :200], pictures[1][:, :200], atol=2)


def test_a_colored_pin_differs_in_its_channels():
    space = unit_space()
    image = capture("CYLN", 402).image.copy()
    x, y = space.pin_centers[13].round().astype(int)
    image[y - 25 : y + 25, x - 25 : x + 25, 0] //= 2
    red, green, blue = dst_view(align_capture(image, space, 40))[y // 2 - 4 : y // 2 + 4, x // 2 - 4 : x // 2 + 4].mean(
        axis=(0, 1)
    )
    assert red > 100 and max(green, blue) < 40


def test_white_is_a_constant_of_the_unit_space_and_a_multiple_of_the_references_distances():
    space = space_with()
    assert not space.per_picture
    assert space_with(white=6.0).white == pytest.approx(2 * space.white)
    assert dst_view(seen("CYLN", 401, space=space)).max() < 200
    passed = dst_view(seen("CYLN", 401, space=space)).astype(float)
    np.testing.assert_allclose(dst_view(seen("CYLN", 401, space=space_with(white=6.0))), passed / 2, atol=1)


def test_a_picture_can_be_scaled_by_its_own_maximum():
    space = space_with(scaling="per_picture")
    assert space.per_picture
    assert dst_view(seen("CYLN", 401, space=space)).max() == 255


def test_the_unit_space_keeps_the_parts_that_made_it(tmp_path):
    spot = np.zeros((9, 9))
    spot[4, 4] = 1
    parts = {"parts": ["LINE1", "spot"], "own_parts": {"spot": spot.tolist()}, "stride": 2, "p": 2.0}
    space = built([capture("CYLN", seed) for seed in range(5)], **parts)
    (tmp_path / "space.npz").write_bytes(space.packed())
    loaded = UnitSpace.load(tmp_path / "space.npz")
    assert loaded.nsoartc == space.nsoartc
    assert loaded.nsoartc.parts == ("LINE1", "spot") and json.dumps(loaded.nsoartc.own_parts["spot"])
    np.testing.assert_array_equal(
        dst_view(seen("CYLN", 400, "missing", loaded)), dst_view(seen("CYLN", 400, "missing", space))
    )


def test_a_stride_keeps_the_place_of_what_is_seen():
    x, y = space_with().pin_centers[DEFECT]
    for stride in (1, 4):
        space = space_with(stride=stride)
        picture = dst_view(seen("CYLN", 400, "missing", space))
        assert picture.shape[:2] == (260 // stride, 640 // stride)
        assert tops(picture, space).argmax() == DEFECT
        assert localize_pin(picture, space).address == LAYOUT.addresses[DEFECT]
        moments = cv2.moments((picture.min(axis=-1) > 128).astype(np.uint8))
        center = np.array([moments["m10"] / moments["m00"], moments["m01"] / moments["m00"], 1])
        np.testing.assert_allclose(space.picture_matrix @ center, (x, y), atol=0.3 * space.pitch)


def test_the_light_of_a_capture_does_not_change_its_picture():
    image = capture("CYLN", 403, "missing", "X:7, Y:C").image
    plain = dst_view(align_capture(image, unit_space(), 40)).astype(int)
    slope = np.linspace(1, 0.6, 640, dtype=np.float32)[None, :, None]
    for light in (np.float32(0.7), slope):
        lit = dst_view(align_capture((image * light).round().astype(np.uint8), unit_space(), 40))
        assert np.abs(lit - plain).mean() < 4


def eye(tilt: float, pins: Pins, seed: int):
    """Return a capture by a camera `tilt` degrees from the vertical."""
    setup = dataclasses.replace(LineSetup("CYLN"), camera_tilt=(0.0, tilt), place_jitter_px=(0.5, 0.5))
    return render(np.random.default_rng(seed), setup, pins, LAYOUT)


def test_equal_differences_of_both_eyes_cancel_and_a_height_difference_remains():
    stained, low = LAYOUT.index(LAYOUT.address("X:3, Y:C")), LAYOUT.index(LAYOUT.address("X:6, Y:C"))
    setup = LineSetup("CYLN", tilt_tolerance=0.2)
    pins = tolerated_pins(np.random.default_rng(5), setup, LAYOUT)
    pins.gray[stained], pins.height[low] = 0.5, 0.5
    rng, views = np.random.default_rng(0), []
    for tilt in (-3.0, 3.0):
        passed = [tolerated_pins(rng, setup, LAYOUT) for _ in range(6)]
        space = built([eye(tilt, each, seed) for seed, each in enumerate(passed)])
        views.append(align_capture(eye(tilt, pins, 99).image, space, 40))
    space = views[0].unit_space
    difference = np.abs(double_eye(*views).astype(int) - 128)[..., None]
    one_eye = tops(dst_view(views[0]), space, 0.5)
    assert sorted(np.argsort(one_eye)[-2:].tolist()) == sorted([stained, low])
    both = tops(difference, space, 0.5)
    assert both.argmax() == low
    assert both[stained] / one_eye[stained] < 0.6 * both[low] / one_eye[low]
