"""A capture as a person wants to see it: the defective pin boxed, and what was said of it in a strip below."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RED = (190, 20, 20)
GREEN = (0, 110, 45)
_WHITE = (255, 255, 255)
_STRIP_SHARE = 0.06  # of the longer side
_SMALLEST_STRIP = 20
_SMALLEST_FONT = 8
_LINE_SHARE = 0.004


def annotate(image: np.ndarray, corners: np.ndarray | None, caption: str, color: tuple[int, int, int]) -> Image.Image:
    """A copy of a photograph with a box round one pin and a strip with a caption below it, both of `color`.

    image: uint8 (H, W, 3). corners: float (4, 2), x and y in px of the photograph, in the order in which they are
    joined; None draws no box. caption: one line, made as small as it takes to fit. Returns an RGB image as wide as the
    photograph and a strip higher; the photograph's own pixels stay as they are outside of the box's line.
    """
    height, width = image.shape[:2]
    strip = max(_SMALLEST_STRIP, round(_STRIP_SHARE * max(height, width)))
    picture = Image.new("RGB", (width, height + strip), color)
    photograph = Image.fromarray(image)
    if corners is not None:
        line = max(2, round(_LINE_SHARE * max(height, width)))
        joined = [(float(x), float(y)) for x, y in corners]
        ImageDraw.Draw(photograph).polygon(joined, outline=color, width=line)
    picture.paste(photograph, (0, 0))
    margin = strip // 4
    font = _fitting_font(caption, width - 2 * margin, strip - margin)
    ImageDraw.Draw(picture).text((margin, height + strip / 2), caption, fill=_WHITE, font=font, anchor="lm")
    return picture


def _fitting_font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont:
    size = height * 3 // 4
    font = ImageFont.load_default(size=size)
    if (needed := font.getlength(text)) > width:
        font = ImageFont.load_default(size=max(_SMALLEST_FONT, int(size * width / needed)))
    return font
