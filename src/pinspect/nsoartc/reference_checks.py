"""Check what the references of a line are good for, before anything is trained on their unit space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from pinspect.core.errors import AlignmentError
from pinspect.core.lines import Line
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.pin_scores import FEATURE_FLOORS, SCORED, measure_pins
from pinspect.nsoartc.unit_space import UnitSpace

_ALIKE = 0.2  # of the floors: shots of one connector spread by 0.1 at most, of several connectors by 0.7 at least
_MAD_TO_SIGMA = 1.4826


def too_alike(references: Sequence[npt.NDArray[np.uint8]], unit_space: UnitSpace, maximum_shift: float) -> str:
    """Check whether the references show more than one connector.

    Args:
        references: Captures, uint8 (H, W, 3), RGB.
        unit_space: The unit space that was built from them.
        maximum_shift: How far a capture may lie off its place, px of the unit space.

    Returns:
        A remark if the pins differ by no more than in repeated shots of one connector, else an empty text.
    """
    measures: list[npt.NDArray[np.float32]] = []
    for image in references:
        try:
            capture = align_capture(image, unit_space, maximum_shift)
        except AlignmentError:
            return ""  # a reference that differs this much is no repeated shot
        measures.append(measure_pins(capture.evened, unit_space.templates)[:, :SCORED])
    deviations = np.abs(np.stack(measures) - np.median(measures, axis=0)).reshape(-1, SCORED)
    spread = _MAD_TO_SIGMA * np.median(deviations, axis=0) / FEATURE_FLOORS
    if float(spread.max()) >= _ALIKE:
        return ""
    return (
        f"shape {unit_space.shape}: its {len(references)} references are as alike as shots of one connector, so they do "
        "not show how much passed pins differ; take each reference of another passed connector"
    )


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
