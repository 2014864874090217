"""The window-beta metric against a plain implementation of its definition."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinspect.core.images import to_gray
from pinspect.nsoartc.alignment import align, warp
from pinspect.nsoartc.unit_space import build_unit_space, even_light
from pinspect.nsoartc.window_beta import distance_image, double_eye, nsoartc
from pinspect.virtual_line import LineSetup, Pins, render, tolerated_pins
from tests.support.sample import params


def by_definition(y, x, window, stride):
    """Return beta, delta and DST, computed window by window in float64."""
    rows, columns = ((side - window) // stride + 1 for side in x.shape)
    beta, delta, distance = np.empty((3, rows, columns))
    for row in range(rows):
        for column in range(columns):
            part = np.s_[row * stride : row * stride + window, column * stride : column * stride + window]
            a, b = x[part].astype(np.float64).ravel(), y[part].astype(np.float64).ravel()
            dark = a @ a < 1e-5
            beta[row, column] = 1 if dark else (a @ b) / (a @ a)
            delta[row, column] = 0 if dark else b.sum() / a.sum() - beta[row, column]
            distance[row, column] = np.abs(b - beta[row, column] * a).mean()
    return beta, delta, distance


def picture(seed, height=41, width=58):
    """Return a gray picture with structure, a dark corner and a flat part."""
    rng = np.random.default_rng(seed)
    gray = rng.random((height, width), np.float32)
    gray[:14, :14] = 0
    gray[20:, 30:] = 0.4
    return gray


def assert_equal(results, expected):
    """Compare within 32 float32 ulps of the largest term, because delta is the difference of two such terms."""
    largest_term = max(1, np.abs(expected[0]).max(), np.abs(expected[0] + expected[1]).max())
    for name, ours, theirs in zip(("beta", "delta", "DST"), results, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=32 * 2**-24 * largest_term, err_msg=name)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 7, 9, 11])
@pytest.mark.parametrize("window", [1, 5, 9])
def test_every_window_matches_the_definition(window, stride):
    y, x = picture(1), picture(2)
    assert_equal(nsoartc(y, x, window, stride), by_definition(y, x, window, stride))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 6), st.integers(0, 20), st.integers(0, 20),
    st.floats(0.001, 1),
)  # fmt: skip
def test_the_definition_holds_for_any_size_stride_and_brightness(seed, window, stride, more_rows, more_columns, level):
    rng = np.random.default_rng(seed)
    y, x = rng.random((2, window + more_rows, window + more_columns)).astype(np.float32)
    assert_equal(
        nsoartc(y, x * np.float32(level), window, stride), by_definition(y, x * np.float32(level), window, stride)
    )


def test_a_batch_gives_the_results_of_its_single_images():
    x = picture(3)
    batch = np.stack([picture(seed) for seed in (4, 5, 6)])
    together = nsoartc(batch, x, 9, 2)
    for number, image in enumerate(batch):
        for of_batch, alone in zip(together, nsoartc(image, x, 9, 2), strict=True):
            np.testing.assert_array_equal(of_batch[number], alone)


def test_a_dark_reference_window_has_no_ratio_but_still_shows_light():
    x, y = np.zeros((20, 20), np.float32), np.full((20, 20), 0.25, np.float32)
    beta, delta, distance = nsoartc(y, x, 9)
    assert (beta == 1).all() and (delta == 0).all()
    np.testing.assert_allclose(distance, 0.25, rtol=1e-6)


def test_a_flat_image_is_all_rotation():
    x, y = np.full((20, 20), 0.5, np.float32), np.full((20, 20), 0.2, np.float32)
    beta, delta, distance = nsoartc(y, x, 9)
    np.testing.assert_allclose(beta, 0.4, rtol=1e-6)
    np.testing.assert_allclose(delta, 0, atol=1e-6)
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_an_image_smaller_than_the_window_is_refused():
    small = np.ones((8, 30), np.float32)
    with pytest.raises(ValueError, match="30 x 8 px holds no window of 9 px"):
        nsoartc(small, small, 9)


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"found \(20, 21\) and \(20, 20\)"):
        nsoartc(np.ones((20, 21), np.float32), np.ones((20, 20), np.float32), 9)


@pytest.mark.parametrize("stride", [1, 4])
def test_memory_stays_at_a_few_images_however_large_the_batch(stride):
    x = np.random.default_rng(0).random((260, 640), np.float32)
    batch = np.stack([x] * 12)
    results = sum(result.nbytes for result in nsoartc(batch, x, 9, stride))
    tracemalloc.start()
    nsoartc(batch, x, 9, stride)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - results < 10 * x.nbytes


def test_one_gain_for_the_image_keeps_the_missing_pin_that_window_beta_hides():
    x = np.full((60, 60), 0.05, np.float32)
    x[20:40, 20:40] = 0.8
    y = np.full((60, 60), 0.05, np.float32)  # the pin is gone
    of_window, of_image = nsoartc(y, x, 9)[2], distance_image(y, x, 9)
    assert of_window[26, 26] < 1e-6  # at the pin's former center
    np.testing.assert_allclose(of_image[26, 26], 0.75, rtol=1e-5)


def seen_by(eye: float, pins: Pins, seed: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """Return a capture by a camera `eye` degrees from the vertical, and the box of its pin field."""
    setup = dataclasses.replace(LineSetup("CYLN"), camera_tilt=(0.0, eye), place_jitter_px=(0.5, 0.5))
    rendered = render(np.random.default_rng(seed), setup, pins, params().layout.layout())
    return to_gray(rendered.image), rendered.field_box


def distances_of_both_eyes(pins: Pins) -> tuple[np.ndarray, np.ndarray]:
    """Return |distance_left - distance_right| and the mean distance at each pin, both float32 (pins,)."""
    layout, rng = params().layout.layout(), np.random.default_rng(0)
    distances, spaces = [], []
    for eye in (-3.0, 3.0):
        passed = [tolerated_pins(rng, LineSetup("CYLN", tilt_tolerance=0.2), layout) for _ in range(6)]
        references, boxes = zip(*(seen_by(eye, each, seed) for seed, each in enumerate(passed)), strict=True)
        names = [f"reference {number}" for number in range(6)]
        space = build_unit_space(references, names, boxes, "CYLN", layout, params().dst)
        gray, _ = seen_by(eye, pins, 99)
        evened = even_light(warp(gray, align(gray, space.mean, 40), space.size), space.templates)
        half = params().dst.window // 2
        spaces.append(space)
        distances.append(np.pad(distance_image(evened, space.mean, params().dst.window), half, mode="edge"))
    difference = np.abs(double_eye(*distances, spaces[0].cell_box, spaces[1].cell_box))
    pitch = round(spaces[0].pitch / 2)
    cells = [
        np.s_[round(y) - pitch : round(y) + pitch, round(x) - pitch : round(x) + pitch]
        for x, y in spaces[0].pin_centers
    ]
    left = [distances[0][cell].mean() for cell in cells]
    return np.array([difference[cell].mean() for cell in cells]), np.array(left)


def test_equal_differences_of_both_eyes_cancel_and_a_height_difference_remains():
    layout = params().layout.layout()
    stained, low = layout.index(layout.address("X:3, Y:C")), layout.index(layout.address("X:6, Y:C"))
    pins = tolerated_pins(np.random.default_rng(5), LineSetup("CYLN", tilt_tolerance=0.2), layout)
    pins.gray[stained], pins.height[low] = 0.5, 0.5
    difference, one_eye = distances_of_both_eyes(pins)
    assert one_eye.argmax() == stained and one_eye[low] > 2 * np.median(one_eye)
    assert difference.argmax() == low
    assert difference[stained] / one_eye[stained] < 0.6 * difference[low] / one_eye[low]
