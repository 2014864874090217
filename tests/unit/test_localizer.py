"""The localizer reads score, address and bend direction off a DST picture alone."""

import cv2
import numpy as np
import pytest

from pinspect.core.drawings import NAMED_DIRECTIONS
from pinspect.core.layout import Layout
from pinspect.nsoartc.distance import dst_picture, nsoartc
from pinspect.nsoartc.localizer import direction_of, localize
from pinspect.nsoartc.pixels import LUMINANCE

LAYOUT = Layout(("U", "C", "D"), 9)
PITCH = 40
CENTERS = np.array([(40 + PITCH * column, 40 + PITCH * row) for row in range(3) for column in range(9)], np.float32)
TEAL, GRAY, HOUSING = (0.70, 0.85, 0.83), (0.8, 0.8, 0.8), (0.1, 0.12, 0.3)
SHIFTS = {"X-plus": (9, 0), "X-minus": (-9, 0), "Y-plus": (0, -9), "Y-minus": (0, 9)}


def photograph(seed: int, color=TEAL, shifts=None, missing=()) -> np.ndarray:
    """Pins of one color in a blue housing, each a little out of place, some shifted (px) or missing."""
    rng = np.random.default_rng(seed)
    image = np.empty((160, 400, 3), np.float32)
    image[:] = HOUSING if color == TEAL else (0.1, 0.1, 0.1)
    for pin, (x, y) in enumerate(CENTERS + rng.normal(0, 0.3, CENTERS.shape)):
        if pin in missing:
            continue
        dx, dy = (shifts or {}).get(pin, (0, 0))
        place = (round(16 * (x + dx)), round(16 * (y + dy)))
        cv2.circle(image, place, 16 * 11, color, -1, cv2.LINE_AA, shift=4)
    return np.clip(image * rng.uniform(0.95, 1.05) + rng.normal(0, 0.005, image.shape), 0, 1).astype(np.float32)


def picture(capture: np.ndarray, color=TEAL) -> np.ndarray:
    reference = np.mean([photograph(seed, color) @ LUMINANCE for seed in range(6)], axis=0)
    return dst_picture(nsoartc(capture, reference, same_size=True), white=6)


@pytest.mark.parametrize("direction", NAMED_DIRECTIONS)
@pytest.mark.parametrize("pin", [0, 13, 25])
def test_a_bent_pin_gives_its_address_and_direction(direction, pin):
    result = localize(picture(photograph(50, shifts={pin: SHIFTS[direction]})), CENTERS, PITCH, LAYOUT)
    assert (result.address, result.direction) == (LAYOUT.addresses[pin], direction)
    x, y = SHIFTS[direction]
    assert np.dot(result.vector, (x, -y)) > 0


def test_a_missing_pin_gives_its_address():
    result = localize(picture(photograph(51, missing=(7,))), CENTERS, PITCH, LAYOUT)
    assert result.address == LAYOUT.addresses[7]
    assert result.pin_scores.shape == (27,) and result.score == result.pin_scores.max()


def test_the_score_separates_defective_from_passed_captures():
    passed = [localize(picture(photograph(seed)), CENTERS, PITCH, LAYOUT).score for seed in range(60, 66)]
    bent = [
        localize(picture(photograph(seed, shifts={seed % 27: (5, 0)})), CENTERS, PITCH, LAYOUT).score
        for seed in range(70, 76)
    ]
    assert min(bent) > max(passed)


def test_the_result_does_not_depend_on_the_pictures_scale():
    view = picture(photograph(52, shifts={4: (9, 0)})).astype(np.float32)
    first, second = (localize(view * gain, CENTERS, PITCH, LAYOUT) for gain in (1, 0.01))
    assert first.score == pytest.approx(second.score, rel=1e-4)
    assert (first.address, first.direction) == (second.address, second.direction)


def test_gray_pins_have_an_address_and_no_direction():
    result = localize(picture(photograph(53, GRAY, {3: (9, 0)}), GRAY), CENTERS, PITCH, LAYOUT)
    assert (str(result.address), result.direction, result.vector) == ("X:4, Y:U", "", (0.0, 0.0))


def test_a_black_picture_is_no_defect():
    result = localize(np.zeros((160, 400, 3), np.uint8), CENTERS, PITCH, LAYOUT)
    assert result.score == 0 and result.direction == ""


def test_the_larger_component_names_the_direction():
    assert [direction_of(vector) for vector in ((3, 1), (-3, 1), (1, 3), (1, -3), (0, 0))] == [*NAMED_DIRECTIONS, ""]


def test_other_arrays_are_refused():
    with pytest.raises(ValueError, match=r"found \(120, 400\)"):
        localize(np.zeros((120, 400)), CENTERS, PITCH, LAYOUT)
    with pytest.raises(ValueError, match=r"\(27, 2\), found \(26, 2\)"):
        localize(np.zeros((120, 400, 3)), CENTERS[:-1], PITCH, LAYOUT)
