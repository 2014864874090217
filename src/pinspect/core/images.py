"""Reading image files: whatever a camera or a file system delivers becomes one kind of array, or a clear refusal."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from pinspect.core.errors import ImageError

SMALLEST_SIDE = 32
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, MemoryError)


def read_image(path: str | Path, max_pixels: int) -> Image.Image:
    """Read the image file at `path` as an 8-bit RGB image that stands upright (EXIF orientation applied).

    16-bit images are scaled to 8 bit, palettes and CMYK converted, transparency laid over black. Raises ImageError
    when the file is missing, empty, truncated, no image, larger than `max_pixels` (told by its header, before any pixel
    is decoded) or smaller than 32 px on a side.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_image(content, str(path), max_pixels)


def decode_image(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """As `read_image`, from the bytes of a file; `name` is what errors call it."""
    if not content:
        raise ImageError(f"{name}: the file is empty (0 bytes); copy or capture it again")
    image = _open(content, name)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} px is more than raw.max_pixels allows ({max_pixels}); "
            "crop the image, or raise the limit in params.yaml"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{name}: {width} x {height} px is no photograph: expected {SMALLEST_SIDE} px a side at least")
    try:
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except _BROKEN as error:
        raise ImageError(
            f"{name}: the {image.format} file is damaged or cut short ({error}); copy or capture it again"
        ) from None


def to_gray(image: Image.Image | np.ndarray) -> np.ndarray:
    """The luminance (ITU-R BT.601) of an 8-bit RGB image: float32 (H, W) in 0..1."""
    return cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY).astype(np.float32) * np.float32(1 / 255)


def _open(content: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow's own warning comes at a fixed size; ours is raw.max_pixels, checked by the caller.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: refused unread: {error}; crop the image") from None
    except _BROKEN:
        raise ImageError(
            f"{name}: not an image file, or its header is damaged; expected JPEG, PNG, TIFF or BMP"
        ) from None


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
    # 65535 / 257 = 255: the whole 16-bit range onto the whole 8-bit range, the same for every image.
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
