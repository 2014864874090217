"""What all inspectors have in common, in this process or in one of their own: they are functions of photographs."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pinspect.core.errors import ImageError
from pinspect.inspection.files import printable, read_photograph
from pinspect.inspection.records import Inspection, Photograph, Prepared, Record, Task

BATCH = 16  # photographs that an inspector holds in memory at once
Picture = str | Path | bytes | Image.Image | npt.NDArray[Any] | Photograph


class PhotographInspector(ABC):
    """Inspects photographs of one line with one model: `inspector("photo.jpg")` returns an `Inspection`.

    `prepare` and `answer` are the two halves of `inspect`, for callers that run them on different threads.

    Attributes:
        version: Number of the registered version; None for a model from a folder.
    """

    version: str | None = None

    @property
    @abstractmethod
    def max_pixels(self) -> int:
        """The largest photograph that is accepted, in px."""

    @overload
    def __call__(self, photograph: Picture, *, shape: str | None = None) -> Inspection: ...
    @overload
    def __call__(self, photograph: Sequence[Picture], *, shape: str | None = None) -> list[Inspection]: ...
    def __call__(
        self, photograph: Picture | Sequence[Picture], *, shape: str | None = None
    ) -> Inspection | list[Inspection]:
        """Inspect a photograph, or each photograph of a list.

        Args:
            photograph: A path, the bytes of an image file, a Pillow image, or an array (gray (H, W) or RGB (H, W, 3),
                uint8 or uint16); or a list of them.
            shape: Pin shape of the captures; None for the shape that fits best.

        Returns:
            The inspection. For a list: one inspection per photograph, in order; a photograph that cannot be inspected
            has `error` set.

        Raises:
            ImageError: The single photograph cannot be read.
            AlignmentError: The single photograph does not show the line.
            AnswerFormatError: The model's answer to the single photograph breaks the answer contract.
        """
        if isinstance(photograph, list | tuple):
            batches = (photograph[start : start + BATCH] for start in range(0, len(photograph), BATCH))
            return [inspection for batch in batches for inspection in self._inspect_batch(batch, shape)]
        return self.inspect_photograph(_to_photograph(cast(Picture, photograph), self.max_pixels), shape)

    def _inspect_batch(self, pictures: Sequence[Picture], shape: str | None) -> list[Inspection]:
        photographs: dict[int, Photograph] = {}
        inspections: dict[int, Inspection] = {}
        for number, picture in enumerate(pictures):
            try:
                photographs[number] = _to_photograph(picture, self.max_pixels)
            except ImageError as error:
                inspections[number] = Inspection(_name(picture), model_version=self.version, error=str(error))
        inspections |= zip(photographs, self.inspect_photographs(list(photographs.values()), shape), strict=True)
        return [inspections[number] for number in range(len(pictures))]

    @abstractmethod
    def inspect_photograph(self, photograph: Photograph, shape: str | None = None) -> Inspection:
        """Inspect one photograph; raises what a call with a single photograph raises."""

    @abstractmethod
    def inspect_photographs(self, photographs: Sequence[Photograph], shape: str | None = None) -> list[Inspection]:
        """Inspect photographs that share forward passes; one that cannot be inspected has `error` set."""

    @abstractmethod
    def inspect(self, tasks: Sequence[Task]) -> list[Record]:
        """Inspect captures that share forward passes.

        Args:
            tasks: The captures.

        Returns:
            One record per task, in order, with the keys of `empty_record`. `error` is None, or the reason why the
            capture could not be inspected; the other values are then None.
        """

    @abstractmethod
    def prepare(self, task: Task) -> Prepared:
        """Align, measure and draw a capture: the part of an inspection that needs no model.

        Several threads may call this method at once, also while `answer` runs.

        Args:
            task: The capture.

        Returns:
            The capture, ready for `answer`.

        Raises:
            ImageError: A photograph cannot be read.
            AlignmentError: A photograph does not show the line.
        """

    @abstractmethod
    def answer(self, prepared: Sequence[Prepared]) -> list[Record]:
        """Ask the model about captures that this inspector prepared.

        Args:
            prepared: The captures; at most `evaluate.batch_size` of them share a forward pass.

        Returns:
            One record per capture, in order, as `inspect` returns them.
        """

    @abstractmethod
    def pictures(self, photograph: Photograph, shape: str | None = None) -> dict[str, bytes]:
        """Draw both views of a photograph as the model sees them.

        Args:
            photograph: The photograph.
            shape: Its pin shape; None for the shape that fits best.

        Returns:
            The JPEG bytes of the single composite of each view, `RAW` and `DST`.

        Raises:
            ImageError: The photograph cannot be read.
            AlignmentError: The photograph does not show the line.
        """

    @abstractmethod
    def locate_pin(self, photograph: Photograph, address: str, shape: str | None = None) -> npt.NDArray[np.float64]:
        """Locate the cell of a pin in a photograph.

        Args:
            photograph: The photograph.
            address: The pin, such as `X:3, Y:U`.
            shape: Pin shape of the photograph; None for the shape that fits best.

        Returns:
            float64 (4, 2): x and y of the corners in px, clockwise from the pin's top left. Pixel centers are at whole
            numbers.

        Raises:
            ImageError: The photograph cannot be read.
            AlignmentError: The photograph does not show the line.
            ValueError: The layout has no such pin.
        """

    @abstractmethod
    def try_out(self) -> None:
        """Inspect the references of the line.

        A broken model fails here, before anything relies on it, and everything that a model does only once is done.
        """


def _to_photograph(picture: Picture, max_pixels: int) -> Photograph:
    name = _name(picture)
    match picture:
        case Photograph():
            return picture
        case str() | Path():
            return read_photograph(Path(picture), max_pixels, name)
        case bytes():
            return Photograph(name, picture)
        case _:
            return Photograph(name, _encode(picture, name))


def _name(picture: Picture) -> str:
    """Return the name of a photograph in records and errors; a picture in memory has none of its own."""
    if isinstance(picture, Photograph):
        return picture.name
    if isinstance(picture, str | Path):
        return printable(Path(picture))
    return str(getattr(picture, "filename", "") or "image")


def _encode(picture: Image.Image | npt.NDArray[Any], name: str) -> bytes:
    """Return a picture in memory as the bytes of a file, so that it is checked and converted like a file."""
    try:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else ImageOps.exif_transpose(picture)
        content = io.BytesIO()
        image.save(content, "PNG" if image.mode in ("P", "PA") else "TIFF")  # TIFF is lossless and not compressed
        return content.getvalue()
    except (TypeError, ValueError, KeyError, OSError, AttributeError) as error:
        raise ImageError(
            f"{name}: not a photograph ({error}); pass a path, the bytes of an image file, a Pillow image, or an array "
            "(H, W) or (H, W, 3) of uint8 or uint16"
        ) from None
