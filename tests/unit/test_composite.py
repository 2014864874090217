"""Composites: one pin, one cell, on whole visual tokens."""

import cv2
import numpy as np
import pytest

from pinspect.composites import drawing as composite
from pinspect.core.layout import Address, Layout
from pinspect.nsoartc.grid_fit import nodes_of, project

LAYOUT = Layout(("U", "C", "D"), 9)
CELL = 64


def field_of(value: int = 90) -> np.ndarray:
    return np.full((3 * CELL, 9 * CELL, 3), value, np.uint8)


UPRIGHT = np.array([[65.0, 0, 60], [0, 65, 70], [0, 0, 1]])
TURNED = np.array([[62.0, -4, 70], [4, 62, 50], [0, 0, 1]])
IN_PERSPECTIVE = np.array([[70.0, 3, 50], [-2, 60, 80], [0.015, 0.02, 1]])


@pytest.mark.parametrize("grid", [UPRIGHT, TURNED, IN_PERSPECTIVE], ids=["upright", "turned", "in perspective"])
def test_every_pin_of_the_capture_lands_in_the_middle_of_its_own_cell(grid):
    capture = np.zeros((260, 640, 3), np.uint8)
    for x, y in project(grid, nodes_of(LAYOUT)):
        cv2.circle(capture, (round(16 * x), round(16 * y)), 16 * 4, (255, 255, 255), -1, cv2.LINE_AA, shift=4)
    cells = composite.rectify(capture, np.eye(2, 3), grid, LAYOUT, CELL)[..., 0].reshape(3, CELL, 9, CELL)
    axis = np.arange(CELL) - (CELL - 1) / 2
    for row in range(3):
        for column in range(9):
            cell = cells[row, :, column].astype(float)
            assert abs((cell.sum(0) * axis).sum() / cell.sum()) < 0.3
            assert abs((cell.sum(1) * axis).sum() / cell.sum()) < 0.3


def test_rectifying_follows_the_alignment():
    capture = np.zeros((260, 640, 3), np.uint8)
    capture[100:110, 200:210] = 255
    still = composite.rectify(capture, np.eye(2, 3), TURNED, LAYOUT, CELL)
    shift = np.float32([[1, 0, 7], [0, 1, -5]])
    moved = composite.rectify(np.roll(capture, (5, -7), (0, 1)), shift, TURNED, LAYOUT, CELL)
    assert np.abs(still.astype(int) - moved).max() <= 8  # OpenCV interpolates in steps of 1/32 px


def test_a_composite_is_a_whole_number_of_tokens_wide_and_high():
    picture = composite.single(field_of(), LAYOUT, CELL)
    assert picture.shape == (4 * CELL, 10 * CELL, 3)
    assert composite.composite_size(LAYOUT, CELL) == (10 * CELL, 4 * CELL)
    assert np.array_equal(picture[CELL:, CELL:], field_of())


def test_every_column_and_row_has_its_yellow_name():
    picture = composite.single(field_of(), LAYOUT, CELL).astype(int)
    yellow = (picture[..., 0] > 150) & (picture[..., 1] > 120) & (picture[..., 2] < 60)
    for column in range(1, 10):
        assert yellow[:CELL, column * CELL : (column + 1) * CELL].sum() > 30
    for row in range(1, 4):
        assert yellow[row * CELL : (row + 1) * CELL, :CELL].sum() > 30
    assert not yellow[:CELL, :CELL].any()


def test_without_a_grid_the_pins_stay_where_they_are():
    bare, named = (composite.single(field_of(), LAYOUT, CELL, grid=grid) for grid in (False, True))
    assert np.array_equal(bare[CELL:, CELL:], named[CELL:, CELL:])
    assert not bare[:CELL].any() and not bare[:, :CELL].any()


@pytest.mark.parametrize("address", [Address(1, "U"), Address(9, "D"), Address(4, "C")])
def test_the_star_lies_on_the_addressed_pin_and_nowhere_else(address):
    plain = composite.single(field_of(), LAYOUT, CELL)
    starred = composite.draw_star(plain, address, LAYOUT, CELL)
    changed = (plain != starred).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert {address.column} == set(columns // CELL)
    assert {LAYOUT.rows.index(address.row) + 1} == set(rows // CELL)
    center = starred[int(rows.mean().round()), int(columns.mean().round())]
    assert center[0] > 200 and center[1] < 60
    assert not (plain != composite.single(field_of(), LAYOUT, CELL)).any(), "the plain composite is left as it was"


def test_a_stack_has_the_reference_on_top():
    passed, inspected = (composite.single(field_of(value), LAYOUT, CELL) for value in (10, 200))
    both = composite.stacked(passed, inspected)
    assert both.shape == (8 * CELL, 10 * CELL, 3)
    assert both[2 * CELL, 5 * CELL, 0] == 10
    assert both[6 * CELL, 5 * CELL, 0] == 200
