"""Lay the references of a line over one another, and the layout's grid over them.

The frame of the references is the frame of the unit space, and has a normal scale: references whose neighboring pins
lie much nearer or further apart than 64 px are resized. References of other sizes than most are scaled to theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinspect.core.corners import Corners
from pinspect.core.errors import AlignmentError, UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.core.params import DstParams
from pinspect.core.scaling import is_same_picture, resized, scaling
from pinspect.nsoartc.alignment import Alignment, AlignmentTarget, square, warp
from pinspect.nsoartc.grid import (
    MINIMUM_CONFIDENCE,
    DoubtfulGridError,
    PinGrid,
    draw_grid,
    find_grid,
    grid_from_box,
    grid_from_corners,
)
from pinspect.nsoartc.grid_fit import SMALLEST_PITCH
from pinspect.nsoartc.parts import FloatImage

NORMAL_PITCH = 64.0  # px: the parts, the shift and the pins' features are tuned for it
_NORMAL_PITCHES = 44.0, 100.0  # px: references with such pins keep their scale


@dataclass(frozen=True)
class PlacedReferences:
    """References in one frame, the middle of their places, and the pins' grid in that frame.

    Attributes:
        aligned: float32 (references, H, W), 0..1.
        alignments: The place of each reference, in its own px, in the frame.
        grid: The grid of the pins' tops, px of the frame.
    """

    aligned: FloatImage
    alignments: tuple[Alignment, ...]
    grid: PinGrid


def place_references(
    references: Sequence[FloatImage],
    names: Sequence[str],
    field_boxes: Sequence[Sequence[float]] | None,
    corners: Corners | None,
    shape: str,
    layout: Layout,
    params: DstParams,
) -> PlacedReferences:
    """Align references to one another and lay the layout's grid over them.

    The grid goes through the corners that a person has marked; else it fills the field boxes of labels.csv; else it is
    fitted to the middle image of the references.

    Args:
        references: Gray captures, float32 (H, W), 0..1, all of one aspect ratio.
        names: The references' names.
        field_boxes: x0, y0, x1, y1 around the pins' tops of each reference, px in that reference's image, or None.
        corners: Corner pins in one of the references, or None.
        shape: Pin shape, for errors.
        layout: Rows and columns of the pin field.
        params: The parameters of stage dst.

    Returns:
        The references in one frame, with the grid. A fitted grid may be doubtful (`require_confidence`).

    Raises:
        UnitSpaceError: There are fewer than `params.minimum_references` references, a reference has another aspect
            ratio or shows something else, no grid can be laid over the references, or the corners belong to none.
    """
    _check(references, names, shape, params)
    sizes = [(gray.shape[1], gray.shape[0]) for gray in references]
    common = _common_size(sizes, names, shape)
    marked = corners if corners is not None and corners.reference in names else None
    index = names.index(marked.reference) if marked else 0
    pitch = _rough_pitch(references[index], field_boxes[index] if field_boxes else None, marked, layout)
    size = _normal_size(common, pitch * common[0] / sizes[index][0])
    scaled = [resized(gray, size) for gray in references]
    to_frame = [scaling(each, size) for each in sizes]
    alignments = [
        place if each == size else place.between(first)
        for place, first, each in zip(_common_place(scaled, names, params), to_frame, sizes, strict=True)
    ]
    aligned = np.stack([warp(gray, place, size) for gray, place in zip(references, alignments, strict=True)])
    if corners is not None:
        grid = _marked_grid(corners, names, alignments, shape, layout)
    elif field_boxes is not None:
        grid = _boxed_grid(field_boxes, alignments, to_frame, (size[1], size[0]), shape, layout)
    else:
        grid = find_grid(np.median(aligned, axis=0), layout)
    return PlacedReferences(aligned, tuple(alignments), grid)


def require_confidence(placed: PlacedReferences) -> None:
    """Refuse a doubtful grid, for callers that go on without a person.

    Args:
        placed: References and their grid.

    Raises:
        DoubtfulGridError: The grid's confidence is below `MINIMUM_CONFIDENCE`; the error holds a picture of it.
    """
    grid = placed.grid
    if grid.confidence >= MINIMUM_CONFIDENCE:
        return
    gray = np.clip(np.rint(np.median(placed.aligned, axis=0) * 255), 0, 255).astype(np.uint8)
    raise DoubtfulGridError(
        f"found no field of {len(grid.layout.rows)} x {grid.layout.columns} pins in the mean of the references "
        f"(confidence {grid.confidence:.2f}, at least {MINIMUM_CONFIDENCE} is needed); check the layout in "
        "params.yaml, or mark four corner pins with `pinspect grid`",
        draw_grid(np.repeat(gray[..., None], 3, axis=-1), grid),
    )


def _check(references: Sequence[FloatImage], names: Sequence[str], shape: str, params: DstParams) -> None:
    if len(references) < params.minimum_references:
        raise UnitSpaceError(
            f"shape {shape}: {len(references)} references, at least {params.minimum_references} are needed "
            "(dst.minimum_references): captures are compared with their mean and their spread; mark more passed "
            "captures with the role 'reference' in labels.csv"
        )


def _common_size(sizes: Sequence[tuple[int, int]], names: Sequence[str], shape: str) -> tuple[int, int]:
    """Return the most frequent size of the references, width and height, px; raise if another aspect ratio occurs."""
    (width, height), _ = Counter(sizes).most_common(1)[0]
    for (x, y), name in zip(sizes, names, strict=True):
        if not is_same_picture((x, y), (width, height)):
            raise UnitSpaceError(
                f"reference {name} of shape {shape} has {x} x {y} px, most references have {width} x {height} px; "
                "take all references with one camera and crop, so that they have one aspect ratio"
            )
    return width, height


def _rough_pitch(gray: FloatImage, box: Sequence[float] | None, corners: Corners | None, layout: Layout) -> float:
    """Return about the pitch in a reference, px, by what is known of it; `NORMAL_PITCH` if its grid is doubtful."""
    if corners is not None:
        return grid_from_corners(corners.points, layout).pitch
    if box is not None:
        return grid_from_box(box, layout).pitch
    grid = find_grid(gray, layout)
    return grid.pitch if grid.confidence >= MINIMUM_CONFIDENCE else NORMAL_PITCH


def _normal_size(size: tuple[int, int], pitch: float) -> tuple[int, int]:
    """Return a size, width and height, px, at which a pitch, px, that is far from normal becomes `NORMAL_PITCH`."""
    if pitch < SMALLEST_PITCH or _NORMAL_PITCHES[0] <= pitch <= _NORMAL_PITCHES[1]:
        return size
    return round(size[0] * NORMAL_PITCH / pitch), round(size[1] * NORMAL_PITCH / pitch)


def _common_place(references: Sequence[FloatImage], names: Sequence[str], params: DstParams) -> list[Alignment]:
    """Align all references to the middle of their places, so that no single reference sets the frame."""
    first = _all_aligned(references, names, references[0], params)
    middle = np.asarray(np.mean([square(place.matrix) for place in first], axis=0), np.float64)
    inverse = np.linalg.inv(middle)
    size = references[0].shape[::-1]
    moved = [place.between(np.eye(3), inverse) for place in first]
    mean = np.median([warp(gray, place, size) for gray, place in zip(references, moved, strict=True)], axis=0)
    return _all_aligned(references, names, mean.astype(np.float32), params)


def _all_aligned(
    references: Sequence[FloatImage], names: Sequence[str], mean: FloatImage, params: DstParams
) -> list[Alignment]:
    alignments: list[Alignment] = []
    target = AlignmentTarget(mean)
    for gray, name in zip(references, names, strict=True):
        try:
            alignments.append(target.align(gray, params.maximum_shift))
        except AlignmentError as error:
            raise UnitSpaceError(f"reference {name} cannot be aligned to the other references: {error}") from None
    return alignments


def _marked_grid(
    corners: Corners, names: Sequence[str], alignments: Sequence[Alignment], shape: str, layout: Layout
) -> PinGrid:
    if corners.reference not in names:
        raise UnitSpaceError(
            f"shape {shape}: the corners in corners.csv are marked in {corners.reference}, which is no reference of "
            "this line; mark them again with `pinspect grid`"
        )
    return grid_from_corners(corners.points, layout).seen_in(alignments[names.index(corners.reference)].matrix)


def _boxed_grid(
    field_boxes: Sequence[Sequence[float]],
    alignments: Sequence[Alignment],
    to_frame: Sequence[np.ndarray],
    image: tuple[int, int],
    shape: str,
    layout: Layout,
) -> PinGrid:
    edges = np.asarray(field_boxes, np.float64).reshape(-1, 2, 2)
    centers = edges.mean(axis=1)
    moved = [a.matrix[:, :2] @ center + a.matrix[:, 2] for a, center in zip(alignments, centers, strict=True)]
    sides = (edges[:, 1] - edges[:, 0]) * [scale.diagonal()[:2] for scale in to_frame]
    center, half = _middle_mean(np.array(moved)), _middle_mean(sides) / 2
    box = np.concatenate([center - half, center + half])
    grid = grid_from_box(box, layout)
    height, width = image
    largest = min(width / layout.columns, height / len(layout.rows)) * 1.3
    if not SMALLEST_PITCH <= grid.matrix[0, 0] <= largest:
        raise UnitSpaceError(
            f"shape {shape}: no field of {len(layout.rows)} x {layout.columns} pins fits into the box "
            f"{box.round().tolist()}; correct field_x0, field_y0, field_x1 and field_y1 of the references in labels.csv"
        )
    return grid


def _middle_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half (by value, along axis 0): boxes are whole px, and a box may be wrong."""
    cut = len(values) // 4
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)
