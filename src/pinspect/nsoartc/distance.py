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

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from pinspect.core.errors import ImageError
from pinspect.core.nsoartc_settings import FRAME_PAIRS, NsoartcSettings
from pinspect.nsoartc.parts import FloatImage, matrix_of
from pinspect.nsoartc.pixels import LUMINANCE, as_captures, as_reference

_BAND_ROWS = 96  # rows of an image at a time, at least: the working set stays in the processor's cache

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
    windows = _Windows.of(gray.shape, captures.shape[-1], settings)
    for pixels, distance in zip(captures, distances, strict=True):
        windows.measure(gray, _with_border(pixels, settings.size) if same_size else pixels, distance)
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
    """The windows of images of one size, compared a band of rows at a time.

    A band is split into its phases: every `stride`-th pixel of every `stride`-th row, from each of the first pixels on.
    A window then has one place in all phases, and all sums are as small as the result.

    Buffers of one band are kept, also for the next images: new memory would take longer than the arithmetic. Sums are
    numbered by their window. Places beyond the last window of a row have meaningless sums, which nothing uses.
    """

    _last = threading.local()

    @classmethod
    def of(cls, shape: tuple[int, ...], channels: int, settings: NsoartcSettings) -> _Windows:
        """Return windows for images of `shape` (rows, columns): those that this thread used last, if they fit."""
        geometry = (shape, channels, settings.size, settings.stride)
        if getattr(cls._last, "geometry", None) != geometry:
            cls._last.geometry, cls._last.windows = geometry, cls(*geometry)
        windows: _Windows = cls._last.windows
        windows._settings = settings  # which do not change the buffers
        return windows

    def __init__(self, shape: tuple[int, ...], channels: int, size: int, stride: int) -> None:
        self._channels, self._size, self._stride = channels, size, stride
        self._settings = DEFAULT_SETTINGS
        height, width = shape
        self._columns = (width - size) // stride + 1
        # A band has `size` - 1 rows in common with the next one: a fourth of its rows at most.
        self._results = max(1, (min(height, max(_BAND_ROWS, 4 * size)) - size) // stride + 1)
        rows = (self._results - 1) * stride + size
        self._places = (-(-rows // stride), -(-width // stride))
        # The first `stride // 2` pixels are empty: see `_phase`.
        self._band = np.zeros((*(stride * places + stride - 1 for places in self._places), channels), np.float32)
        self._difference = self._band[stride // 2 :, stride // 2 :][:rows, :width]
        self._length = self._places[0] * self._places[1] * channels
        self._phases: dict[tuple[int, int], FloatImage] = {}
        self._sums: dict[tuple[int, ...], FloatImage] = {}
        self._fresh: set[tuple[int, ...]] = set()  # phases and sums of the present band
        self._group, self._spare = np.zeros((2, self._length), np.float32)
        results = np.empty((3, self._results, self._columns, channels), np.float32)
        self._response, self._second_response, self._square = results

    def measure(self, gray: FloatImage, pixels: FloatImage, distance: FloatImage) -> None:
        """Add the distance of every window to `distance`, zeros of float32 (rows, columns, channels)."""
        size, stride = self._size, self._stride
        for start in range(0, len(distance), self._results):
            stop = min(start + self._results, len(distance))
            rows = slice(start * stride, (stop - 1) * stride + size)
            difference = self._difference[: rows.stop - rows.start]
            cv2.merge([gray[rows]] * self._channels, dst=difference)
            cv2.subtract(difference, pixels[rows], dst=difference)
            self._fresh.clear()
            self._minkowski(distance[start:stop])

    def _phase(self, row: int, column: int) -> FloatImage:
        """Return every `stride`-th pixel from row and column (each less than `stride`) on.

        Returns:
            float32, flat: the channels of all places, row after row.
        """
        key, stride = (row, column), self._stride
        if stride == 1:
            return self._difference.reshape(-1)
        if key not in self._fresh:
            if key not in self._phases:
                self._phases[key] = np.empty((*self._places, self._channels), np.float32)
            # Nearest neighbors of a picture `stride` times smaller are the pixels in the middle of its squares, and
            # OpenCV finds them three times as fast as NumPy copies them.
            rows, columns = self._places
            squares = self._band[row : row + rows * stride, column : column + columns * stride]
            cv2.resize(squares, (columns, rows), dst=self._phases[key], interpolation=cv2.INTER_NEAREST_EXACT)
            self._fresh.add(key)
        return self._phases[key].reshape(-1)

    def _pixel(self, row: int, column: int) -> FloatImage:
        """Return one pixel of every window, by its row and column there: float32, flat, from the first window on."""
        stride = self._stride
        down, right = row // stride, column // stride
        return self._phase(row % stride, column % stride)[(down * self._places[1] + right) * self._channels :]

    def _windows(self, values: FloatImage, first: tuple[int, int], rows: int) -> FloatImage:
        """Return the values of all windows, whose first one lies at `first` px: a view (rows, columns, channels)."""
        down, right = (px // self._stride for px in first)
        return values.reshape(*self._places, -1)[down : down + rows, right : right + self._columns]

    def _pixel_of_each(self, pixel: tuple[int, int], rows: int) -> FloatImage:
        """Return one pixel of every window, by its row and column there: a view (rows, columns, channels)."""
        return self._windows(self._phase(pixel[0] % self._stride, pixel[1] % self._stride), pixel, rows)

    def _sum(self, first: tuple[int, int], step: tuple[int, int], count: int, rows: int) -> FloatImage:
        """Return the sum of the pixels of a line in every window.

        Args:
            first: Row and column of the line's first pixel in the window.
            step: Rows and columns from one pixel of the line to the next one.
            count: Number of pixels.
            rows: Number of rows of windows.

        Returns:
            A view, float32 (rows, columns, channels).
        """
        stride, (down, right) = self._stride, step
        # Lines that lie whole strides apart share their sums. A line that goes left keeps its place: from an earlier
        # one it would leave the image.
        row, column = first[0] % stride, first[1] % stride if right >= 0 else first[1]
        key = (row, column, down, right, count)
        if key not in self._sums:
            self._sums[key] = np.zeros(self._length, np.float32)
        if key not in self._fresh:
            spacing = (down * self._places[1] + right) * self._channels
            self._add_up(lambda n: self._pixel(row + n * down, column + n * right), count, spacing, self._sums[key])
            self._fresh.add(key)
        return self._windows(self._sums[key], (first[0] - row, first[1] - column), rows)

    def _add_up(self, pixel: Callable[[int], FloatImage], count: int, spacing: int, target: FloatImage) -> None:
        """Write the sum of `pixel(0)` to `pixel(count - 1)` into `target`.

        Pixels that are `stride` pixels apart belong to one phase, where they are `spacing` values apart. So `stride`
        pixels make a group, two sums of k groups make one of 2 k, and one group more makes k + 1: the binary digits of
        the number of groups lead to it.
        """
        stride = self._stride
        groups = count // stride
        terms = [pixel(n) for n in range(groups * stride, count)]
        if groups:
            group = pixel(0)
            for n in range(1, stride):
                group = _add(group, pixel(n), self._group)
            lengths = [1]
            for digit in f"{groups:b}"[1:]:
                lengths += [2 * lengths[-1]] + [2 * lengths[-1] + 1] * (digit == "1")
            sums = group
            # Each step writes into the buffer that the step before it left free; the last one writes into `target`.
            for number, (known, longer) in enumerate(pairwise(lengths), start=1):
                addend = sums if longer == 2 * known else group
                sums = _add(sums, addend[known * spacing :], target if (len(lengths) - number) % 2 else self._spare)
            terms.insert(0, sums)
        total = terms[0] if terms else np.zeros_like(target)
        for term in terms[1:]:
            total = _add(total, term, target)
        if not np.may_share_memory(total, target):
            target[: len(total)] = total

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
        size, rows = self._size, len(buffer)
        last, center = size - 1, size // 2
        match name:
            case _ if not self._settings.is_default(name):
                self._respond_own(name, buffer)
                return buffer
            case "LINE1":
                return self._sum((0, last), (1, -1), size, rows)
            case "LINE2":
                return self._sum((0, 0), (1, 1), size, rows)
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
        # A row and a column share a pixel, which counts once: the column is shorter by this pixel. For a part of one
        # pixel `top` would lie outside of it; its column is empty.
        across = self._sum((row, 0), (0, 1), size, rows)
        cv2.add(across, self._sum((min(top, last), column), (1, 0), last, rows), dst=buffer)
        if name == "DATUM" and last > 0:  # the column's last pixel is missing, and the shared pixel counts twice
            cv2.add(buffer, self._pixel_of_each((last, center), rows), dst=buffer)
            cv2.subtract(buffer, self._pixel_of_each((center, center), rows), dst=buffer)
        return buffer

    def _respond_own(self, name: str, response: FloatImage) -> None:
        """Write the response of an own part into `response`; the time grows with the part's area."""
        image, stride = self._difference.astype(np.float64), self._stride
        part = matrix_of(self._settings, name).astype(np.float64)
        sums = cv2.filter2D(image, -1, part, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT).reshape(image.shape)
        response[...] = sums[::stride, ::stride][: len(response), : self._columns]


def _add(first: FloatImage, second: FloatImage, out: FloatImage) -> FloatImage:
    """Add as many values as both have; return the part of `out` that holds the sums."""
    length = min(len(first), len(second))
    return np.add(first[:length], second[:length], out=out[:length])
