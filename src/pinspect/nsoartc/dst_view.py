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
        uint8 (H, W, 3), RGB, in px of the unit space. White is the unit space's constant, so that brightness can be
        compared between pictures, or the picture's own maximum if the unit space says `per_picture`.
    """
    space = capture.unit_space
    picture = dst_picture(capture.distance, None if space.per_picture else space.white)
    return at_full_size(picture, capture)


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
        uint8 (H, W) in px of the left view. Mid-gray (128) is zero; brighter pixels have more distance in the left
        view, darker pixels in the right view. The scale is the mean of the unit spaces' `white`.
    """
    over = left.unit_space.grid @ np.linalg.inv(right.unit_space.grid)
    distances = [at_full_size(capture.distance.mean(axis=-1), capture) for capture in (left, right)]
    right_over_left = cv2.warpPerspective(
        distances[1], over, left.unit_space.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    white = (left.unit_space.white + right.unit_space.white) / 2
    difference = (distances[0] - right_over_left) / np.float32(white)
    return (128 + 127 * np.clip(difference, -1, 1)).round().astype(np.uint8)


def at_full_size(picture: np.ndarray, capture: AlignedCapture) -> np.ndarray:
    """Enlarge values of every `stride`-th pixel, uint8 or float32 (rows, columns[, 3]), to the unit space's size."""
    stride = capture.unit_space.nsoartc.stride
    if stride == 1:
        return picture
    wider = np.array([[stride, 0, 0], [0, stride, 0]], np.float32)
    return cv2.warpAffine(
        picture, wider, capture.unit_space.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
