"""Check what the references of a line are good for, before anything is trained on their unit space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pinspect.core.errors import AlignmentError, UnitSpaceError
from pinspect.core.lines import Line
from pinspect.nsoartc.aligned import place_capture
from pinspect.nsoartc.light import MAD_TO_SIGMA
from pinspect.nsoartc.pin_scores import FEATURE_FLOORS, SCORED, measure_pins
from pinspect.nsoartc.pixels import gray_of
from pinspect.nsoartc.place import find_places
from pinspect.nsoartc.unit_space import UnitSpace

_ALIKE = 0.2  # of the floors: shots of one connector spread by 0.1 at most, of several connectors by 0.7 at least
_ONE_DIRECTION = 0.6  # of all differences: two cameras have 0.95, references of one camera 0.3 at most


def check_spread(
    references: Sequence[npt.NDArray[np.uint8]], names: Sequence[str], unit_space: UnitSpace, maximum_shift: float
) -> str:
    """Check whether the references show several connectors, and one view of them.

    Args:
        references: Captures, uint8 (H, W, 3), RGB.
        names: Their names.
        unit_space: The unit space that was built from them.
        maximum_shift: How far a capture may lie off its place, px of the unit space.

    Returns:
        A remark if the pins differ by no more than in repeated shots of one connector, else an empty text.

    Raises:
        UnitSpaceError: The references fall into two groups, as those of a left and a right camera do.
    """
    measures: dict[str, npt.NDArray[np.float32]] = {}
    for name, image in zip(names, references, strict=True):
        try:
            (place,) = find_places(gray_of(image), {"": unit_space}, maximum_shift).values()
        except AlignmentError:
            continue  # an outlier, which has its own message
        evened = place_capture(image, place, unit_space).evened
        measures[name] = np.divide(
            measure_pins(evened, unit_space.templates)[:, :SCORED], FEATURE_FLOORS, dtype=np.float32
        )
    features, names = np.stack(list(measures.values())), list(measures)
    spread = MAD_TO_SIGMA * np.median(np.abs(features - np.median(features, axis=0)).reshape(-1, SCORED), axis=0)
    if float(spread.max()) < _ALIKE:
        return (
            f"shape {unit_space.shape}: its {len(references)} references are as alike as shots of one connector, so "
            "they do not show how much passed pins differ; take each reference of another passed connector"
        )
    groups = _two_groups(features.reshape(len(features), -1))
    if groups:
        first, second = (", ".join(names[index] for index in group) for group in groups)
        raise UnitSpaceError(
            f"shape {unit_space.shape}: its references show two views: {first}; and {second}. A left and a right "
            "camera need the eye in the names of their captures (docs/lines.md); else remove one group's role "
            "'reference'"
        )
    return ""


def _two_groups(features: npt.NDArray[np.float32]) -> tuple[list[int], list[int]] | None:
    """Return the rows of two groups of two or more that differ in one direction, if there are any."""
    _, strengths, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    if strengths[0] ** 2 < _ONE_DIRECTION * np.square(strengths).sum():
        return None
    along = features @ directions[0]
    order = np.argsort(along)
    cut = int(np.diff(along[order]).argmax()) + 1
    if not 2 <= cut <= len(order) - 2:
        return None
    return sorted(order[:cut].tolist()), sorted(order[cut:].tolist())


def mixed_eyes(lines: Iterable[Line]) -> list[str]:
    """Return a remark for each shape with references of two eyes beside references whose names have no eye.

    Args:
        lines: The lines with references.
    """
    remarks: list[str] = []
    for (source, shape), group in groupby(sorted(set(lines)), key=lambda line: (line.source, line.shape)):
        eyes = [line.eye for line in group]
        if "" in eyes and len(eyes) > 1:
            named = " and ".join(filter(None, eyes))
            remarks.append(
                f"{source} line, shape {shape}: some references have no eye in their names, others are of the {named} "
                "eye; each eye has its own unit space: name the eye of all captures (docs/lines.md), or of none"
            )
    return remarks
