"""Captures as other cameras give them are brought to the unit space, or refused with a reason and a remedy."""

import io
import random
from functools import lru_cache

import cv2
import numpy as np
import pytest
from PIL import Image

from pinspect.core.errors import AlignmentError, ImageError, UnitSpaceError
from pinspect.core.images import decode_image
from pinspect.core.layout import Layout
from pinspect.nsoartc.aligned import AlignedCapture, align_capture, align_to_best
from pinspect.nsoartc.set_aside import set_aside_picture
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space
from pinspect.virtual_line import LineSetup, Rendered, change_pin, render, tolerated_pins
from tests.support.cameras import cropped, encoded, in_scene, resized
from tests.support.sample import params

LAYOUT = params().layout.layout()
SETUP = LineSetup("CYLN")
DST = params().dst


@lru_cache
def photograph(seed: int, missing: str = "") -> Rendered:
    rng = np.random.default_rng([11, seed])
    pins = tolerated_pins(rng, SETUP, LAYOUT)
    if missing:
        drawing = params().contract().drawings["missing"]
        change_pin(pins, LAYOUT.index(LAYOUT.address(missing)), drawing, rng, LAYOUT, SETUP)
    return render(rng, SETUP, pins, LAYOUT)


def built(images: list[np.ndarray]) -> UnitSpace:
    return build_unit_space(images, [f"r{n}.jpg" for n in range(len(images))], None, "CYLN", LAYOUT, DST)


@lru_cache
def unit_space() -> UnitSpace:
    return built([photograph(seed).image for seed in range(5)])


def aligned(image: np.ndarray) -> AlignedCapture:
    return align_capture(image, unit_space(), DST.maximum_shift)


