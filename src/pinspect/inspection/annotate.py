"""Draws inspected captures for people: the defective pin in a box, the judgement in a strip below."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pinspect.core.answers import DEFECTIVE
from pinspect.core.errors import CaptureError
from pinspect.core.files import atomic_path
from pinspect.core.images import IMAGE_SUFFIXES, decode_image
from pinspect.inspection.files import ANNOTATED
from pinspect.inspection.records import Photograph

if TYPE_CHECKING:
    from pinspect.inspection.photograph_inspector import PhotographInspector

Color = tuple[int, int, int]

RED = (190, 20, 20)
GREEN = (0, 110, 45)
_WHITE = (255, 255, 255)
_STRIP_SHARE = 0.06  # of the longer side
_SMALLEST_STRIP = 20  # px
_SMALLEST_FONT = 8  # px
_LINE_SHARE = 0.004  # of the longer side
_JPEG_QUALITY = 92


def annotate(
    image: npt.NDArray[np.uint8], corners: npt.NDArray[np.floating[Any]] | None, caption: str, color: Color
) -> Image.Image:
    """Draw a box around one pin of a photograph and a strip with a caption below it.

    Args:
        image: The photograph, uint8 (H, W, 3), RGB.
        corners: float (4, 2), x and y in px of the photograph, in drawing order; None draws no box.
        caption: One line of text; the font shrinks until it fits.
        color: Color of box and strip.

    Returns:
        An RGB image of the photograph's width, taller by the strip. Outside the box's line, the photograph's pixels are
        unchanged.
    """
    height, width = image.shape[:2]
    strip = max(_SMALLEST_STRIP, round(_STRIP_SHARE * max(height, width)))
    picture = Image.new("RGB", (width, height + strip), color)
    photograph = Image.fromarray(image)
    if corners is not None:
        line = max(2, round(_LINE_SHARE * max(height, width)))
        outline = [(float(x), float(y)) for x, y in corners]
        ImageDraw.Draw(photograph).polygon(outline, outline=color, width=line)
    picture.paste(photograph, (0, 0))
    margin = strip // 4
    font = _fitting_font(caption, width - 2 * margin, strip - margin)
    ImageDraw.Draw(picture).text((margin, height + strip / 2), caption, fill=_WHITE, font=font, anchor="lm")
    return picture


class AnnotatedPictures:
    """A folder of annotated pictures.

    The picture of `a.jpg` is `a.jpg.annotated.jpg`. Captures below the working directory keep their folders; captures
    from elsewhere go to a folder named after theirs and a hash of its path. So no two captures share a picture, and no
    picture replaces a capture.
    """

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Args:
            folder: The folder.

        Raises:
            CaptureError: The folder cannot be written.
        """
        self._folder = folder
        with self._explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        path: Path,
        photograph: Photograph,
        record: Mapping[str, Any],
        inspector: PhotographInspector,
        shape: str = "",
    ) -> Path:
        """Draw a capture that was inspected.

        Args:
            path: The file of the capture.
            photograph: Its content.
            record: The inspector's record of the capture.
            inspector: The inspector.
            shape: The shape that the capture was inspected with; empty for the shape that fits best.

        Returns:
            The path of the picture.

        Raises:
            CaptureError: The picture cannot be written.
        """
        judgement, p_defective = record["judgement"], record["p_defective"]
        caption = judgement if p_defective is None else f"{judgement}   P(defective) {p_defective:.3f}"
        if record["localizer_disagrees"]:
            caption += f"   localizer: {record['localizer_position']}"
        corners, color = None, GREEN
        if judgement == DEFECTIVE:
            caption, color = f"{record['defect_mode']} at {record['defect_position']}   {caption}", RED
            corners = inspector.locate_pin(photograph, record["defect_position"], shape or None)
        image = np.asarray(decode_image(photograph.content, photograph.name, inspector.max_pixels))
        out = self._folder / self.place(path)
        with self._explained(out), atomic_path(out) as partial:
            annotate(image, corners, caption, color).save(partial, quality=_JPEG_QUALITY)
        return out

    def place(self, path: Path) -> Path:
        """Return the path of the picture of a capture, relative to the folder.

        Args:
            path: The file of the capture.
        """
        absolute = Path(os.path.abspath(path))  # noqa: PTH100  Path.resolve would follow links and rename the capture
        suffix = absolute.suffix if absolute.suffix.lower() in IMAGE_SUFFIXES else ".png"
        name = f"{absolute.name}{ANNOTATED}{suffix}"
        if absolute.is_relative_to(Path.cwd()):
            return absolute.relative_to(Path.cwd()).with_name(name)
        return Path(f"{absolute.parent.name}-{hashlib.sha256(os.fsencode(absolute.parent)).hexdigest()[:8]}") / name

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}; name another --annotate") from None


def _fitting_font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = height * 3 // 4
    font = ImageFont.load_default(size=size)
    if (needed := font.getlength(text)) > width:
        font = ImageFont.load_default(size=max(_SMALLEST_FONT, int(size * width / needed)))
    return font
