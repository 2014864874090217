"""Alignment to the unit space: sub-pixel, independent of light, and refused if it is not possible."""

import cv2
import numpy as np
import pytest

from pinspect.core.errors import AlignmentError
from pinspect.core.images import to_gray
from pinspect.nsoartc.alignment import AlignmentTarget, warp
from pinspect.virtual_line import LineSetup, render, tolerated_pins
from tests.support.sample import params

LAYOUT = params().layout.layout()
STILL = LineSetup("CYLN", place_jitter_px=(0.0, 0.0), noise_range=(0.001, 0.002))


def photograph(*missing: str, seed: int = 1) -> np.ndarray:
    """Draw a capture; for one seed all pins except the missing pins are the same."""
    pins = tolerated_pins(np.random.default_rng(seed), STILL, LAYOUT)
    for address in missing:
        pins.present[LAYOUT.index(LAYOUT.address(address))] = 0
    return to_gray(render(np.random.default_rng(seed), STILL, pins, LAYOUT).image)


def moved(gray: np.ndarray, degrees: float = 0, scale: float = 1, shift=(0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Return the capture after a camera movement, and the matrix that reverses the movement."""
    height, width = gray.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    matrix[:, 2] += shift
    away = cv2.warpAffine(gray, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return away, cv2.invertAffineTransform(matrix)


def largest_error(matrix: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest alignment error of any pin, px."""
    corners = np.array([[40.0, 45, 1], [600, 45, 1], [40, 215, 1], [600, 215, 1]])
    return float(np.linalg.norm(corners @ matrix.T - corners @ expected.T, axis=1).max())


@pytest.mark.parametrize(
    "motion",
    [
        {"shift": (0.0, 0.0)},
        {"shift": (0.4, -0.3)},
        {"shift": (-17.3, 12.6)},
        {"shift": (31.5, -20.2)},
        {"degrees": 0.8},
        {"scale": 1.015},
        {"degrees": -0.6, "scale": 0.99, "shift": (9.7, -8.1)},
    ],
)
def test_a_moved_camera_is_found_to_a_third_of_a_pixel(motion):
    gray = photograph()
    away, back = moved(gray, **motion)
    alignment = AlignmentTarget(gray).align(away, 40)
    assert largest_error(alignment.matrix, back) < 0.3
    assert alignment.score > 0.99


@pytest.mark.parametrize("degrees", [-4, -2, 2, 4])
@pytest.mark.parametrize("scale", [0.97, 1.03])
def test_a_connector_that_is_shifted_turned_and_nearer_is_found(degrees, scale):
    mean = np.mean([photograph(seed=seed) for seed in range(20, 26)], axis=0)
    pitch = STILL.pitch_px
    for number, shift in enumerate(((0.3 * pitch, -0.3 * pitch), (-0.3 * pitch, 0.2 * pitch))):
        gray = photograph("X:2, Y:C", seed=3 + number)
        plain = AlignmentTarget(mean).align(gray, 40)
        away, back = moved(gray, degrees, scale, shift)
        expected = np.vstack([plain.matrix, [0, 0, 1]]) @ np.vstack([back, [0, 0, 1]])
        assert largest_error(AlignmentTarget(mean).align(away, 60).matrix, expected[:2]) < 1


@pytest.mark.parametrize("light", ["dimmer", "brighter", "from the left", "offset"])
def test_another_light_does_not_move_the_alignment(light):
    gray = photograph()
    away, back = moved(gray, shift=(7.3, -4.6))
    lit = {
        "dimmer": away * 0.4,
        "brighter": np.clip(away * 1.2, 0, 1),
        "from the left": away * np.linspace(1.2, 0.6, away.shape[1], dtype=np.float32),
        "offset": away * 0.8 + 0.1,
    }[light]
    assert largest_error(AlignmentTarget(gray).align(lit.astype(np.float32), 40).matrix, back) < 0.6


def test_one_missing_pin_does_not_move_the_alignment():
    mean = photograph()
    for address in ("X:5, Y:C", "X:1, Y:U", "X:9, Y:D"):
        away, back = moved(photograph(address), shift=(5.2, 3.1))
        assert largest_error(AlignmentTarget(mean).align(away, 40).matrix, back) < 0.4


def test_alignment_is_not_off_by_a_whole_pin():
    mean = np.mean([photograph(seed=seed) for seed in range(20, 26)], axis=0)
    for seed in range(2, 12):
        away, back = moved(photograph(seed=seed), shift=(28.0, -24.0))
        # These captures have other pins and other light.
        assert largest_error(AlignmentTarget(mean).align(away, 40).matrix, back) < 3


def test_the_aligned_capture_lies_over_the_mean():
    gray = photograph()
    away, _ = moved(gray, degrees=0.5, shift=(12.5, -7.5))
    laid = warp(away, AlignmentTarget(gray).align(away, 40), (640, 260))
    inner = np.s_[25:-25, 25:-25]
    assert np.abs(away[inner] - gray[inner]).mean() > 0.05
    assert np.abs(laid[inner] - gray[inner]).mean() < 0.004


def test_the_shift_is_reported():
    gray = photograph()
    away, _ = moved(gray, shift=(8.0, -5.0))
    np.testing.assert_allclose(AlignmentTarget(gray).align(away, 40).shift, (-8, 5), atol=0.1)


def test_a_picture_of_something_else_is_refused():
    mean, rng = photograph(), np.random.default_rng(0)
    noise = rng.random(mean.shape, np.float32)
    wood = cv2.GaussianBlur(noise, (0, 0), 15)
    for other in (
        noise,
        (wood - wood.min()) / np.ptp(wood),
        np.ascontiguousarray(np.rot90(mean[:, :260], 1).repeat(3, 1)[:, :640]),
    ):
        with pytest.raises(AlignmentError, match="shares no structure"):
            AlignmentTarget(mean).align(other, 40)


def test_a_flat_image_is_refused():
    with pytest.raises(AlignmentError, match="flat"):
        AlignmentTarget(photograph()).align(np.full((260, 640), 0.5, np.float32), 40)


def test_a_connector_too_far_off_its_place_is_refused():
    gray = photograph()
    away, _ = moved(gray, shift=(19.0, 0.0))
    with pytest.raises(AlignmentError, match=r"lies 19 px off its place, 12 px at most \(dst.maximum_shift\)"):
        AlignmentTarget(gray).align(away, 12)
