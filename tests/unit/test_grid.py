"""The pin field is found by its grid in any look, and other structures are not."""

import cv2
import numpy as np
import pytest

from pinspect.core.errors import UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.nsoartc.grid import (
    MINIMUM_CONFIDENCE,
    draw_grid,
    find_grid,
    grid_from_box,
    grid_from_corners,
)
from tests.support.looks import LOOKS, Look, draw

LAYOUT = Layout(("U", "C", "D"), 9)


@pytest.mark.parametrize("name", LOOKS)
def test_the_grid_is_found_in_every_look(name):
    look = LOOKS[name]
    image, centers = draw(look)
    grid = find_grid(image, look.layout)
    assert np.linalg.norm(grid.centers - centers, axis=1).max() < 0.15 * look.pitch
    assert grid.confidence > 0.8
    assert grid.pitch == pytest.approx(look.pitch, rel=0.02)
    assert grid.diameter == pytest.approx(look.diameter * look.pitch, rel=0.2)


def test_a_field_box_hugs_the_outer_pins_tops():
    look = LOOKS["pale pins in a dark shell"]
    _, centers = draw(look)
    half = look.diameter * look.pitch / 2
    grid = grid_from_box((*(centers[0] - half), *(centers[-1] + half)), look.layout)
    np.testing.assert_allclose(grid.centers, centers, atol=0.01)
    assert grid.pitch == pytest.approx(look.pitch)


def test_a_grid_is_seen_in_another_image_where_its_pins_are():
    grid = grid_from_corners([(10, 20), (90, 22), (88, 52), (12, 48)], LAYOUT)
    matrix = np.array([[0.99, 0.05, 7], [-0.05, 1.01, -3]])
    np.testing.assert_allclose(grid.seen_in(matrix).centers, grid.centers @ matrix[:, :2].T + matrix[:, 2], atol=1e-4)


def other_image(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.random((260, 640), np.float32)
    match name:
        case "noise":
            return noise
        case "wood":
            smooth = cv2.GaussianBlur(noise, (0, 0), 6)
            return (smooth - smooth.min()) / np.ptp(smooth)
        case "stripes":
            return np.tile((np.sin(np.arange(640) / 8) > 0).astype(np.float32), (260, 1))
        case _:
            return draw(Look(layout=Layout(("U", "C", "D"), 8)))[0]  # one column fewer than the layout


@pytest.mark.parametrize("name", ["noise", "wood", "stripes", "another layout"])
def test_a_picture_without_a_pin_field_is_marked_doubtful(name):
    assert find_grid(other_image(name), LAYOUT).confidence < MINIMUM_CONFIDENCE


def test_a_field_of_more_columns_than_the_layout_is_doubtful():
    image, _ = draw(Look(layout=Layout(("U", "C", "D"), 10), pitch=56))
    assert find_grid(image, LAYOUT).confidence < MINIMUM_CONFIDENCE


def test_a_missing_pin_does_not_bend_the_grid():
    image, centers = draw(Look())
    x, y = centers[10].round().astype(int)
    image[y - 25 : y + 26, x - 25 : x + 26] = 0.12
    np.testing.assert_allclose(find_grid(image, LAYOUT).centers, centers, atol=1)


def test_four_corners_correct_the_grid():
    look = LOOKS["turned, in perspective, on a textured table"]
    _, centers = draw(look)
    grid = grid_from_corners(centers[[0, 8, 26, 18]], look.layout)
    assert np.linalg.norm(grid.centers - centers, axis=1).max() < 0.02 * look.pitch
    assert grid.confidence == 1


@pytest.mark.parametrize(
    ("corners", "layout", "message"),
    [
        ([(0, 0), (80, 0), (80, 20)], LAYOUT, r"found an array of shape \(3, 2\)"),
        ([(80, 0), (0, 0), (0, 20), (80, 20)], LAYOUT, "top left, top right, bottom right, bottom left"),
        ([(0, 0), (80, 0), (80, 20), (0, 20)], Layout(("A",), 5), "two rows and two columns"),
        ([(0, 0), (1, 0), (1, 0.2), (0, 0.2)], LAYOUT, r"0\.1 px apart, at least 8 px are needed"),
    ],
)
def test_corners_that_make_no_grid_are_refused(corners, layout, message):
    with pytest.raises(UnitSpaceError, match=message):
        grid_from_corners(corners, layout)


@pytest.mark.parametrize(
    ("image", "layout", "message"),
    [
        (np.full((260, 640), 0.5, np.float32), LAYOUT, "flat"),
        (np.zeros((20, 40), np.float32), LAYOUT, "40 x 20 px is too small"),
        (np.zeros((260, 640), np.float32), Layout(("A",), 1), "single pin"),
    ],
)
def test_images_without_a_possible_grid_are_refused(image, layout, message):
    with pytest.raises(UnitSpaceError, match=message):
        find_grid(image, layout)


def test_a_single_row_of_pins_is_found():
    look = Look(layout=Layout(("A",), 7), pitch=70)
    image, centers = draw(look)
    grid = find_grid(image, look.layout)
    assert np.linalg.norm(grid.centers - centers, axis=1).max() < 0.15 * look.pitch
    assert grid.confidence > 0.8


def test_the_drawn_grid_circles_every_pin():
    image, centers = draw(Look())
    photograph = (image[..., None].repeat(3, axis=-1) * 255).astype(np.uint8)
    picture = draw_grid(photograph, find_grid(image, LAYOUT))
    yellow = (picture[..., 0] > 200) & (picture[..., 2] < 60)
    for x, y in centers.round().astype(int):
        assert yellow[y - 20 : y + 21, x - 20 : x + 21].sum() > 40
