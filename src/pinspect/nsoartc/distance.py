"""NSOARTC, stage 1: the distance image (DST) of a color capture against a gray reference.

    DST_c = (sum over the parts of |g_k - m_ck|^p)^(1/p)        p = 4: a Minkowski distance

with g_k the response of part k to the reference and m_ck its response to channel c of the capture (`parts.py`). A
response is linear, so g_k - m_ck is the response to one image, the reference minus the channel.

The default parts consist of rows, columns and diagonals. In an image of w columns that is stored row after row, a row
is every pixel, a column every w-th, and a diagonal every (w + 1)-th or (w - 1)-th. One function sums along all four: it
doubles the length of its sums until they have n pixels, so that a part of n x n pixels costs log2(n) additions a pixel.
Sums are never differences of longer sums, so that float32 loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pinspect.core.errors import ImageError
from pinspect.core.nsoartc_settings import FRAME_PAIRS, NsoartcSettings
from pinspect.nsoartc.parts import FloatImage, matrix_of
from pinspect.nsoartc.pixels import LUMINANCE, as_captures, as_reference

_BAND_ROWS = 64  # rows of an image at a time, at least: the working set stays in the processor's cache

DEFAULT_SETTINGS = NsoartcSettings()


def nsoartc(
    capture: Image.Image | npt.ArrayLike,
    reference: Image.Image | npt.ArrayLike,
    settings: NsoartcSettings = DEFAULT_SETTINGS,
    *,
    same_size: bool = False,
) -> FloatImage:
    """Compute the distance image of a capture, or of each capture of a batch.

    Args:
        capture: RGB, (rows, columns, 3) or (captures, rows, columns, 3), in 0..1 or as uint8 or uint16. A gray
            capture, (rows, columns) or with one channel, counts as three equal channels. Transparency is laid over
            black. A Pillow image is taken as well.
        reference: Gray, (rows, columns), the mean of passed captures. Color becomes luminance.
        settings: Parts, size, stride, exponent and variant.
        same_size: Repeat the border, so that the result has a value for every pixel (every `stride`-th pixel), with
            the part's center on that pixel. Otherwise the parts stay within the image, as the definition says.

    Returns:
        float32 (rows, columns, 3), with the batch axis in front where `capture` has one. Without `same_size`, rows
        and columns are `(side - size) // stride + 1`. Values are at least 0 and at most (2 * size - 1) * 7^(1/4) for
        default settings and images in 0..1.

    Raises:
        ImageError: The sizes differ, the images are smaller than the parts, or an array is no photograph.
    """
    captures, is_batch = as_captures(capture)
    gray = as_reference(reference)
    _check_sizes(captures, gray, settings, same_size)
    distances = compare(captures, gray, settings, same_size=same_size)
    return distances if is_batch else distances[0]


def compare(captures: FloatImage, gray: FloatImage, settings: NsoartcSettings, *, same_size: bool) -> FloatImage:
    """Compute the distance images of captures that are known to be valid.

    Args:
        captures: float32 (captures, rows, columns, 3 or 1), about 0..1.
        gray: The reference, float32 (rows, columns), of the same size, at least as large as the parts.
        settings: As for `nsoartc`.
        same_size: As for `nsoartc`.

    Returns:
        float32 (captures, rows, columns, 3), as `nsoartc` returns it.
    """
    if same_size:
        gray = _with_border(gray, settings.size)
    rows, columns = ((side - settings.size) // settings.stride + 1 for side in gray.shape)
    distances = np.zeros((len(captures), rows, columns, captures.shape[-1]), np.float32)
    windows = _Windows(gray, captures.shape[-1], settings)
    for pixels, distance in zip(captures, distances, strict=True):
        windows.measure(_with_border(pixels, settings.size) if same_size else pixels, distance)
    return np.repeat(distances, 3, axis=-1) if distances.shape[-1] == 1 else distances


def one_gain(capture: npt.ArrayLike, reference: npt.ArrayLike) -> FloatImage:
    """Multiply a capture by the one factor that brings its luminance closest to the reference (least squares).

    Args:
        capture: One capture as `nsoartc` takes it.
        reference: Gray (rows, columns), of the same size.

    Returns:
        float32 (rows, columns, 3), or (rows, columns, 1) for a gray capture. A black capture is returned as it is.

    Raises:
        ImageError: The sizes differ or an array is no photograph.
    """
    pixels, gray = as_captures(capture)[0][0], as_reference(reference)
    if pixels.shape[:2] != gray.shape:
        raise ImageError(_different_sizes(pixels, gray))
    luminance: FloatImage = pixels @ LUMINANCE if pixels.shape[-1] == 3 else pixels[..., 0]
    power = float((luminance * luminance).sum())
    return pixels * np.float32(float((gray * luminance).sum()) / power) if power > 0 else pixels


def dst_picture(distance: FloatImage, white: float | None = None) -> npt.NDArray[np.uint8]:
    """Scale a distance image to a picture.

    Args:
        distance: float32, as `nsoartc` returns it.
        white: The distance that becomes 255: a constant of the unit space, so that the brightness of pictures can be
            compared. None: the largest distance of this picture (the series' form, which stretches a passed capture
            to 255 as well).

    Returns:
        uint8, of the shape of `distance`. Larger distances than `white` are clipped. Without any distance, all is 0.
    """
    level = float(distance.max()) if white is None else white
    if level <= 0:
        return np.zeros(distance.shape, np.uint8)
    # OpenCV rounds and clips in one pass; it would take a short array for one of channels.
    flat = np.ascontiguousarray(distance, np.float32).reshape(1, -1)
    return np.asarray(cv2.convertScaleAbs(flat, alpha=255 / level), np.uint8).reshape(distance.shape)


def _check_sizes(captures: FloatImage, gray: FloatImage, settings: NsoartcSettings, same_size: bool) -> None:
    if captures.shape[1:3] != gray.shape:
        raise ImageError(_different_sizes(captures[0], gray))
    if not same_size and min(gray.shape) < settings.size:
        raise ImageError(
            f"an image of {gray.shape[1]} x {gray.shape[0]} px is smaller than the parts of {settings.size} x "
            f"{settings.size} px; use smaller parts or same_size"
        )


def _different_sizes(pixels: FloatImage, gray: FloatImage) -> str:
    sizes = [f"{image.shape[1]} x {image.shape[0]} px" for image in (pixels, gray)]
    return f"the capture has {sizes[0]}, its reference {sizes[1]}; align the capture to the reference first"


def _with_border(pixels: FloatImage, size: int) -> FloatImage:
    """Repeat the border of (rows, columns) or (rows, columns, channels): every pixel becomes the center of a part."""
    before, after = size // 2, size - 1 - size // 2
    bordered = cv2.copyMakeBorder(pixels, before, after, before, after, cv2.BORDER_REPLICATE)
    return np.asarray(bordered, np.float32).reshape(*bordered.shape[:2], *pixels.shape[2:])


class _Windows:
    """The windows of images of one size, compared with one reference, a band of rows at a time.

    Buffers of one band are kept: allocating whole images anew would take longer than the arithmetic. Sums are numbered
    by the pixel at which their line of `size` pixels starts; `_across` goes right, `_down` down, `_falling` down to the
    right, `_rising` down to the left. Lines that leave the image have meaningless sums, which no window uses.
    """

    def __init__(self, gray: FloatImage, channels: int, settings: NsoartcSettings) -> None:
        self._gray, self._channels, self._settings = gray, channels, settings
        height, width = gray.shape
        size, stride = settings.size, settings.stride
        self._line = width * channels
        self._columns = width - size + 1  # of all pixels: whole rows of windows are compared faster than every n-th one
        # A band has `size` - 1 rows in common with the next one: a fourth of its rows at most.
        band_rows = min(height, max(_BAND_ROWS, 4 * size))
        self._results = max(1, (band_rows - size) // stride + 1)
        buffers = np.zeros((6, band_rows * self._line), np.float32)
        self._difference, self._across, self._down, self._falling, self._rising, self._spare = buffers
        results = np.empty((4, self._results, self._columns, channels), np.float32)
        self._response, self._second_response, self._square, self._total = results

    def measure(self, pixels: FloatImage, distance: FloatImage) -> None:
        """Add the distance of every window to `distance`, zeros of float32 (rows, columns, channels)."""
        size, stride = self._settings.size, self._settings.stride
        for start in range(0, len(distance), self._results):
            stop = min(start + self._results, len(distance))
            rows = slice(start * stride, (stop - 1) * stride + size)
            self._sum_lines(self._gray[rows], pixels[rows])
            if stride == 1:
                self._minkowski(distance[start:stop])
                continue
            total = self._total[: stop - start]
            total[...] = 0
            self._minkowski(total)
            distance[start:stop] = total[:, ::stride]

    def _sum_lines(self, gray: FloatImage, pixels: FloatImage) -> None:
        shape, length = pixels.shape, pixels.size
        difference = self._difference[:length].reshape(shape)
        cv2.merge([gray] * self._channels, dst=difference)
        cv2.subtract(difference, pixels, dst=difference)
        size, names = self._settings.size, [name for name in self._settings.parts if self._settings.is_default(name)]
        if any(name not in ("LINE1", "LINE2") for name in names):
            self._sum_every(self._channels, size, self._across, length)
            # A row and a column share a pixel, which counts once: the columns are shorter by this pixel.
            self._sum_every(self._line, size - 1, self._down, length)
        if "LINE2" in names:
            self._sum_every(self._line + self._channels, size, self._falling, length)
        if "LINE1" in names:
            self._sum_every(self._line - self._channels, size, self._rising, length)

    def _sum_every(self, step: int, count: int, target: FloatImage, length: int) -> None:
        """Write into `target` the sum of `count` values, each `step` values further, that starts at each value.

        Two sums of k values make one of 2 k, and one value more makes k + 1: the binary digits of `count` lead to it.
        """
        values, spare = self._difference[:length], self._spare[:length]
        if count == 0:
            target[:length] = 0
            return
        lengths = [1]
        for digit in f"{count:b}"[1:]:
            lengths += [2 * lengths[-1]] + [2 * lengths[-1] + 1] * (digit == "1")
        sums = values
        # Each step writes into the buffer that the step before it left free; the last one writes into `target`.
        for number, (known, longer) in enumerate(pairwise(lengths), start=1):
            longer_sums = target[:length] if (len(lengths) - 1 - number) % 2 == 0 else spare
            addend, start = (sums if longer == 2 * known else values), min(known * step, length)
            np.add(sums[: length - start], addend[start:], out=longer_sums[: length - start])
            sums = longer_sums
        if sums is values:
            target[:length] = values

    def _minkowski(self, total: FloatImage) -> None:
        """Write the distances of one band into `total`, zeros of float32 (rows, columns, channels)."""
        if self._settings.p == 4:  # the series' exponent
            square = self._square[: len(total)]
            for response in self._responses(len(total)):
                cv2.multiply(response, response, dst=square)
                cv2.accumulateSquare(square, total)
            cv2.sqrt(total, total)
            cv2.sqrt(total, total)
            return
        magnitudes = np.abs([response.copy() for response in self._responses(len(total))])
        # Relative to the largest, no power overflows, and the largest never underflows.
        largest = magnitudes.max(axis=0)
        unit = np.where(largest > 0, largest, np.float32(1))
        powers = (magnitudes / unit) ** np.float32(self._settings.p)
        np.multiply(largest, powers.sum(axis=0) ** np.float32(1 / self._settings.p), out=total)

    def _responses(self, rows: int) -> Iterator[FloatImage]:
        """Yield what is compared, float32 (rows, columns, channels), to read before the next one."""
        if self._settings.variant == "distance":
            for name in self._settings.parts:
                yield self._response_of(name, self._response[:rows])
            return
        for first, second in FRAME_PAIRS:
            response = self._response_of(first, self._response[:rows])
            cv2.subtract(response, self._response_of(second, self._second_response[:rows]), dst=self._response[:rows])
            yield self._response[:rows]

    def _response_of(self, name: str, buffer: FloatImage) -> FloatImage:
        """Return the response of one part, float32 (rows, columns, channels): a view of sums, or in `buffer`."""
        last, center, rows = self._settings.size - 1, self._settings.size // 2, len(buffer)
        match name:
            case _ if not self._settings.is_default(name):
                self._respond_own(name, buffer)
                return buffer
            case "LINE1":
                return self._at(self._rising, 0, last, rows)
            case "LINE2":
                return self._at(self._falling, 0, 0, rows)
            case "BEND1":
                row, top, column = 0, 1, last
            case "BEND2":
                row, top, column = last, 0, last
            case "BEND3":
                row, top, column = last, 0, 0
            case "BEND4":
                row, top, column = 0, 1, 0
            case _:
                row, top, column = center, 0, center
        # For a part of one pixel `top` would lie outside of it; its column is empty.
        top = min(top, last)
        cv2.add(self._at(self._across, row, 0, rows), self._at(self._down, top, column, rows), dst=buffer)
        if name == "DATUM" and last > 0:  # the column's last pixel is missing, and the shared pixel counts twice
            cv2.add(buffer, self._at(self._difference, last, center, rows), dst=buffer)
            cv2.subtract(buffer, self._at(self._difference, center, center, rows), dst=buffer)
        return buffer

    def _respond_own(self, name: str, response: FloatImage) -> None:
        """Write the response of an own part into `response`; the time grows with the part's area."""
        rows = (len(response) - 1) * self._settings.stride + self._settings.size
        shape = (rows, self._line // self._channels, self._channels)
        image = self._difference[: rows * self._line].reshape(shape).astype(np.float64)
        part = matrix_of(self._settings, name).astype(np.float64)
        sums = cv2.filter2D(image, -1, part, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
        response[...] = self._at(np.asarray(sums, np.float32).reshape(-1), 0, 0, len(response))

    def _at(self, sums: FloatImage, row: int, column: int, rows: int) -> FloatImage:
        """Return the values at one pixel of the windows of every `stride`-th row, a view (rows, columns, channels)."""
        stride, channels = self._settings.stride, self._channels
        lines = sums.reshape(-1, self._line // channels, channels)
        return lines[row : row + (rows - 1) * stride + 1 : stride, column : column + self._columns]
