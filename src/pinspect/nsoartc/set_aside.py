"""Draw why a capture was set aside: the capture beside the mean of its references, with the reason below."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

SET_ASIDE = "set_aside"  # folder of the pictures, in the dst folder

_SIDE = (400, 300)  # px: largest width and height of either image
_MARGIN = 10  # px
_FONT_SIZE = 14  # px


def set_aside_picture(image: npt.NDArray[np.uint8], mean: npt.NDArray[np.float32], reason: str) -> bytes:
    """Draw a capture that was set aside.

    Args:
        image: The capture, uint8 (H, W, 3), RGB.
        mean: Mean image of its unit space, float32 (H, W), 0..1.
        reason: Why it was set aside.

    Returns:
        The bytes of a JPEG file: the capture at the left, the mean of the references at the right, the reason below.
    """
    references = Image.fromarray(np.clip(mean * 255 + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    sides = [ImageOps.contain(side, _SIDE) for side in (Image.fromarray(image), references)]
    font = ImageFont.load_default(size=_FONT_SIZE)
    width = 2 * _SIDE[0] + 3 * _MARGIN
    top = 2 * _MARGIN + _FONT_SIZE
    bottom = top + max(side.height for side in sides) + _MARGIN
    lines = _wrapped(reason, font, width - 2 * _MARGIN)
    picture = Image.new("RGB", (width, bottom + len(lines) * (_FONT_SIZE + 5) + _MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for column, (title, side) in enumerate(zip(("capture", "mean of the references"), sides, strict=True)):
        left = _MARGIN + column * (_SIDE[0] + _MARGIN)
        draw.text((left, _MARGIN), title, fill="black", font=font)
        picture.paste(side, (left, top))
    draw.multiline_text((_MARGIN, bottom), "\n".join(lines), fill="black", font=font, spacing=5)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