def projected(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.column_stack([points, np.ones(len(points))]) @ np.asarray(matrix, np.float64)[:2].T


def largest_error(capture: AlignedCapture, usual: AlignedCapture, to_capture: np.ndarray) -> float:
    """Return the largest distance of a pin from its place in the usual photograph, pitches."""
    space = capture.unit_space
    pins = projected(space.pin_centers, cv2.invertAffineTransform(usual.alignment.matrix))
    places = projected(projected(pins, to_capture), capture.alignment.matrix)
    return float(np.linalg.norm(places - space.pin_centers, axis=1).max() / space.pitch)


@pytest.mark.parametrize(
    "camera",
    [
        resized(1920),
        resized(960),
        resized(400),
        resized(652, 260),
        in_scene(1920, 1080, 1.0),
        in_scene(1280, 720, 0.9),
        in_scene(640, 480, 0.55, (0.4, 0.6)),
        in_scene(640, 260, 0.7, (0.45, 0.5)),
        cropped(8, 14, 8, 14),
    ],
    ids=["1920", "960", "400", "2 % wider", "1920x1080", "1280x720", "4:3 half", "same size, smaller field", "cropped"],
)
def test_a_capture_of_another_camera_is_aligned_like_the_photograph_itself(camera):
    image = photograph(9, "X:4, Y:C").image
    seen = camera(image)
    capture, usual = aligned(seen.image), aligned(image)
    assert largest_error(capture, usual, seen.matrix) < 0.06
    assert capture.image.shape == usual.image.shape
    assert np.hypot(*capture.alignment.shift) < DST.maximum_shift
    if seen.image.shape[1] > 640:  # a smaller capture shows fewer details
        inner = np.s_[40:-40, 40:-40]
        assert np.abs(capture.gray - usual.gray)[inner].mean() < 0.02


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpeg"), ("L", "png"), ("RGBA", "png"), ("I;16", "png")])
def test_every_kind_of_pixel_and_exif_orientation_gives_the_same_place(mode, suffix, orientation):
    image = photograph(9).image
    decoded = np.asarray(decode_image(encoded(image, mode, suffix, orientation), "capture"))
    assert largest_error(aligned(decoded), aligned(image), np.eye(3)) < 0.06


def jpeg(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "jpeg")
    return content.getvalue()


def several(suffix: str) -> bytes:
    pictures = [Image.fromarray(photograph(seed).image) for seed in (1, 2)]
    content = io.BytesIO()
    pictures[0].save(content, suffix, save_all=True, append_images=pictures[1:])
    return content.getvalue()


def other_connector() -> np.ndarray:
    layout = Layout(("A", "B"), 5)
    rng = np.random.default_rng(3)
    setup = LineSetup("CYLN", center_px=(320.0, 130.0))
    return render(rng, setup, tolerated_pins(rng, setup, layout), layout).image


def noise(image: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, image.shape).astype(np.uint8)


def covered(image: np.ndarray) -> np.ndarray:
    hand = image.copy()
    hand[:, 200:] = (190, 150, 130)
    return hand


def shifted(image: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, np.array([[1, 0, 0], [0, 1, 46.0]]), image.shape[1::-1], borderMode=cv2.BORDER_REFLECT)


SPOILED = {
    "cut.jpg": (lambda image: jpeg(image)[:9000], "damaged or cut short .* copy or capture it again"),
    "empty.jpg": (lambda _: b"", "the file is empty .* copy or capture it again"),
    "zeros.jpg": (lambda _: bytes(4000), "not an image file"),
    "text.jpg": (lambda _: b"file,shape\n" * 40, "not an image file, .* expected JPEG, PNG"),
    "bytes.png": (lambda _: random.Random(1).randbytes(5000), "not an image file"),
    "animated.gif": (lambda _: several("gif"), "a GIF file; convert it to JPEG or PNG"),
    "phone.heic": (lambda _: b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC file; convert it"),
    "pages.png": (lambda _: several("png"), "the PNG file holds 2 pictures; save the capture alone"),
    "dot.jpg": (lambda image: jpeg(image[:20, :20]), "20 x 20 px is no photograph"),
    "huge.jpg": (
        lambda _: jpeg(np.zeros((1100, 1000, 3), np.uint8)),
        "more than raw.max_pixels allows .* crop the image",
    ),
    "gray.jpg": (lambda image: jpeg(np.full_like(image, 128)), "the image is flat"),
    "gray-4-3.jpg": (lambda _: jpeg(np.full((480, 640, 3), 128, np.uint8)), "the image is flat"),
    "noise.jpg": (lambda image: jpeg(noise(image)), "shares no structure .* check that it shows this connector"),
    "noise-4-3.jpg": (
        lambda _: jpeg(noise(np.zeros((480, 640, 3)))),
        "no field of 3 x 9 pins .* whole, sharp and upright",
    ),
    "other.jpg": (lambda image: jpeg(other_connector()), "check that it shows this connector"),
    "blurred.jpg": (lambda image: jpeg(cv2.GaussianBlur(image, (0, 0), 25)), "check that it shows this connector"),
    "covered.jpg": (lambda image: jpeg(covered(image)), "check that it shows this connector"),
    "half.jpg": (lambda image: jpeg(image[:, :360]), "no field of 3 x 9 pins|outside of the picture"),
    "tiny.jpg": (
        lambda image: jpeg(cv2.resize(image, (120, 90))),
        "px apart, 16 px at least; move the camera nearer|no field",
    ),
    "off.jpg": (lambda image: jpeg(shifted(image)), "off its place, .* put it back into its holder"),
    "left.jpg": (lambda image: jpeg(np.rot90(image)), "it fits turned by 90 degrees .* turn the camera or the file"),
    "right.jpg": (
        lambda image: jpeg(np.rot90(image, -1)),
        "it fits turned by 90 degrees .* turn the camera or the file",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_capture_is_refused_with_its_reason_and_a_remedy(name):
    spoil, reason = SPOILED[name]
    content = spoil(photograph(9).image)
    with pytest.raises((ImageError, AlignmentError), match=reason):
        aligned(np.asarray(decode_image(content, name, max_pixels=1_000_000)))


def test_a_field_that_is_not_symmetric_shows_that_it_is_upside_down():
    images = [photograph(seed).image.copy() for seed in range(6)]
    for image in images:
        image[40:120, 60:330] //= 3  # a shadow that each capture has: the upper left pins are dark
    space = built(images[:5])
    with pytest.raises(AlignmentError, match=r"fits turned by 180 degrees .* turn the camera or the file"):
        align_capture(np.ascontiguousarray(images[5][::-1, ::-1]), space, DST.maximum_shift)


def test_the_shape_that_fits_best_is_chosen_for_another_size_too():
    square = LineSetup("SQUR", pin_width=0.46)
    rng = np.random.default_rng(4)
    images = [render(rng, square, tolerated_pins(rng, square, LAYOUT), LAYOUT).image for _ in range(5)]
    spaces = {"CYLN": unit_space(), "SQUR": built(images)}
    seen = in_scene(1280, 720, 0.8)(photograph(9).image)
    assert align_to_best(seen.image, spaces, DST.maximum_shift)[0] == "CYLN"


@pytest.mark.parametrize("width", [1920, 360])
def test_references_with_another_pitch_make_a_unit_space_of_the_normal_pitch(width):
    camera = resized(width)
    space = built([camera(photograph(seed).image).image for seed in range(5)])
    assert space.pitch == pytest.approx(64, abs=1)
    seen = camera(photograph(9).image)
    capture = align_capture(seen.image, space, DST.maximum_shift)
    usual = align_capture(photograph(9).image, space, DST.maximum_shift)
    assert largest_error(capture, usual, seen.matrix) < 0.06


def test_references_of_several_sizes_come_to_the_size_of_most():
    images = [photograph(seed).image for seed in range(5)]
    space = built([*images[:4], resized(960)(images[4]).image])
    assert space.size == (640, 260)
    assert not space.outliers
    with pytest.raises(UnitSpaceError, match=r"r4\.jpg of shape CYLN has 600 x 260 px, most references have 640 x 260"):
        built([*images[:4], images[4][:, :600]])


def test_a_capture_that_is_set_aside_is_drawn_beside_its_references():
    image = noise(np.zeros((1080, 1920, 3)))
    short = Image.open(io.BytesIO(set_aside_picture(image, unit_space().mean, "flat")))
    long = Image.open(io.BytesIO(set_aside_picture(image, unit_space().mean, "a reason with many words " * 20)))
    assert short.format == "JPEG" and short.size[0] == long.size[0] and long.size[1] > short.size[1]
