"""What may come in by an upload: how much, how many, which formats, how many pixels, under which names.

Everything is judged by content; a name only tells a person, and which eye of the line it is, and never becomes a path.
Sizes are counted while the request is read, pixels by the header before anything is decoded.
"""

from __future__ import annotations

import asyncio
import io
import re
import unicodedata
import warnings
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import anyio
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from pinspect.core.errors import ImageError
from pinspect.core.images import decode_image
from pinspect.core.params import Params
from pinspect.station.problems import Problem
from pinspect.station.settings import StationSettings

IMAGES, SHAPE = "images", "shape"
LONGEST_SIDE = 16_000  # px; OpenCV's warps address no more than 32,767
LONGEST_NAME = 120
UNNAMED = "capture"
_OVERHEAD = 1 << 20  # bytes that a form may have beside its images
_LONGEST_FIELD = 1000  # bytes
_FORMATS = {
    b"\xff\xd8\xff": ("JPEG", ".jpg"),
    b"\x89PNG\r\n\x1a\n": ("PNG", ".png"),
    b"BM": ("BMP", ".bmp"),
    b"II*\0": ("TIFF", ".tif"),
    b"MM\0*": ("TIFF", ".tif"),
}
_WEBP = ("WEBP", ".webp")  # its signature has the file's length in the middle
EXPECTED = "JPEG, PNG, BMP, TIFF or WebP"
_decoding = anyio.CapacityLimiter(2)  # a decoded image may take 160 MB


@dataclass(frozen=True)
class Upload:
    """An image file that may be inspected. name: fit to be shown. suffix: of its format, as its content tells."""

    name: str
    content: bytes
    suffix: str


@dataclass(frozen=True)
class Asked:
    """What a request wants inspected; shape None: the best-fitting one."""

    images: tuple[Upload, ...]
    shape: str | None


async def read_uploads(request: Request, params: Params, settings: StationSettings) -> Asked:
    """The images of a multipart request, each checked to be one.

    Raises Problem: 408 when it does not come in time, 413 too large, 415 no image of a known format, 422 everything
    else.
    """
    try:
        async with asyncio.timeout(settings.timeout_seconds):
            form = await _form(request, settings)
    except TimeoutError:
        seconds = settings.timeout_seconds
        raise Problem(408, f"the request did not come within {seconds:g} s; send it again", reason="slow") from None
    try:
        files, shape = _fields(form, params.answers.shapes)
        contents = [(shown_name(file.filename), await file.read()) for file in files]
    finally:
        await form.close()
    checked = [
        await anyio.to_thread.run_sync(checked_image, content, name, params.raw.max_pixels, limiter=_decoding)
        for name, content in contents
    ]
    return Asked(tuple(checked), shape)


def checked_image(content: bytes, name: str, max_pixels: int) -> Upload:
    """An image file that can be decoded, of a known format. Raises Problem 413, 415 or 422."""
    if not content:
        raise Problem(422, f"{name}: the file is empty (0 bytes); send it again", reason="empty")
    found = _format(content)
    if found is None:
        raise Problem(415, f"{name}: expected {EXPECTED}, found none of them", reason="format")
    width, height = _size(content, name, found[0])
    if width * height > max_pixels or max(width, height) > LONGEST_SIDE:
        raise Problem(
            413,
            f"{name}: {width} x {height} px; at most {max_pixels} px in all and {LONGEST_SIDE} a side: crop the image",
            reason="pixels",
        )
    try:
        decode_image(content, name, max_pixels)
    except ImageError as error:
        raise Problem(422, str(error), reason="damaged") from None
    except Exception as error:  # what a hostile file leads a decoder to beyond what `decode_image` knows of
        raise Problem(422, f"{name}: cannot be decoded ({type(error).__name__})", reason="damaged") from error
    return Upload(name, content, found[1])


