"""What goes into an inspection and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pinspect.core.answers import DEFECTIVE, FIELDS
from pinspect.inspection.line_facts import LINE_FACTS
from pinspect.nsoartc.aligned import AlignedCapture

LOCALIZER = ("localizer_position", "localizer_disagrees", "pin_map")
PIN_VALUES = ("address_probabilities", "pin_map")  # lists of one number per pin
SCORES = ("p_defective", "threshold", "address_entropy", "address_probabilities")

Record = dict[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True)
class Photograph:
    """An image file in memory.

    Attributes:
        name: The name of the photograph in records and errors.
        content: The bytes of the file.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class Task:
    """One capture to inspect.

    Attributes:
        inspected: The capture.
        reference: The passed capture to compare with; None for the reference of the line.
        shape: Pin shape of the capture; None for the shape that fits best.
    """

    inspected: Photograph
    reference: Photograph | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Seen:
    """A photograph and the unit space that it fits.

    Attributes:
        image: The photograph, uint8 (H, W, 3), RGB.
        aspect: The name of the unit space: its shape, and its eye if the line has two (`CYLN`, or `CYLN-left`).
        capture: The photograph in gray, aligned to the unit space.
    """

    image: npt.NDArray[np.uint8]
    aspect: str
    capture: AlignedCapture


@dataclass(frozen=True)
class Prepared:
    """A capture that is ready for the model.

    Attributes:
        name: The name of the photograph.
        row: The row of a chat dataset, without an expected answer.
        pictures: JPEG bytes of the composites, by the names that the row uses.
        facts: The `LINE_FACTS` of the capture.
        pin_evidence: How conspicuous each pin is without a model (`nsoartc.pin_evidence`), 0..1.
    """

    name: str
    row: Record
    pictures: Mapping[str, bytes]
    facts: Mapping[str, float]
    pin_evidence: tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
    """The result for one photograph. If `error` is not None, the photograph was not inspected.

    Attributes:
        file: The name of the photograph.
        image_type: Shape and view, such as `CYLN_RAW`.
        number_of_pins: Such as `27 pins`.
        judgement: `passed` or `defective`.
        defect_mode: `passed`, or a defect mode of the line, such as `bend`.
        defect_position: `passed`, or the address of the pin, such as `X:2, Y:D`.
        answer: The answer of the model, in the form of the answer contract.
        p_defective: P(defective), 0..1.
        threshold: The capture is defective if P(defective) is at least this threshold, 0..1.
        address_probabilities: One probability per pin, row by row from the top left: where the defect is, if the
            capture has one. They sum to 1.
        address_entropy: Entropy of the address probabilities, in bits.
        localizer_position: The pin that the localizer finds defective, by its white in the DST picture or by the color
            of its top, without a model; or `passed`.
        localizer_disagrees: Whether model and localizer differ, in the judgement or in the pin: a person should look.
        pin_map: How defective each pin looks to the model or to the localizer, 0..1, row by row from the top left (see
            `pin_map`). Unlike `address_probabilities`, several pins can be near 1.
        pin_box: Corners of the defective pin's cell in the photograph, as (x, y) in px, clockwise from the top left of
            the pin; None for a passed capture.
        model_version: Version number in the registry; None for a model from a folder.
        error: Why the photograph could not be inspected; None if it was.
    """

    file: str
    image_type: str | None = None
    number_of_pins: str | None = None
    judgement: str | None = None
    defect_mode: str | None = None
    defect_position: str | None = None
    answer: str | None = None
    p_defective: float | None = None
    threshold: float | None = None
    address_probabilities: tuple[float, ...] | None = None
    address_entropy: float | None = None
    localizer_position: str | None = None
    localizer_disagrees: bool | None = None
    pin_map: tuple[float, ...] | None = None
    pin_box: tuple[Point, ...] | None = None
    model_version: str | None = None
    error: str | None = None

    @property
    def defective(self) -> bool:
        """Whether the capture is judged defective."""
        return self.judgement == DEFECTIVE

    def to_dict(self) -> Record:
        """Return the record of this inspection, ready for `json.dumps`."""
        record = with_lists(asdict(self))
        if self.pin_box is not None:
            record["pin_box"] = [list(corner) for corner in self.pin_box]
        return record


def with_lists(record: Record) -> Record:
    """Return a record whose values per pin are lists, as JSON has them."""
    return record | {name: list(record[name]) for name in PIN_VALUES if record[name] is not None}


def empty_record(file: str) -> Record:
    """Return the record of a capture that was not inspected yet: every value but `file` is None."""
    return {"file": file, **dict.fromkeys((*FIELDS, "answer", *SCORES, *LOCALIZER, *LINE_FACTS, "error"))}


def pin_map(
    pin_evidence: Sequence[float], p_defective: float | None, address_probabilities: Sequence[float] | None
) -> list[float]:
    """Combine what the localizer and the model make of each pin; the larger value counts.

    The model answers with one pin, so that its address probabilities sum to 1 and leave nothing for a second defect.

    Args:
        pin_evidence: How conspicuous each pin is without a model, 0..1.
        p_defective: The model's P(defective), 0..1; None if it was not measured.
        address_probabilities: The model's probability of each pin, if the capture is defective; None if not measured.

    Returns:
        One value per pin, 0..1: `max(evidence, P(defective) * P(pin | defective))`.
    """
    if p_defective is None or address_probabilities is None:
        return list(pin_evidence)
    return [max(each, p_defective * share) for each, share in zip(pin_evidence, address_probabilities, strict=True)]
