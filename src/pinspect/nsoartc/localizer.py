"""The localizer: judgement score, address and bend direction from one DST picture, without training.

A defective pin is white in a DST picture: all three channels differ. Colored housings and backgrounds differ in one or
two channels only, so the smallest channel shows pins alone. Of a pin that moved, the old place is cream (bright in
the reference, dark in the capture), and the new place is cyan-white. The vector from cream to
cyan-white is the bend direction. The hues are those of pale teal pins, as in the public series; a line of gray pins
shows neither hue and gets no direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pinspect.core.layout import Address, Layout
from pinspect.nsoartc.parts import FloatImage

_CELL = 0.5  # pitches: half the side of the square that gives a pin its score
_SURROUNDINGS = 0.6  # pitches: radius of the disc in which the two hues are compared
_WHITE_SHARE = 0.2  # of the whitest pixel in the disc: pixels above belong to the defect
_HUE_SHARE = 0.04  # of the white: less hue than this shows no direction


@dataclass(frozen=True)
class Localization:
    """The result of the localizer for one DST picture.

    Attributes:
        score: Root mean square of the whitest pin's cell as a multiple of the median over all pins, at least 1. Higher
            is more likely defective. It does not depend on the picture's scale.
        address: Address of the whitest pin.
        pin_scores: float32 (pins,), the score of each pin in the order of `layout.addresses`.
        vector: From the cream to the cyan-white part around that pin, px, x to the right and y **up**. (0, 0) where
            the picture shows no such hues.
        direction: One of `core.drawings.NAMED_DIRECTIONS`, the larger component of `vector`; empty where the picture
            shows no such hues.
    """

    score: float
    address: Address
    pin_scores: npt.NDArray[np.float32]
    vector: tuple[float, float]
    direction: str


def localize(picture: npt.ArrayLike, centers: npt.ArrayLike, pitch: float, layout: Layout) -> Localization:
    """Find the most conspicuous pin of an aligned DST picture and the direction in which it is bent.

    Args:
        picture: (rows, columns, 3), RGB, uint8 or float: a DST picture, or the distances themselves.
        centers: (pins, 2), x and y px of the pins' tops in the unit space, in the order of `layout.addresses`.
        pitch: Distance of neighboring pins, px.
        layout: The connector's rows and columns.

    Returns:
        Score, address, direction and the scores of all pins.

    Raises:
        ValueError: The picture has no three channels, or the number of centers is not that of the layout's pins.
    """
    pixels, places = np.asarray(picture, np.float32), np.asarray(centers, np.float64)
    if pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise ValueError(f"expected a DST picture (rows, columns, 3), found {pixels.shape}")
    if places.shape != (layout.pins, 2):
        raise ValueError(f"expected the centers of {layout.pins} pins, ({layout.pins}, 2), found {places.shape}")
    pin_scores = whiteness(pixels, places, pitch)
    pin = int(pin_scores.argmax())
    vector = _bend_vector(pixels, places, pitch, pin)
    return Localization(float(pin_scores[pin]), layout.addresses[pin], pin_scores, vector, direction_of(vector))


def whiteness(picture: npt.NDArray[Any], centers: npt.NDArray[np.float64], pitch: float) -> npt.NDArray[np.float32]:
    """Return `Localization.pin_scores`: how white each pin's cell is, compared with the median over all pins.

    Args:
        picture: (rows, columns, 3), RGB, uint8 or float.
        centers: (pins, 2), x and y px of the pins' tops.
        pitch: Distance of neighboring pins, px.
    """
    white = np.minimum(np.minimum(picture[..., 0], picture[..., 1]), picture[..., 2])  # `min` takes ten times as long
    cells = _patches(np.asarray(white, np.float32), centers, max(1, round(_CELL * pitch)))
    strength = np.sqrt(np.mean(np.square(cells), axis=(1, 2)))
    typical = max(float(np.median(strength)), 1e-6 * max(float(picture.max()), 1.0))
    return (strength / typical).astype(np.float32)


def direction_of(vector: tuple[float, float]) -> str:
    """Return the name of the larger component of `vector` (x right, y up); empty for (0, 0)."""
    x, y = vector
    if x == y == 0:
        return ""
    if abs(x) > abs(y):
        return "X-plus" if x > 0 else "X-minus"
    return "Y-plus" if y > 0 else "Y-minus"


def _bend_vector(pixels: FloatImage, places: npt.NDArray[np.float64], pitch: float, pin: int) -> tuple[float, float]:
    reach = max(1, round(_SURROUNDINGS * pitch))
    red, green, blue = (_patches(np.ascontiguousarray(pixels[..., c]), places, reach) for c in range(3))
    hue = (green + blue) / 2 - red  # above 0 in cyan, below 0 in cream
    hue_of_pin = hue[pin] - np.median(hue, axis=0)  # housing and light give all pins some hue
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    x, y = np.meshgrid(axis, -axis)
    white = np.minimum(np.minimum(red[pin], green[pin]), blue[pin]) * (np.hypot(x, y) <= reach)
    is_white = white > _WHITE_SHARE * white.max()
    cyan, cream = np.maximum(hue_of_pin, 0) * is_white, np.maximum(-hue_of_pin, 0) * is_white
    if min(cyan.sum(), cream.sum()) <= 0 or cyan.sum() + cream.sum() < _HUE_SHARE * white[is_white].sum():
        return 0.0, 0.0
    moved_to = np.array([(x * cyan).sum(), (y * cyan).sum()]) / cyan.sum()
    moved_from = np.array([(x * cream).sum(), (y * cream).sum()]) / cream.sum()
    return float(moved_to[0] - moved_from[0]), float(moved_to[1] - moved_from[1])


def _patches(image: FloatImage, places: npt.NDArray[np.float64], reach: int) -> FloatImage:
    """Return float32 (pins, side, side), squares around sub-pixel places; outside the image its border repeats."""
    side = (2 * reach + 1, 2 * reach + 1)
    patches = [cv2.getRectSubPix(image, side, (float(x), float(y))) for x, y in places]
    return np.asarray(patches, np.float32)
