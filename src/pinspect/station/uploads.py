"""Checks of uploads: bytes, number of images, formats, pixels, names. The process of the model decodes them.

Formats are recognized by content. A file name is only shown, and names the eye of the line; it never becomes a path.
Bytes are counted while the request is read; pixels are read from the header before anything is decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import unicodedata
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from pinspect.core.params import Params
from pinspect.station.problems import Problem
from pinspect.station.settings import StationSettings
from pinspect.station.trace import TRACE, trace_problem

IMAGES, SHAPE = "images", "shape"
_FIELDS = (IMAGES, SHAPE, *TRACE)
LONGEST_SIDE = 16_000  # px; OpenCV cannot warp images with more than 32,767
LONGEST_NAME = 120
UNNAMED = "capture"
_OVERHEAD = 1 << 20  # bytes of a form beyond its images
_LONGEST_FIELD = 1000  # bytes
_FORMATS = {
    b"\xff\xd8\xff": ("JPEG", ".jpg"),
    b"\x89PNG\r\n\x1a\n": ("PNG", ".png"),
    b"BM": ("BMP", ".bmp"),
    b"II*\0": ("TIFF", ".tif"),
    b"MM\0*": ("TIFF", ".tif"),
}
_WEBP = ("WEBP", ".webp")  # has the file's length in the middle of its signature
EXPECTED = "JPEG, PNG, BMP, TIFF or WebP"


@dataclass(frozen=True)
class Upload:
    """An image file that can be inspected.

    Attributes:
        name: File name that is safe to show.
        content: Bytes of the file.
        suffix: Suffix of its format, such as `.jpg`, from the content.
    """

    name: str
    content: bytes
    suffix: str


@dataclass(frozen=True)
class UploadRequest:
    """The images of a request.

    Attributes:
        images: The images, in order.
        shape: Their pin shape; None for the best-fitting one.
        trace: `serial` and `lot` of the connector that they show, if the request has them.
    """

    images: tuple[Upload, ...]
    shape: str | None
    trace: Mapping[str, str]


class ByteBudget:
    """The bytes of all uploads that are read or inspected at this moment.

    Args:
        most: Most bytes.
    """

    def __init__(self, most: int):
        self._most, self._used = most, 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that takes bytes for one request, or raises Problem 503; all are free again at the end."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            taken += count
            self._used += count
            if self._used > self._most:
                raise Problem(
                    503, "too many uploads at once; send it again", reason="busy", headers={"Retry-After": "5"}
                )

        try:
            yield take
        finally:
            self._used -= taken


async def read_uploads(
    request: Request, params: Params, settings: StationSettings, take: Callable[[int], None]
) -> UploadRequest:
    """Read and check the images of a multipart request.

    Args:
        request: The request.
        params: Pin shapes, and the largest image.
        settings: Limits of the request.
        take: Called with the number of bytes before they are kept, see `ByteBudget`.

    Raises:
        Problem: 408 if the request is too slow, 413 if it is too large, 415 if an image has an unknown format, 503 if
            there are too many uploads at once, else 422.
    """
    try:
        async with asyncio.timeout(settings.timeout_seconds):
            form = await _form(request, settings, take)
    except TimeoutError:
        seconds = settings.timeout_seconds
        raise Problem(408, f"the request was not complete within {seconds:g} s; send it again", reason="slow") from None
    try:
        files, shape, trace = _fields(form, params.answers.shapes)
        contents = [(shown_name(file.filename), await file.read()) for file in files]
    finally:
        await form.close()
    checked = [checked_image(content, name, params.raw.max_pixels) for name, content in contents]
    return UploadRequest(tuple(checked), shape, trace)


def checked_image(content: bytes, name: str, max_pixels: int) -> Upload:
    """Check that an image file has a known format and is not too large; the model's process decodes it.

    Args:
        content: Bytes of the file.
        name: File name for messages.
        max_pixels: Most pixels of the image.

    Raises:
        Problem: 413, 415 or 422.
    """
    if not content:
        raise Problem(422, f"{name}: the file is empty (0 bytes); send it again", reason="empty")
    image_format = _format(content)
    if image_format is None:
        raise Problem(415, f"{name}: expected {EXPECTED}, but the file has another format", reason="format")
    width, height = _size(content, name, image_format[0])
    if width * height > max_pixels or max(width, height) > LONGEST_SIDE:
        raise Problem(
            413,
            f"{name}: {width} x {height} px; at most {max_pixels} px in total and {LONGEST_SIDE} px per side; "
            "crop the image",
            reason="pixels",
        )
    return Upload(name, content, image_format[1])


def shown_name(filename: str | None) -> str:
    """Return a file name that is safe to show: no folders, no control or invisible characters, at most 120 long."""
    text = unicodedata.normalize("NFC", (filename or "").encode("utf-8", "replace").decode())
    last = re.split(r"[/\\]", text)[-1]
    visible = "".join(
        letter for letter in last if letter == " " or unicodedata.category(letter)[0] not in "CZ"
    )  # C: control, format (right-to-left overrides), surrogates; Z: separators
    name = visible.strip(" .") or UNNAMED
    suffix = PurePosixPath(name).suffix[:10]
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - len(suffix)] + suffix


class _ImageForm(MultiPartParser):
    """A form parser that stops as soon as an image is too large or there are too many images."""

    def __init__(self, request: Request, limits: StationSettings, most: int, take: Callable[[int], None]):
        super().__init__(request.headers, _counted(request.stream(), most, take), max_part_size=_LONGEST_FIELD)
        self._limits = limits
        self._parts = 0
        self._part_bytes = 0

    def on_part_begin(self) -> None:
        self._part_bytes = 0
        self._parts += 1
        if self._parts > self._limits.images_a_request + len(_FIELDS) - 1:
            raise _too_many(self._limits)
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part_bytes += end - start
        most = self._limits.upload_bytes
        if self._part_bytes > most:
            raise Problem(413, f"an image has more than {most} bytes; send a smaller one", reason="bytes")
        super().on_part_data(data, start, end)


async def _form(request: Request, limits: StationSettings, take: Callable[[int], None]) -> FormData:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, f"expected multipart/form-data with the field {IMAGES}", reason="form")
    most = limits.images_a_request * limits.upload_bytes + _OVERHEAD
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    try:
        form = await _ImageForm(request, limits, most, take).parse()
    except MultiPartException as error:
        raise Problem(422, f"the form cannot be read: {error.message}", reason="form") from None
    if len(form.getlist(IMAGES)) > limits.images_a_request:
        await form.close()
        raise _too_many(limits)
    return form


def _too_many(limits: StationSettings) -> Problem:
    return Problem(
        422,
        f"at most {limits.images_a_request} images per request; send the remaining images in another request",
        reason="images",
    )


async def _counted(
    stream: AsyncGenerator[bytes, None], most: int, take: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    read = 0
    async for part in stream:
        read += len(part)
        take(len(part))
        if read > most:
            raise _too_large(most)
        yield part


def _too_large(most: int) -> Problem:
    return Problem(413, f"the request has more than {most} bytes; send fewer or smaller images", reason="bytes")


def _fields(form: FormData, shapes: Sequence[str]) -> tuple[list[UploadFile], str | None, dict[str, str]]:
    """The files, the shape, and serial number and lot of a form; other fields are refused."""
    unknown = sorted({name for name in form if name not in _FIELDS})
    if unknown:
        raise Problem(
            422, f"expected the fields {', '.join(_FIELDS)}, but the form has {unknown[0][:40]!r}", reason="form"
        )
    files = [file for file in form.getlist(IMAGES) if isinstance(file, UploadFile)]
    if not files or len(files) < len(form.getlist(IMAGES)):
        raise Problem(422, f"{IMAGES}: expected one or more image files", reason="form")
    chosen = form.getlist(SHAPE)
    if len(chosen) > 1 or (chosen and chosen[0] not in ("", *shapes)):
        raise Problem(422, f"{SHAPE}: expected one of {', '.join(shapes)}", reason="shape")
    return files, (str(chosen[0]) or None) if chosen else None, _trace(form)


def _trace(form: FormData) -> dict[str, str]:
    trace: dict[str, str] = {}
    for name in TRACE:
        values = form.getlist(name)
        if len(values) > 1 or not all(isinstance(value, str) for value in values):
            raise Problem(422, f"{name}: expected one text; it is about all images of the request", reason="form")
        value = str(values[0]).strip() if values else ""
        if problem := trace_problem(value):
            raise Problem(422, f"{name}: {problem}", reason="form")
        if value:
            trace[name] = value
    return trace


def _format(content: bytes) -> tuple[str, str] | None:
    """Pillow's name of the format, and its suffix, from the first bytes."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _WEBP
    return next((kind for signature, kind in _FORMATS.items() if content.startswith(signature)), None)


def _size(content: bytes, name: str, kind: str) -> tuple[int, int]:
    """Width and height (px) from the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller has its own limit
            return Image.open(io.BytesIO(content), formats=(kind,)).size
    except Image.DecompressionBombError:
        raise Problem(413, f"{name}: too many pixels; crop the image", reason="pixels") from None
    except Exception:  # a malicious header can make a reader raise anything
        raise Problem(
            422, f"{name}: the {kind} header is damaged or cut short; send it again", reason="damaged"
        ) from None
