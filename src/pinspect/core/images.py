"""Read image files of any kind as 8-bit RGB images, or raise a clear error."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from pinspect.core.errors import ImageError
from pinspect.core.product_files import read_product

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")  # Pillow knows more, and runs Ghostscript for PostScript
SMALLEST_SIDE = 32
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_OTHER_FORMATS = {b"GIF8": "GIF", b"ftyphei": "HEIC", b"ftypmif": "HEIC", b"ftypavif": "AVIF", b"%PDF": "PDF"}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, MemoryError)


def read_image(path: str | Path, max_pixels: int | None = None) -> Image.Image:
    """Read an image file, or a product in an archive, as an upright 8-bit RGB image (EXIF orientation applied).

    16-bit images are scaled to 8 bit; palettes and CMYK are converted; transparent pixels become black.

    Args:
        path: A JPEG, PNG, TIFF, BMP or WebP file.
        max_pixels: Refuse images with more pixels; the header is checked before any pixel is decoded. None: no limit,
            for files that an earlier stage has checked.

    Raises:
        ImageError: The file is missing, empty, truncated, not an image, larger than `max_pixels`, or smaller than 32 px
            on a side.
    """
    path = Path(path)
    try:
        content = read_product(path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_image(content, str(path), max_pixels)


def decode_image(content: bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """Decode the bytes of an image file as `read_image` does.

    Args:
        content: The bytes of the file.
        name: Names the file in error messages.
        max_pixels: As for `read_image`.

    Raises:
        ImageError: As for `read_image`.
    """
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes); copy or capture it again")
    image = _open(content, name)
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} px is more than raw.max_pixels allows ({max_pixels}); "
            "crop the image, or raise the limit in params.yaml"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width} x {height} px is no photograph: expected {SMALLEST_SIDE} px a side at least")
    try:
        _require_single(image, name)
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"{name}: the {image.format} file is damaged or cut short ({error}); copy or capture it again"
        ) from None


def to_gray(image: Image.Image | np.ndarray) -> np.ndarray:
    """Convert an 8-bit RGB image (H, W, 3) to its luminance (ITU-R BT.601): float32 (H, W), 0..1."""
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) * np.float32(1 / 255)


def _open(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns at a fixed size; the limit of this project is raw.max_pixels, which the caller checks.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused unread: {error}; crop the image") from None
    except _BROKEN:
        kind = next((kind for start, kind in _OTHER_FORMATS.items() if content[:16].find(start) in (0, 4)), "")
        if kind:
            raise ImageError(f"{name}: a {kind} file; convert it to JPEG or PNG") from None
        raise ImageError(
            f"{name}: not an image file, or its header is damaged; expected JPEG, PNG, TIFF, BMP or WebP"
        ) from None


def _require_single(image: Image.Image, name: str) -> None:
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1 and image.format != "MPO":  # the JPEG file of a phone may hold a preview as well
        raise ImageError(f"{name}: the {image.format} file holds {pictures} pictures; save the capture alone")


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT:
        return _from_sixteen_bit(image, name)
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no agreed white; save the image with 8 or 16 bit")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image).astype(np.int64)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageError(f"{name}: pixel values up to {levels.max()}; save the image with 8 or 16 bit")
    # 65535 / 257 = 255, so the full 16-bit range maps to the full 8-bit range, by the same rule for every image.
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
