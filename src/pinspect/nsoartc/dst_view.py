"""The DST picture: NSOARTC's stage 1 of an aligned capture as an image, and nothing else.

Passed pins are thin dim rings, a defective pin is bright. Where pins are colored, the place that a pin has left is
cream and the place it has moved to is cyan.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pinspect.nsoartc.aligned import AlignedCapture
from pinspect.nsoartc.distance import dst_picture
from pinspect.nsoartc.localizer import Localization, localize, whiteness
from pinspect.nsoartc.unit_space import UnitSpace

DST_SUFFIX = ".jpg"
# Full color resolution: hues show where a pin has moved. A lossless PNG takes 7 times as long and 4 times the room.
_JPEG = (
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)


def dst_view(capture: AlignedCapture) -> npt.NDArray[np.uint8]:
    """Draw the DST picture of an aligned capture.

    Args:
        capture: The aligned capture.

    Returns:
        uint8 (rows, columns, 3), RGB, a pixel for every `stride`-th pixel of the unit space
        (`UnitSpace.picture_matrix`). White is the unit space's constant, so that brightness can be compared between
        pictures, or the picture's own maximum if the unit space says `per_picture`.
    """
    space = capture.unit_space
    return dst_picture(capture.distance, None if space.per_picture else space.white)


def localize_pin(picture: npt.NDArray[np.uint8], unit_space: UnitSpace) -> Localization:
    """Find the most conspicuous pin of a DST picture.

    Args:
        picture: uint8 (rows, columns, 3), RGB, as `dst_view` draws it.
        unit_space: The unit space of the picture.

    Returns:
        The localization; its vector is in px of the picture.
    """
    stride = unit_space.nsoartc.stride
    return localize(picture, unit_space.pin_centers / stride, unit_space.pitch / stride, unit_space.layout)


def pin_whiteness(picture: npt.NDArray[np.uint8], unit_space: UnitSpace) -> npt.NDArray[np.float32]:
    """Return the `pin_scores` of `localize_pin`, without its direction: a third of its time."""
    stride = unit_space.nsoartc.stride
    return whiteness(picture, np.asarray(unit_space.pin_centers / stride, np.float64), unit_space.pitch / stride)


def encode_dst(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return a DST picture, uint8 (H, W, 3), RGB, as the bytes of a JPEG file (benchmarks/results/dst_stage.md)."""
    return cv2.imencode(DST_SUFFIX, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()


def double_eye(left: AlignedCapture, right: AlignedCapture) -> npt.NDArray[np.uint8]:
    """Subtract the distances of two views of one connector: left minus right, the mean of the channels.

    A difference that both views show alike, such as a stained top, cancels. A pin of another height does not cancel,
    since its top moves in another direction in each view.

    Args:
        left: The left view.
        right: The right view; it is laid over the left one by the pin grids of the two unit spaces.

    Returns:
        uint8 (rows, columns), of the size of the left view's DST picture. Mid-gray (128) is zero; brighter pixels have
        more distance in the left view, darker pixels in the right view. The scale is the mean of the unit spaces'
        `white`.
    """
    grids = [
        np.diag([1 / s.nsoartc.stride, 1 / s.nsoartc.stride, 1]) @ s.grid for s in (left.unit_space, right.unit_space)
    ]
    distances = [np.ascontiguousarray(capture.distance.mean(axis=-1)) for capture in (left, right)]
    right_over_left = cv2.warpPerspective(
        distances[1],
        grids[0] @ np.linalg.inv(grids[1]),
        distances[0].shape[::-1],
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    white = (left.unit_space.white + right.unit_space.white) / 2
    difference = (distances[0] - right_over_left) / np.float32(white)
    return (128 + 127 * np.clip(difference, -1, 1)).round().astype(np.uint8)
