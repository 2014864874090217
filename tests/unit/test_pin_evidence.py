"""What nobody labelled: how it is drawn, and that every differing pin stands out without a model and in the pin map."""

import cv2
import numpy as np
import pytest
from test_unit_space import DRAWINGS, LAYOUT, SETUPS, unit_space

from pinspect.inspection.records import pin_map
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.pin_evidence import pin_evidence
from pinspect.virtual_line import ForeignObject, render, render_unlabelled, tolerated_pins

THRESHOLD = 3.0  # of the localizer


def unlabelled(kind: str, shape: str, seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
    jpeg, pins = render_unlabelled(kind, np.random.default_rng([3, seed]), SETUPS[shape], LAYOUT, DRAWINGS)
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB), pins


def evidence_of(kind: str, shape: str, seed: int) -> tuple[np.ndarray, tuple[int, ...]]:
    image, pins = unlabelled(kind, shape, seed)
    return pin_evidence(align_capture(image, unit_space(shape), 40), THRESHOLD), pins


def changed(shape: str, change=lambda pins: None, objects=()) -> np.ndarray:
    """Return where a capture differs from the same capture without the change: bool (H, W)."""
    images = []
    for changes in (False, True):
        rng = np.random.default_rng(1)
        pins = tolerated_pins(rng, SETUPS[shape], LAYOUT)
        if changes:
            change(pins)
        images.append(render(rng, SETUPS[shape], pins, LAYOUT, objects if changes else ()).image.astype(int))
    return np.abs(images[1] - images[0]).max(axis=-1) > 8


def pin_box(shape: str, pin: int) -> tuple[int, ...]:
    rng = np.random.default_rng(1)
    pins = tolerated_pins(rng, SETUPS[shape], LAYOUT)
    return tuple(render(rng, SETUPS[shape], pins, LAYOUT).pin_boxes[pin].round().astype(int).tolist())


@pytest.mark.parametrize("shape", SETUPS)
@pytest.mark.parametrize("kind", ["two defects", "foreign pin", "wrong color"])
def test_every_differing_pin_stands_out(kind, shape):
    clear = 0
    for seed in range(4):
        evidence, pins = evidence_of(kind, shape, seed)
        assert len(pins) == (2 if kind == "two defects" else 1)
        assert set(np.argsort(-evidence)[: len(pins)].tolist()) == set(pins)
        clear += evidence[list(pins)].min() >= 0.5
    assert clear >= (3 if kind == "foreign pin" else 4)


@pytest.mark.parametrize("shape", SETUPS)
def test_no_pin_of_a_passed_capture_stands_out(shape):
    for seed in range(4):
        evidence, pins = evidence_of("passed", shape, seed)
        assert pins == () and 0 <= evidence.min() <= evidence.max() < 0.5


def test_the_pin_map_has_both_defects_though_the_model_names_one():
    evidence, (first, second) = evidence_of("two defects", "CYLN", 0)
    shares = np.full(27, 0.001 / 26)
    shares[first] = 0.999
    values = pin_map(evidence.tolist(), 0.98, shares.tolist())
    assert set(np.argsort(values)[-2:].tolist()) == {first, second}
    assert values[first] >= 0.97 and values[second] == evidence[second] and sum(values) > 1
    assert pin_map([0.2, 0.9], None, None) == [0.2, 0.9], "an answer without probabilities"


@pytest.mark.parametrize("shape", SETUPS)
def test_a_foreign_pin_and_a_color_change_one_pin_only(shape):
    x0, y0, x1, y1 = pin_box(shape, 13)

    def foreign(pins):
        pins.foreign[13] = True

    def tint(pins):
        pins.tint[13] = 1.0, 0.4, 0.4

    for change in (foreign, tint):
        differs = changed(shape, change)
        assert differs.any()
        differs[y0 - 4 : y1 + 5, x0 - 4 : x1 + 5] = False
        assert not differs.any()


def test_an_object_lies_on_the_pins_or_is_hidden_by_them():
    x0, y0, x1, y1 = pin_box("CYLN", 13)
    top = slice((y0 + y1) // 2 - 3, (y0 + y1) // 2 + 4), slice((x0 + x1) // 2 - 3, (x0 + x1) // 2 + 4)
    for on_pins in (True, False):
        path = np.array([[-0.6, 0, 1.6 * on_pins], [0.6, 0, 1.6 * on_pins]])
        differs = changed("CYLN", objects=[ForeignObject(path, 0.12, (0.8, 0.1, 0.1), closed=False, on_pins=on_pins)])
        assert differs.any() and differs[top].any() == on_pins


def test_captures_follow_their_seed_and_an_unknown_kind_is_refused():
    for kind in ("wire clipping", "washer"):
        (image, pins), (again, _), (other, _) = (unlabelled(kind, "CYLN", seed) for seed in (0, 0, 1))
        assert pins and (image == again).all() and (image != other).any()
    with pytest.raises(ValueError, match="found 'dust'"):
        unlabelled("dust", "CYLN", 0)
