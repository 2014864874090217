"""Photographs of one connector as other cameras give them, with the map from the photograph to its new form."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from pinspect.core.scaling import scaling


@dataclass(frozen=True)
class Seen:
    """An image as another camera gives it.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        matrix: float64 (3, 3), maps px of the photograph to px of the image.
    """

    image: np.ndarray
    matrix: np.ndarray


def resized(width: int, height: int = 0) -> Callable[[np.ndarray], Seen]:
    """Return the whole picture at another size; `height` 0 keeps the aspect ratio."""

    def seen(image: np.ndarray) -> Seen:
        old = image.shape[1], image.shape[0]
        size = width, height or round(width * old[1] / old[0])
        interpolation = cv2.INTER_AREA if width < old[0] else cv2.INTER_CUBIC
        return Seen(cv2.resize(image, size, interpolation=interpolation), scaling(old, size))

    return seen


def in_scene(width: int, height: int, share: float, place: tuple[float, float] = (0.5, 0.5)) -> Callable:
    """Return a picture of which the photograph fills a share of the width; `place`: of its middle, 0..1."""

    def seen(image: np.ndarray) -> Seen:
        scale = share * width / image.shape[1]
        left, top = place[0] * width - scale * image.shape[1] / 2, place[1] * height - scale * image.shape[0] / 2
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=flags)
        half = np.array([[1, 0, left], [0, 1, top]])
        rng = np.random.default_rng(5)
        scene = cv2.GaussianBlur(rng.random((height, width, 3), np.float32), (0, 0), 6)
        scene = np.clip(110 + 900 * (scene - 0.5), 0, 255).astype(np.uint8)
        cv2.warpAffine(small, half, (width, height), dst=scene, borderMode=cv2.BORDER_TRANSPARENT)
        to_small = scaling(image.shape[1::-1], small.shape[1::-1])
        return Seen(scene, np.vstack([half, [0, 0, 1]]) @ to_small)

    return seen


def cropped(left: int, top: int, right: int, bottom: int) -> Callable[[np.ndarray], Seen]:
    """Return the picture without some columns and rows at its sides."""

    def seen(image: np.ndarray) -> Seen:
        height, width = image.shape[:2]
        matrix = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]], np.float64)
        return Seen(np.ascontiguousarray(image[top : height - bottom, left : width - right]), matrix)

    return seen


def encoded(image: np.ndarray, mode: str, suffix: str, orientation: int = 1) -> bytes:
    """Return an image file: mode `RGB`, `L`, `RGBA` or `I;16`, stored turned so that EXIF `orientation` reverses it."""
    turned = np.ascontiguousarray(
        {1: image, 3: image[::-1, ::-1], 6: np.rot90(image), 8: np.rot90(image, -1)}[orientation]
    )
    picture = Image.fromarray(turned)
    picture = (
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
        if mode == "I;16"
        else picture.convert(mode)
    )
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(content, suffix, exif=exif)
    return content.getvalue()
