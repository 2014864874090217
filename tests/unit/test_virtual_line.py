"""The virtual line: labeled captures, reproducible by seed, that resemble a camera line's."""

import dataclasses
import hashlib

import cv2
import numpy as np
import pytest

from pinspect import virtual_line
from pinspect.core.drawings import ModeDrawing
from pinspect.core.layout import Layout
from pinspect.core.params import VirtualParams
from pinspect.virtual_line.line import training_shares

LAYOUT = Layout(("U", "C", "D"), 9)
SHAPES = ("CYLN", "SQUR")
LEAN, LOWER, ABSENT = ModeDrawing(draw="lean"), ModeDrawing(draw="lower"), ModeDrawing(draw="absent")
MODES = {"bend": LEAN, "retract": LOWER, "missing": ABSENT}


def params(**changes) -> VirtualParams:
    return VirtualParams(**({"train": 6, "test": 4, "references": 2, "defective_share": 0.5, "seed": 3} | changes))


def line(**changes) -> list[virtual_line.VirtualCapture]:
    return list(virtual_line.render_line(LAYOUT, SHAPES, MODES, params(**changes)))


@pytest.mark.parametrize(("rows", "columns"), [("A", 2), ("AB", 10), ("ABCD", 6), ("ABCD", 12)])
def test_a_default_image_holds_all_pins_of_any_layout(rows, columns):
    params = VirtualParams(train=2, test=0, references=2, defective_share=0, seed=4)
    for capture in virtual_line.render_line(Layout(tuple(rows), columns), ("CYLN", "SQUR"), {}, params):
        height, width = cv2.imdecode(np.frombuffer(capture.jpeg, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        x0, y0, x1, y1 = capture.field_box
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert width - (x1 - x0) < 2 * 66 and height - (y1 - y0) < 2 * 66


@pytest.mark.parametrize(("draw", "in_the_middle"), [("lower", True), ("higher", True), ("lean", False)])
def test_training_shows_a_defect_more_often_where_it_is_hard_to_see(draw, in_the_middle):
    shares = training_shares(ModeDrawing(draw=draw), LAYOUT)
    assert shares.sum() == pytest.approx(1)
    middle, corner = LAYOUT.addresses.index(LAYOUT.address("X:5, Y:C")), 0
    assert (shares[middle] > 2.5 * shares[corner]) if in_the_middle else (shares[corner] > 2.5 * shares[middle])
    assert training_shares(ModeDrawing(draw="absent"), LAYOUT) is None


def test_the_same_seed_renders_the_same_bytes():
    first, second = line(), line()
    assert [capture.jpeg for capture in first] == [capture.jpeg for capture in second]
    assert first[0].jpeg != line(seed=4)[0].jpeg


def test_asking_for_more_captures_changes_none_of_the_others():
    few = {capture.name: hashlib.sha256(capture.jpeg).digest() for capture in line()}
    more = {capture.name: hashlib.sha256(capture.jpeg).digest() for capture in line(train=9, test=5, validation=2)}
    assert few.items() <= more.items()
    assert len(more) == len(few) + 6


def test_references_are_passed_and_never_tested():
    references = [capture for capture in line() if capture.role == "reference"]
    assert len(references) == 4
    assert {(capture.judgement, capture.split) for capture in references} == {("passed", "train")}


def test_labels_agree_among_themselves():
    for capture in line(train=40, test=0):
        passed = capture.judgement == "passed"
        assert passed == (capture.defect_mode == "passed") == (capture.defect_position == "passed")
        assert passed == (capture.pin_box is None)
        if not passed:
            LAYOUT.address(capture.defect_position)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_missing_pin_is_dark_and_its_neighbors_are_not(shape):
    setup = virtual_line.LineSetup(shape=shape, place_jitter_px=(0.0, 0.0))
    grays = []
    for removed in (False, True):
        rng = np.random.default_rng(5)
        pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
        if removed:
            virtual_line.change_pin(pins, 13, ABSENT, rng, LAYOUT, setup)
        rendered = virtual_line.render(np.random.default_rng(9), setup, pins, LAYOUT)
        grays.append(cv2.cvtColor(rendered.image, cv2.COLOR_RGB2GRAY).astype(float))
    x, y = (round(value) for value in setup.center_px)
    here, pitch = np.s_[y - 8 : y + 8, x - 8 : x + 8], round(setup.pitch_px)
    beside = np.s_[y - 8 : y + 8, x + pitch - 8 : x + pitch + 8]
    assert grays[1][here].mean() < 0.4 * grays[0][here].mean()
    assert grays[1][beside].mean() == pytest.approx(grays[0][beside].mean(), rel=0.05)


def test_a_retracted_pin_moves_towards_the_middle_of_the_picture():
    setup = virtual_line.LineSetup(shape="CYLN", place_jitter_px=(0.0, 0.0))
    boxes = []
    for share in (1.0, 0.5):
        rng = np.random.default_rng(5)
        pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
        pins.height[0] = share
        boxes.append(virtual_line.render(np.random.default_rng(9), setup, pins, LAYOUT).pin_boxes[0])
    assert boxes[1][0] > boxes[0][0] + 8
    assert boxes[1][1] > boxes[0][1] + 1


def test_a_bent_pin_covers_no_neighbor():
    setup = virtual_line.LineSetup(shape="CYLN")
    feet = np.stack([np.tile(np.arange(9), 3), np.repeat(np.arange(3), 9)], axis=1)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
        virtual_line.change_pin(pins, 13, LEAN, rng, LAYOUT, setup)
        assert 7 <= pins.lean[13] <= 20
        reach = setup.pin_height * pins.height[13] * np.sin(np.radians(pins.lean[13]))
        top = feet[13] + reach * np.array([np.cos(pins.lean_direction[13]), np.sin(pins.lean_direction[13])])
        assert np.linalg.norm(np.delete(feet, 13, axis=0) - top, axis=1).min() > setup.pin_width


@pytest.mark.parametrize("drawing", [LEAN, ModeDrawing(draw="lean", direction="left"), ModeDrawing(draw="lower")])
def test_training_captures_show_small_defects_more_often_and_large_ones_too(drawing):
    setup, amounts = virtual_line.LineSetup(shape="CYLN"), {}
    for skew in (1.0, 2.0):
        amounts[skew] = []
        for seed in range(200):
            pins = virtual_line.tolerated_pins(np.random.default_rng(0), setup, LAYOUT)
            before = pins.height[13]
            virtual_line.change_pin(pins, 13, drawing, np.random.default_rng(seed), LAYOUT, setup, skew=skew)
            lowered = 1 - pins.height[13] / before
            amounts[skew].append((pins.lean[13] - 7) / 13 if drawing.draw == "lean" else (lowered - 0.2) / 0.4)
    assert np.median(amounts[1.0]) == pytest.approx(0.5, abs=0.1)
    assert np.median(amounts[2.0]) == pytest.approx(0.25, abs=0.1)
    assert max(amounts[2.0]) > 0.75


def test_the_field_box_hugs_the_tops():
    setup = virtual_line.LineSetup(shape="SQUR", pin_width=0.46, place_jitter_px=(0.0, 0.0))
    rng = np.random.default_rng(0)
    rendered = virtual_line.render(rng, setup, virtual_line.tolerated_pins(rng, setup, LAYOUT), LAYOUT)
    x0, y0, x1, y1 = rendered.field_box
    assert (x1 - x0) / setup.pitch_px == pytest.approx(8.46, abs=0.15)
    assert (y1 - y0) / setup.pitch_px == pytest.approx(2.46, abs=0.15)


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pin_leans_where_its_mode_declares(shape, direction, axis, sign):
    setup = virtual_line.LineSetup(shape=shape, place_jitter_px=(0.0, 0.0))
    for seed in range(5):
        centers = []
        for leans in (False, True):
            rng = np.random.default_rng(seed)
            pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
            if leans:
                drawing = ModeDrawing(draw="lean", direction=direction)
                virtual_line.change_pin(pins, 13, drawing, rng, LAYOUT, setup)
            image = virtual_line.render(np.random.default_rng(9), setup, pins, LAYOUT).image.mean(axis=2)
            x, y = (round(value) for value in setup.center_px)
            part = (image[y - 60 : y + 60, x - 60 : x + 60] > 0.6 * image.max()).astype(np.uint8)
            label = cv2.connectedComponents(part)[1]
            top = label == np.bincount(label[30:90, 30:90][label[30:90, 30:90] > 0]).argmax()
            centers.append([np.flatnonzero(top.any(0)).mean(), np.flatnonzero(top.any(1)).mean()])
        moved = np.subtract(centers[1], centers[0])
        assert sign * moved[axis] > 6
        assert abs(moved[1 - axis]) < 0.5 * abs(moved[axis])


def connector(setup: virtual_line.LineSetup, seed: int = 0) -> virtual_line.Rendered:
    rng = np.random.default_rng(seed)
    return virtual_line.render(rng, setup, virtual_line.tolerated_pins(rng, setup, LAYOUT), LAYOUT)


def test_a_set_up_determines_its_captures():
    first, second = (virtual_line.random_setup(np.random.default_rng(3), "SQUR") for _ in range(2))
    assert first == second != virtual_line.random_setup(np.random.default_rng(4), "SQUR")
    assert np.array_equal(connector(first).image, connector(second).image)


def test_pins_and_floor_have_their_colors():
    setup = virtual_line.LineSetup(
        "CYLN",
        pin_color=(0.2, 0.7, 0.4),
        floor_color=(0.1, 0.1, 0.6),
        place_jitter_px=(0.0, 0.0),
        tint=0.0,
        shadow=0.0,
    )
    x, y = (round(value) for value in setup.center_px)
    image = connector(setup).image.astype(float)
    pin, floor = image[y, x], image[y + round(setup.pitch_px / 2), x + round(setup.pitch_px / 2)]
    assert pin / pin.sum() == pytest.approx(np.array([0.2, 0.7, 0.4]) / 1.3, abs=0.03)
    assert floor / floor.sum() == pytest.approx(np.array([0.1, 0.1, 0.6]) / 0.8, abs=0.06)


def test_two_lamps_throw_two_shadows_of_their_own_light():
    lamps = [virtual_line.Lamp((0.0, side * 6.0, 8.0), 0.5) for side in (-1, 1)]
    plain = virtual_line.LineSetup("CYLN", place_jitter_px=(0.0, 0.0), floor_color=(0.6, 0.6, 0.6), shadow=1.0)
    x, y = (round(value) for value in plain.center_px)
    above = np.s_[y - 100 : y - 90, x - 4 : x + 4]  # beyond the upper row
    below = np.s_[y + 90 : y + 100, x - 4 : x + 4]
    dark = {}
    for name, chosen in (("upper", lamps[:1]), ("lower", lamps[1:]), ("both", lamps)):
        shaded = connector(dataclasses.replace(plain, lamps=tuple(chosen))).image.astype(float)
        lit = connector(dataclasses.replace(plain, lamps=tuple(chosen), shadow=0.0)).image.astype(float)
        dark[name] = [(shaded[part].mean() / lit[part].mean()) < 0.75 for part in (above, below)]
    assert dark == {"upper": [False, True], "lower": [True, False], "both": [True, True]}


def test_the_eyes_of_a_pair_see_opposite_sides_of_a_pin():
    middle = 13
    boxes = {}
    for eye in (-1.5, 1.5):
        setup = virtual_line.LineSetup("CYLN", camera_offset=(eye, 0.0), place_jitter_px=(0.0, 0.0), tilt_tolerance=0.0)
        rendered = connector(setup)
        boxes[eye] = rendered.pin_boxes[middle]
        assert np.mean(rendered.field_box[::2]) == pytest.approx(setup.center_px[0], abs=2)
    top = virtual_line.LineSetup("CYLN").pin_width * virtual_line.LineSetup("CYLN").pitch_px
    center = virtual_line.LineSetup("CYLN").center_px[0]
    assert boxes[-1.5][0] < center - top / 2 - 6 and boxes[1.5][2] > center + top / 2 + 6
    assert boxes[-1.5][2] == pytest.approx(center + top / 2, abs=1.5)


def test_a_connector_is_turned_within_the_range_of_its_line():
    setup = virtual_line.LineSetup("CYLN", turn=4.0, place_jitter_px=(0.0, 0.0))
    slopes = []
    for seed in range(8):
        boxes = connector(setup, seed).pin_boxes[9:18]
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        slopes.append(np.degrees(np.arctan2(middles[-1, 1] - middles[0, 1], middles[-1, 0] - middles[0, 0])))
    assert 1 < np.max(np.abs(slopes)) < 4.5
    assert min(slopes) < 0 < max(slopes)


def test_a_higher_pin_moves_away_from_the_middle_of_the_picture():
    setup = virtual_line.LineSetup(shape="CYLN", place_jitter_px=(0.0, 0.0))
    boxes = []
    for changed in (False, True):
        rng = np.random.default_rng(5)
        pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
        if changed:
            virtual_line.change_pin(pins, 0, ModeDrawing(draw="higher"), rng, LAYOUT, setup)
        boxes.append(virtual_line.render(np.random.default_rng(9), setup, pins, LAYOUT).pin_boxes[0])
    assert boxes[1][0] < boxes[0][0] - 8


@pytest.mark.parametrize("shape", SHAPES)
def test_random_lines_show_their_pins(shape):
    """The tops of the pins differ from the floor between them, whatever the line looks like."""
    sizes = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        still = {"turn": 0.0, "place_jitter_px": (0.0, 0.0), "shadow": 0.0}
        setup = dataclasses.replace(virtual_line.random_setup(rng, shape), **still)
        image = connector(setup, seed).image
        x, y = (round(value) for value in setup.center_px)
        half = round(setup.pitch_px / 2)
        pin, floor = (image[v - 2 : v + 3, u - 2 : u + 3].mean(axis=(0, 1)) for u, v in ((x, y), (x + half, y + half)))
        assert np.abs(pin - floor).max() > 20
        sizes.add(image.shape[:2])
    assert len(sizes) > 5


def test_a_line_takes_size_and_colors_from_references():
    blue = virtual_line.LineSetup(
        "CYLN", image_width=720, image_height=400, pin_color=(0.6, 0.85, 0.8), floor_color=(0.1, 0.15, 0.5),
        center_px=(360.0, 200.0), table_color=(0.7, 0.7, 0.7), tint=0.0,
    )  # fmt: skip
    references = [connector(blue, seed).image for seed in range(3)]
    like = virtual_line.setup_like(references, virtual_line.default_setup("CYLN", LAYOUT), LAYOUT)
    assert (like.image_width, like.image_height) == (720, 400)
    assert like.floor_color[2] > 2 * like.floor_color[0] and like.pin_color[1] > like.pin_color[0] + 0.1
    assert like.table_color[0] == pytest.approx(like.table_color[2], abs=0.05)
    rendered = connector(like)
    assert rendered.image.shape == (400, 720, 3)
    x0, y0, x1, y1 = rendered.field_box
    assert 0 < x0 < 100 and 620 < x1 < 720 and 0 < y0 < y1 < 400


def test_a_shape_that_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match="HEXA"):
        list(virtual_line.render_line(LAYOUT, ("HEXA",), MODES, params()))