def shown_name(given: str | None) -> str:
    """The name of a file as it may be shown: no folders, no control or invisible characters, at most 120 long."""
    text = unicodedata.normalize("NFC", (given or "").encode("utf-8", "replace").decode())
    last = re.split(r"[/\\]", text)[-1]
    visible = "".join(
        letter for letter in last if letter == " " or unicodedata.category(letter)[0] not in "CZ"
    )  # C: control, format (right-to-left overrides), surrogates; Z: separators
    name = visible.strip(" .") or UNNAMED
    suffix = PurePosixPath(name).suffix[:10]
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - len(suffix)] + suffix


class _ImageForm(MultiPartParser):
    """A form that is refused as soon as one of its images is too large, or there are too many."""

    def __init__(self, request: Request, limits: StationSettings, most: int):
        super().__init__(request.headers, _counted(request.stream(), most), max_part_size=_LONGEST_FIELD)
        self._limits = limits
        self._parts = 0
        self._grown = 0

    def on_part_begin(self) -> None:
        self._grown = 0
        self._parts += 1
        if self._parts > self._limits.images_a_request + 1:  # the shape is one
            raise _too_many(self._limits)
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._grown += end - start
        most = self._limits.upload_bytes
        if self._grown > most:
            raise Problem(413, f"an image has more than {most} bytes; send a smaller one", reason="bytes")
        super().on_part_data(data, start, end)


async def _form(request: Request, limits: StationSettings) -> FormData:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, f"expected multipart/form-data with the field {IMAGES}", reason="form")
    most = limits.images_a_request * limits.upload_bytes + _OVERHEAD
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    try:
        form = await _ImageForm(request, limits, most).parse()
    except MultiPartException as error:
        raise Problem(422, f"the form cannot be read: {error.message}", reason="form") from None
    if len(form.getlist(IMAGES)) > limits.images_a_request:
        await form.close()
        raise _too_many(limits)
    return form


def _too_many(limits: StationSettings) -> Problem:
    return Problem(
        422, f"at most {limits.images_a_request} images a request; send the others in another", reason="images"
    )


async def _counted(stream: AsyncGenerator[bytes, None], most: int) -> AsyncGenerator[bytes, None]:
    read = 0
    async for part in stream:
        read += len(part)
        if read > most:
            raise _too_large(most)
        yield part


def _too_large(most: int) -> Problem:
    return Problem(413, f"the request has more than {most} bytes; send fewer or smaller images", reason="bytes")


def _fields(form: FormData, shapes: Sequence[str]) -> tuple[list[UploadFile], str | None]:
    """The files and the shape of a form that holds nothing else."""
    unknown = sorted({name for name in form if name not in (IMAGES, SHAPE)})
    if unknown:
        raise Problem(422, f"expected the fields {IMAGES} and {SHAPE}, found {unknown[0][:40]!r}", reason="form")
    files = form.getlist(IMAGES)
    if not files or not all(isinstance(file, UploadFile) for file in files):
        raise Problem(422, f"{IMAGES}: expected one image file or several", reason="form")
    given = form.getlist(SHAPE)
    if len(given) > 1 or (given and given[0] not in ("", *shapes)):
        raise Problem(422, f"{SHAPE}: expected one of {', '.join(shapes)}", reason="shape")
    return files, (given[0] or None) if given else None


def _format(content: bytes) -> tuple[str, str] | None:
    """The format's name to Pillow and its suffix, by the first bytes."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _WEBP
    return next((found for signature, found in _FORMATS.items() if content.startswith(signature)), None)


def _size(content: bytes, name: str, kind: str) -> tuple[int, int]:
    """Width and height in px, by the header alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit comes next
            return Image.open(io.BytesIO(content), formats=(kind,)).size
    except Image.DecompressionBombError:
        raise Problem(413, f"{name}: far too many pixels; crop the image", reason="pixels") from None
    except Exception:  # Pillow's readers raise whatever a hostile header leads them to
        raise Problem(
            422, f"{name}: the {kind} header is damaged or cut short; send it again", reason="damaged"
        ) from None
