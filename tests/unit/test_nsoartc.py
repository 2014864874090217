"""Stage 1 of NSOARTC against its definition, window by window, and against convolution and SciPy's distance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pinspect.core.errors import ImageError, ParamsError
from pinspect.core.nsoartc_settings import FRAME_PAIRS, PART_NAMES, NsoartcSettings
from pinspect.nsoartc.distance import dst_picture, nsoartc, one_gain
from pinspect.nsoartc.parts import default_part, matrix_of

DRAWN = {
    "BEND1": "##### ....# ....# ....# ....#",
    "BEND2": "....# ....# ....# ....# #####",
    "BEND3": "#.... #.... #.... #.... #####",
    "BEND4": "##### #.... #.... #.... #....",
    "LINE1": "....# ...#. ..#.. .#... #....",
    "LINE2": "#.... .#... ..#.. ...#. ....#",
    "DATUM": "..#.. ..#.. ##### ..#.. ..#..",
}
OWN = NsoartcSettings(("DATUM", "spot"), size=3, own_parts={"spot": ((0, 1, 0), (1, -4, 1), (0, 1, 2))})


def pair(seed: int, rows: int = 33, columns: int = 46) -> tuple[np.ndarray, np.ndarray]:
    """A color capture and a gray reference with noise, a dark corner and a flat part."""
    rng = np.random.default_rng(seed)
    capture, reference = rng.random((rows, columns, 3), np.float32), rng.random((rows, columns), np.float32)
    capture[: rows // 3, : columns // 3] = 0
    reference[rows // 2 :, columns // 2 :] = 0.4
    return capture, reference


def by_definition(capture: np.ndarray, reference: np.ndarray, chosen: NsoartcSettings) -> np.ndarray:
    """Return the distances, computed window by window in float64."""
    size, stride = chosen.size, chosen.stride
    rows, columns = ((side - size) // stride + 1 for side in reference.shape)
    parts = np.stack([matrix_of(chosen, name) for name in chosen.parts]).astype(np.float64)
    distance = np.empty((rows, columns, 3))
    for row in range(rows):
        for column in range(columns):
            window = np.s_[row * stride : row * stride + size, column * stride : column * stride + size]
            g = (parts * reference[window]).sum(axis=(1, 2))
            for channel in range(3):
                m = (parts * capture[window][..., channel]).sum(axis=(1, 2))
                if chosen.variant == "difference":
                    index = [[chosen.parts.index(name) for name in names] for names in FRAME_PAIRS]
                    terms = [(g[a] - g[b]) - (m[a] - m[b]) for a, b in index]
                else:
                    terms = g - m
                distance[row, column, channel] = (np.abs(terms) ** chosen.p).sum() ** (1 / chosen.p)
    return distance


def assert_close(distance: np.ndarray, expected: np.ndarray, chosen: NsoartcSettings) -> None:
    """Agree within what float32 can lose, which is far below the 1e-5 of the value range that is asked for.

    A sum by doubling rounds at most 2 log2(n) times, the difference, the two additions and the powers ten times more;
    by Minkowski's inequality the distance is off by no more than the distance of the errors.
    """
    assert distance.dtype == np.float32
    parts = np.stack([np.abs(matrix_of(chosen, name)) for name in chosen.parts]).astype(np.float64)
    value_range = (parts.sum(axis=(1, 2)) ** chosen.p).sum() ** (1 / chosen.p)
    tolerance = 2**-24 * (10 + 2 * np.log2(chosen.size)) * value_range
    assert tolerance < 1e-5 * value_range
    np.testing.assert_allclose(distance, expected, rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("name", PART_NAMES)
def test_the_default_parts_are_the_series_patterns(name):
    rows = ["".join("#" if value else "." for value in row) for row in default_part(name, 5)]
    assert " ".join(rows) == DRAWN[name]
    assert set(np.unique(default_part(name, 11))) == {0, 1}


@pytest.mark.parametrize(
    "chosen",
    [
        NsoartcSettings(),
        NsoartcSettings(size=11, stride=5),
        NsoartcSettings(size=9),
        NsoartcSettings(size=4, stride=3),
        NsoartcSettings(size=1),
        NsoartcSettings(size=33),
        NsoartcSettings(p=1),
        NsoartcSettings(p=2, size=7),
        NsoartcSettings(p=3.5),
        NsoartcSettings(p=60),
        NsoartcSettings(variant="difference"),
        NsoartcSettings(variant="difference", size=8, stride=2, p=2),
        NsoartcSettings(("LINE1", "DATUM"), size=6),
        OWN,
    ],
    ids=str,
)
def test_every_window_has_the_distance_of_the_definition(chosen):
    capture, reference = pair(1)
    assert_close(nsoartc(capture, reference, chosen), by_definition(capture, reference, chosen), chosen)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 13), st.integers(1, 6), st.integers(0, 20), st.integers(0, 20),
    st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from(["distance", "difference"]),
)  # fmt: skip
def test_the_definition_holds_for_any_size_stride_and_exponent(seed, size, stride, more_rows, more_columns, p, variant):
    capture, reference = pair(seed, size + more_rows, size + more_columns)
    chosen = NsoartcSettings(size=size, stride=stride, p=p, variant=variant)
    assert_close(nsoartc(capture, reference, chosen), by_definition(capture, reference, chosen), chosen)


@pytest.mark.parametrize(("more_rows", "more_columns"), [(0, 0), (0, 1), (1, 0), (3, 0)])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_images_hardly_larger_than_a_part_agree_with_the_definition(size, more_rows, more_columns):
    capture, reference = pair(18, size + more_rows, size + more_columns)
    for variant in ("distance", "difference"):
        chosen = NsoartcSettings(size=size, variant=variant)
        assert_close(nsoartc(capture, reference, chosen), by_definition(capture, reference, chosen), chosen)


def test_images_of_more_than_one_band_of_rows_agree_with_the_definition():
    capture, reference = pair(2, rows=150, columns=14)
    for chosen in (NsoartcSettings(size=5), NsoartcSettings(size=13, stride=4)):
        assert_close(nsoartc(capture, reference, chosen), by_definition(capture, reference, chosen), chosen)


@pytest.mark.parametrize(("size", "stride"), [(5, 1), (11, 5), (9, 2)])
def test_convolution_and_scipy_give_the_same_distances(size, stride):
    torch = pytest.importorskip("torch")
    distances = pytest.importorskip("scipy.spatial.distance")
    capture, reference = pair(3)
    chosen = NsoartcSettings(size=size, stride=stride)
    parts = torch.from_numpy(np.stack([matrix_of(chosen, name) for name in chosen.parts]))[:, None]
    gray, *channels = (
        torch.nn.functional.conv2d(torch.from_numpy(image)[None, None], parts, stride=stride)[0].numpy()
        for image in (reference, *np.moveaxis(capture, -1, 0).copy())
    )
    expected = np.empty((*gray.shape[1:], 3))
    for row, column in np.ndindex(*gray.shape[1:]):
        for channel, responses in enumerate(channels):
            expected[row, column, channel] = distances.minkowski(gray[:, row, column], responses[:, row, column], p=4)
    value_range = 7**0.25 * (2 * size - 1)
    np.testing.assert_allclose(nsoartc(capture, reference, chosen), expected, rtol=0, atol=1e-5 * value_range)


def test_a_batch_gives_the_results_of_its_single_captures():
    reference = pair(4)[1]
    batch = np.stack([pair(seed)[0] for seed in (5, 6, 7)])
    together = nsoartc(batch, reference)
    assert together.shape == (3, 29, 42, 3)
    for result, capture in zip(together, batch, strict=True):
        np.testing.assert_array_equal(result, nsoartc(capture, reference))


def test_the_same_size_repeats_the_border():
    capture, reference = pair(8)
    chosen = NsoartcSettings(size=7)
    result = nsoartc(capture, reference, chosen, same_size=True)
    assert result.shape == capture.shape
    np.testing.assert_array_equal(result[3:-3, 3:-3], nsoartc(capture, reference, chosen))
    bordered = [np.pad(image, [(3, 3), (3, 3), (0, 0)][: image.ndim], mode="edge") for image in (capture, reference)]
    np.testing.assert_array_equal(result, nsoartc(*bordered, chosen))
    assert nsoartc(capture, reference, NsoartcSettings(size=6, stride=4), same_size=True).shape == (9, 12, 3)


def test_a_capture_that_equals_its_reference_has_no_distance():
    reference = pair(9)[1]
    assert not nsoartc(np.stack([reference] * 3, axis=-1), reference).any()


def test_a_flat_difference_gives_the_parts_own_distance():
    flat = nsoartc(np.full((20, 20, 3), 0.75, np.float32), np.full((20, 20), 0.25, np.float32))
    np.testing.assert_allclose(flat, 0.5 * (5 * 9**4 + 2 * 5**4) ** 0.25, rtol=1e-6)
    assert not nsoartc(np.ones((20, 20, 3)), np.zeros((20, 20)), NsoartcSettings(variant="difference")).any()


def test_a_color_fault_shows_in_its_channel_alone():
    reference = pair(10)[1]
    capture = np.stack([reference] * 3, axis=-1)
    capture[10:20, 10:20, 2] += 0.5
    distance = nsoartc(capture, reference)
    assert distance[..., 2].max() > 1 and not distance[..., :2].any()


def test_a_gray_capture_counts_as_three_equal_channels():
    capture, reference = pair(11)
    gray = capture[..., 0]
    expected = nsoartc(np.stack([gray] * 3, axis=-1), reference)
    for same in (gray, gray[..., None]):
        np.testing.assert_array_equal(nsoartc(same, reference), expected)
    assert nsoartc(gray[None, ..., None], reference).shape == (1, *expected.shape)


def test_transparent_pixels_are_blended_with_black():
    capture, reference = pair(12)
    alpha = np.random.default_rng(0).random(reference.shape, np.float32)[..., None]
    with_alpha = np.concatenate([capture, alpha], axis=-1)
    np.testing.assert_array_equal(nsoartc(with_alpha, reference), nsoartc(capture * alpha, reference))


def test_integers_are_scaled_by_their_full_range():
    capture, reference = pair(13)
    levels, gray_levels = (np.rint(image * 255).astype(np.uint8) for image in (capture, reference))
    expected = nsoartc(levels / np.float32(255), gray_levels / np.float32(255))
    sixteen_bit = nsoartc(levels.astype(np.uint16) * 257, gray_levels.astype(np.uint16) * 257)
    for result in (nsoartc(levels, gray_levels), sixteen_bit, nsoartc(Image.fromarray(levels), gray_levels)):
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_a_color_reference_is_taken_by_its_luminance():
    capture, _ = pair(14)
    luminance = capture @ np.array([0.299, 0.587, 0.114], np.float32)
    np.testing.assert_array_equal(nsoartc(capture, capture), nsoartc(capture, luminance))


@pytest.mark.parametrize(
    ("capture", "reference", "message"),
    [
        (np.zeros((4, 30, 3)), np.zeros((4, 30)), "30 x 4 px is smaller than the parts of 5 x 5 px"),
        (np.zeros((20, 21, 3)), np.zeros((20, 20)), "the capture has 21 x 20 px, its reference 20 x 20 px"),
        (np.zeros((20, 20, 2)), np.zeros((20, 20)), r"the capture has the shape \(20, 20, 2\)"),
        (np.zeros(20), np.zeros((20, 20)), r"the capture has the shape \(20, 1\)|shape \(20\)"),
        (np.zeros((20, 20, 3)), np.zeros((2, 20, 20)), r"the reference has the shape \(2, 20, 20\)"),
        (np.zeros((0, 20, 3)), np.zeros((0, 20)), "the capture is empty"),
        (np.full((20, 20, 3), np.nan), np.zeros((20, 20)), "the capture holds NaN"),
        (np.full((20, 20, 3), 200.0), np.zeros((20, 20)), "from 200 to 200; expected 0..1"),
        (np.zeros((20, 20, 3), np.int64), np.zeros((20, 20)), "pixels of type int64"),
        (np.zeros((20, 20, 3)), np.full((20, 20), np.inf), "the reference holds NaN or infinite"),
    ],
)
def test_an_invalid_capture_is_refused_in_one_line(capture, reference, message):
    with pytest.raises(ImageError, match=message):
        nsoartc(capture, reference)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "size of a part is 0 px"),
        ({"stride": 0}, "stride is 0 px"),
        ({"p": 0.5}, "exponent p is 0.5"),
        ({"parts": ()}, "no part is named"),
        ({"parts": ("BEND5",)}, "unknown part 'BEND5'; the parts are BEND1"),
        ({"variant": "other"}, "unknown variant 'other'"),
        ({"variant": "difference", "parts": ("BEND1", "BEND3", "LINE1", "LINE2")}, "needs BEND2, BEND4"),
        ({"size": 3, "own_parts": {"bar": ((1, 1, 1),)}}, "own part 'bar' has 1 rows of 3 values; expected 3 x 3"),
        ({"size": 1, "own_parts": {"dot": ((float("nan"),),)}}, "no finite number"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(values, message):
    with pytest.raises(ParamsError, match=message):
        NsoartcSettings(**values)


def test_a_custom_part_replaces_a_default_part():
    capture, reference = pair(15)
    plus = tuple(map(tuple, default_part("DATUM", 5).tolist()))
    replaced = NsoartcSettings(own_parts={"DATUM": plus})
    np.testing.assert_allclose(nsoartc(capture, reference, replaced), nsoartc(capture, reference), atol=1e-5)


def test_settings_of_the_same_size_follow_one_another():
    """Also with parts that are arrays, which have no truth value when they are compared."""
    capture, reference = pair(17)
    every = [NsoartcSettings(("spot",), own_parts={"spot": part}) for part in (np.eye(5), 2 * np.eye(5))]
    every += [NsoartcSettings(("LINE2",)), NsoartcSettings(("LINE2",), p=2)]
    first, doubled, *lines = (nsoartc(capture, reference, settings) for settings in every)
    np.testing.assert_allclose(doubled, 2 * first, rtol=1e-5)
    for line in lines:  # LINE2 is the diagonal; of one part, every exponent gives its magnitude
        np.testing.assert_allclose(line, first, atol=1e-5)


def test_a_constant_white_keeps_pictures_comparable_and_the_pictures_own_does_not():
    faint, strong = np.full((4, 4, 3), 0.5, np.float32), np.full((4, 4, 3), 2.0, np.float32)
    assert (dst_picture(faint, white=2).max(), dst_picture(strong, white=2).max()) == (64, 255)
    assert dst_picture(strong, white=1).max() == 255
    assert dst_picture(faint).max() == dst_picture(strong).max() == 255
    assert not dst_picture(np.zeros((4, 4, 3), np.float32)).any()


def test_one_gain_corrects_a_dimmed_capture():
    reference = pair(16)[1]
    dimmed = np.stack([reference * 0.4] * 3, axis=-1)
    np.testing.assert_allclose(one_gain(dimmed, reference)[..., 0], reference, rtol=1e-5)
    assert not one_gain(np.zeros((5, 5, 3)), np.ones((5, 5))).any()


def test_the_package_itself_can_be_called():
    import pinspect.nsoartc

    capture, reference = pair(17)
    np.testing.assert_array_equal(pinspect.nsoartc(capture, reference), nsoartc(capture, reference))
