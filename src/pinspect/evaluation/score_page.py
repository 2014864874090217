"""The page of a folder's score: one HTML file that needs no network, with every miss."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps

from pinspect.core.prompts import PromptKind
from pinspect.evaluation.cases import Picture
from pinspect.evaluation.folder_score import FolderScore
from pinspect.evaluation.report import template
from pinspect.evaluation.shown import METRIC_NAMES

PICTURED = 60  # misses, and captures that were not inspected, that are shown with a picture
_WIDTH = 640  # px
_QUALITY = 75


def render_score(score: FolderScore) -> str:
    """Return the page of a score as HTML text; the same score gives the same text."""
    pictures = {file: picture for file, content in score.pictures.items() if (picture := _embedded(file, content))}
    return template("score.html.j2").render(
        score=score, pictures=pictures, metrics=METRIC_NAMES, single=PromptKind.ONE_IMAGE
    )


def _embedded(file: str, content: bytes) -> Picture | None:
    """Return a picture made small; None for bytes that are not an image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("RGB", (_WIDTH, _WIDTH))
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((_WIDTH, _WIDTH))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return Picture(file, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", *picture.size)
