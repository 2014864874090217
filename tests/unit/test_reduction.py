"""Stage 2 of NSOARTC against its definition, window by window."""

import numpy as np
import pytest

from pinspect.core.errors import ImageError, ParamsError
from pinspect.nsoartc.reduction import ReductionSettings, reduce_dst, soart3


def images(seed: int = 0, rows: int = 40, columns: int = 63) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8), rng.uniform(0, 90, (rows, columns))


def by_definition(y: np.ndarray, x: np.ndarray, window: tuple[int, int], step: tuple[int, int]) -> np.ndarray:
    """Return beta, eta and gamma, shape (3, windows down, windows across, channels)."""
    down, across = ((side - size) // gap + 1 for side, size, gap in zip(x.shape, window, step, strict=True))
    values = np.empty((3, down, across, y.shape[-1]))
    for row, column, channel in np.ndindex(values.shape[1:]):
        top, first = row * step[0], column * step[1]
        place = np.s_[top : top + window[0], first : first + window[1]]
        a, b = x[place].ravel(), y[place][..., channel].ravel()
        beta = (a @ b + 1e-4) / (a @ a + 1e-4)
        r = b - beta * a
        eta = np.log(np.abs(r).sum() + 1)
        values[:, row, column, channel] = beta, eta, eta - np.log((r**4).sum() ** 0.25 + 1)
    return values


@pytest.mark.parametrize(("window", "step"), [((5, 9), (6, 10)), ((3, 3), (1, 1)), ((40, 63), (1, 1))])
def test_soart3_matches_the_definition(window, step):
    picture, reference = images()
    y, x = picture / 255, reference / 255
    for ours, theirs in zip(soart3(y, x, window, step), by_definition(y, x, window, step), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_reduced_picture_is_cut_off_scaled_and_cropped():
    picture, reference = images(1)
    gamma = by_definition(picture / 255, reference / 255, (5, 9), (6, 10))[2]
    value = 255 * np.maximum(0, np.sqrt((gamma**2).mean(axis=-1)) - 1.0) / 1.2
    whole = reduce_dst(picture, reference)
    np.testing.assert_allclose(whole, np.minimum(value, 255), atol=0.51)
    assert whole.dtype == np.uint8 and whole.max() > 0
    cropped = reduce_dst(picture, reference, ReductionSettings(crop=(1, 2, 3, 4)))
    np.testing.assert_array_equal(cropped, whole[1:4, 2:6])
    assert not reduce_dst(picture, reference, ReductionSettings(cut_off=3)).any()


def test_a_picture_like_its_reference_is_black():
    _, reference = images(2)
    picture = np.repeat(reference[..., None], 3, axis=-1).astype(np.uint8)
    assert not reduce_dst(picture, picture[..., 0]).any()
    assert not reduce_dst(np.zeros((40, 63, 3), np.uint8), np.zeros((40, 63))).any()


def test_a_white_spot_shows_where_it_is():
    _, reference = images(3)
    picture = np.repeat(reference[..., None], 3, axis=-1).astype(np.uint8)
    picture[12:24, 30:50] = 255
    reduced = reduce_dst(picture, reference)
    row, column = np.unravel_index(reduced.argmax(), reduced.shape)
    assert 12 <= row * 6 < 24 and 30 <= column * 10 < 50


def test_invalid_input_is_refused_in_one_line():
    picture, reference = images(4)
    with pytest.raises(ImageError, match=r"found \(40, 63, 3\) and \(39, 63\)"):
        reduce_dst(picture, reference[1:])
    with pytest.raises(ImageError, match="63 x 4 px is smaller than the window of 9 x 5 px"):
        reduce_dst(picture[:4], reference[:4])
    with pytest.raises(ImageError, match="leaves the reduced picture"):
        reduce_dst(picture, reference, ReductionSettings(crop=(0, 0, 7, 1)))
    for values in ({"window": (0, 9)}, {"scale": 0}, {"crop": (0, 0, 0, 1)}):
        with pytest.raises(ParamsError, match="stage 2"):
            ReductionSettings(**values)
