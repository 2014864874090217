"""The unit space of one shape: the mean image and the normal spread of its passed captures (the references)."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pinspect.core.errors import AlignmentError, UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.core.params import DstParams
from pinspect.nsoartc.alignment import Alignment, align, warp
from pinspect.nsoartc.grid import confident_grid
from pinspect.nsoartc.light import light_field
from pinspect.nsoartc.pin_scores import (
    FEATURE_FLOORS,
    SCORED,
    PinTemplates,
    measure_pins,
    misfit,
    pin_distances,
    pin_templates,
    top_brightness,
)
from pinspect.nsoartc.window_beta import distance_image

_MAD_TO_SIGMA = 1.4826
_OUTLIER_PIN = 3.0  # times the median of the references: a higher worst pin makes a reference an outlier
_OUTLIER_MISFIT = 2.2  # times the median of the references: a higher misfit makes a reference an outlier
_QUORUM = 5  # fewer references cannot outvote one of them
_TOP_SHARE = 0.52  # of a pitch; the size of a top where the box does not determine it: as many rows as columns
_STEEP_QUANTILE = 0.98  # of the mean's steepness: drawn in full
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class UnitSpace:
    """The unit space of one shape, in px of its mean image.

    Attributes:
        shape: Pin shape.
        layout: Rows and columns of the pin field.
        mean: float32 (H, W), mean gray of the references with their light evened, 0..1.
        location: float32 (rows of windows, columns of windows), median of the references' DST.
        scale: float32, of the same shape, robust standard deviation of the references' DST.
        field_box: float64 (4,), x0, y0, x1, y1 around the outer pins' tops.
        references: File names of the references.
        outliers: Names of the references that differ from the others and were left out of the mean.
        white: DST value that a DST view shows as full brightness.
        pin_location: float32 (pins, 5), medians of the pins' features in the references.
        pin_precision: float32 (5, 5), inverse covariance of the pins' features.
        pin_white: Mahalanobis distance that few passed pins reach.
        window: Side of a DST window, px.
        stride: Distance of neighboring DST windows, px.
    """

    shape: str
    layout: Layout
    mean: np.ndarray
    location: np.ndarray
    scale: np.ndarray
    field_box: np.ndarray
    references: tuple[str, ...]
    outliers: tuple[str, ...]
    white: float
    pin_location: np.ndarray
    pin_precision: np.ndarray
    pin_white: float
    window: int
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the mean image, px."""
        return self.mean.shape[1], self.mean.shape[0]

    @property
    def pitch(self) -> float:
        """Return the distance of neighboring pins' tops, px."""
        return _pitch(self.field_box, self.layout)

    @cached_property
    def pin_centers(self) -> np.ndarray:
        """Return the places of the pins' tops, float32 (pins, 2), x and y px, in the order of `layout.addresses`."""
        return pin_centers(self.field_box, self.layout)

    @property
    def cell_box(self) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1, px, of the rectangle that rows x columns square cells of one pitch fill."""
        (x0, y0), (x1, y1) = self.pin_centers[0] - self.pitch / 2, self.pin_centers[-1] + self.pitch / 2
        return float(x0), float(y0), float(x1), float(y1)

    @cached_property
    def templates(self) -> PinTemplates:
        """Return the pins of the mean image, prepared for measuring."""
        return pin_templates(self.mean, self.pin_centers, self.pitch)

    @cached_property
    def outline(self) -> np.ndarray:
        """Return the steepness of the mean image, float32 (H, W), 0..1: the edges in a passed capture."""
        smooth = cv2.GaussianBlur(self.mean, (0, 0), 1.0)
        steepness = cv2.magnitude(cv2.Scharr(smooth, cv2.CV_32F, 1, 0), cv2.Scharr(smooth, cv2.CV_32F, 0, 1))
        return np.minimum(steepness / max(float(np.quantile(steepness, _STEEP_QUANTILE)), 1e-6), 1).astype(np.float32)

    def pin_distances(self, measures: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance of each pin.

        Args:
            measures: float32 (pins, 6), as `measure_pins` returns them.

        Returns:
            float32 (pins,).
        """
        return pin_distances(measures, self.pin_location, self.pin_precision)

    def misfit(self, aligned: np.ndarray) -> float:
        """Return how little a capture looks like this shape; the capture's shape has the smallest misfit.

        Args:
            aligned: The aligned capture, float32 (H, W), 0..1.

        Returns:
            The misfit, 0 or more.
        """
        return misfit(even_light(aligned, self.templates), self.templates)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the artifact's content."""
        return hashlib.sha256(self._packed()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the artifact to `path` as npz; equal unit spaces give equal bytes."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self._packed())

    @classmethod
    def load(cls, path: str | Path) -> UnitSpace:
        """Read an artifact.

        Args:
            path: The npz file.

        Returns:
            The unit space.

        Raises:
            UnitSpaceError: The file is missing, or is no unit space of this version.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            layout = Layout(tuple(str(row) for row in arrays.pop("rows")), int(arrays.pop("columns")))
            values: dict[str, Any] = {name: _unpacked(name, array) for name, array in arrays.items()}
            return cls(layout=layout, **values)
        except FileNotFoundError:
            raise UnitSpaceError(f"{path}: not found; run the dst stage first") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise UnitSpaceError(f"{path}: no unit space of this version ({error}); run the dst stage again") from None

    def _packed(self) -> bytes:
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layout"}
        arrays |= {"rows": self.layout.rows, "columns": self.layout.columns}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in sorted(arrays.items()):
                content = io.BytesIO()
                array = np.array(value, dtype=np.str_) if isinstance(value, tuple) else np.asarray(value)
                np.lib.format.write_array(content, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
                # A fixed time stamp: equal content must give equal bytes.
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", _FIXED_TIME), content.getvalue(), zipfile.ZIP_DEFLATED)
        return packed.getvalue()


def even_light(aligned: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Divide an aligned capture by its smooth difference in light to the mean image.

    Args:
        aligned: The aligned capture, float32 (H, W), 0..1.
        templates: The pins of the mean image.

    Returns:
        float32 (H, W).
    """
    size = (aligned.shape[1], aligned.shape[0])
    return aligned / light_field(top_brightness(aligned, templates), templates.centers, size)


def build_unit_space(
    references: Sequence[np.ndarray],
    names: Sequence[str],
    field_boxes: Sequence[Sequence[float]] | None,
    shape: str,
    layout: Layout,
    params: DstParams,
) -> UnitSpace:
    """Build the unit space of a shape from its references, which need not be aligned with one another.

    Args:
        references: Gray captures, float32 (H, W), 0..1, all of one size.
        names: The references' names, for errors and `outliers`.
        field_boxes: x0, y0, x1, y1 around the pins' tops of each reference, px in that reference's image. None if
            unknown: the layout's grid is then fitted to the references (`grid.py`).
        shape: Pin shape.
        layout: Rows and columns of the pin field.
        params: The parameters of stage dst.

    Returns:
        The unit space.

    Raises:
        UnitSpaceError: There are fewer than `params.minimum_references` references, a reference has another size or
            shows something else, or no pin field was found.
    """
    _check(references, names, shape, params)
    alignments = _common_place(references, names, params)
    size = references[0].shape[::-1]
    aligned = np.stack([warp(gray, place, size) for gray, place in zip(references, alignments, strict=True)])
    box = _field_box(aligned, alignments, field_boxes, shape, layout)
    centers, pitch = pin_centers(box, layout), _pitch(box, layout)
    middle, kept, evened = np.median(aligned, axis=0), np.ones(len(references), bool), aligned
    for _ in range(2):
        templates = pin_templates(middle, centers, pitch)
        evened = np.stack([even_light(image, templates) for image in aligned])
        kept = _inliers(evened, templates)
        middle = evened[kept].mean(axis=0)
    return _summarized(middle, evened, kept, names, box, shape, layout, params)


def pin_centers(field_box: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the places of the pins' tops.

    Args:
        field_box: float64 (4,), x0, y0, x1, y1 around the outer pins' tops, px.
        layout: Rows and columns of the pin field.

    Returns:
        float32 (pins, 2), x and y, px, in the order of `layout.addresses`.
    """
    x0, y0, x1, y1 = field_box
    pitch = _pitch(field_box, layout)
    column, row = np.meshgrid(np.arange(layout.columns), np.arange(len(layout.rows)))
    x = (x0 + x1) / 2 + (column - (layout.columns - 1) / 2) * pitch
    y = (y0 + y1) / 2 + (row - (len(layout.rows) - 1) / 2) * pitch
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def _pitch(field_box: np.ndarray, layout: Layout) -> float:
    # The box is (columns - 1) pitches and one top wide, (rows - 1) pitches and one top high.
    width, height = field_box[2] - field_box[0], field_box[3] - field_box[1]
    if layout.columns != len(layout.rows):
        return float((width - height) / (layout.columns - len(layout.rows)))
    return float(width / (layout.columns - 1 + _TOP_SHARE))


def _check(references: Sequence[np.ndarray], names: Sequence[str], shape: str, params: DstParams) -> None:
    if len(references) < params.minimum_references:
        raise UnitSpaceError(
            f"shape {shape}: {len(references)} references, at least {params.minimum_references} are needed "
            "(dst.minimum_references); mark more passed captures with the role 'reference' in labels.csv"
        )
    for gray, name in zip(references, names, strict=True):
        if gray.shape != references[0].shape:
            size, expected = (f"{array.shape[1]} x {array.shape[0]} px" for array in (gray, references[0]))
            raise UnitSpaceError(
                f"reference {name} of shape {shape} has {size}, {names[0]} has {expected}; "
                "capture all references at one size"
            )


def _common_place(references: Sequence[np.ndarray], names: Sequence[str], params: DstParams) -> list[Alignment]:
    """Align all references to the middle of their places, so that no single reference sets the frame."""
    first = _all_aligned(references, names, references[0], params)
    middle = np.asarray(np.mean([_square(place.matrix) for place in first], axis=0), np.float64)
    inverse = np.linalg.inv(middle)
    size = references[0].shape[::-1]
    moved = [
        Alignment((inverse @ _square(place.matrix))[:2].astype(np.float32), place.score, place.shift) for place in first
    ]
    mean = np.median([warp(gray, place, size) for gray, place in zip(references, moved, strict=True)], axis=0)
    return _all_aligned(references, names, mean.astype(np.float32), params)


def _all_aligned(
    references: Sequence[np.ndarray], names: Sequence[str], mean: np.ndarray, params: DstParams
) -> list[Alignment]:
    alignments: list[Alignment] = []
    for gray, name in zip(references, names, strict=True):
        try:
            alignments.append(align(gray, mean, params.maximum_shift))
        except AlignmentError as error:
            raise UnitSpaceError(f"reference {name} cannot be aligned to the other references: {error}") from None
    return alignments


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([matrix.astype(np.float64), [0, 0, 1]])


def _field_box(
    aligned: np.ndarray,
    alignments: Sequence[Alignment],
    field_boxes: Sequence[Sequence[float]] | None,
    shape: str,
    layout: Layout,
) -> np.ndarray:
    if field_boxes is not None:
        corners = np.asarray(field_boxes, np.float64).reshape(-1, 2, 2)
        centers = corners.mean(axis=1)
        moved = [a.matrix[:, :2] @ center + a.matrix[:, 2] for a, center in zip(alignments, centers, strict=True)]
        center, half = _middle_mean(np.array(moved)), _middle_mean(corners[:, 1] - corners[:, 0]) / 2
        box = np.concatenate([center - half, center + half])
    else:
        box = np.array(confident_grid(np.median(aligned, axis=0), layout).field_box(layout))
    pitch = _pitch(box, layout)
    height, width = aligned.shape[1:]
    if not 8 <= pitch <= min(width / layout.columns, height / len(layout.rows)) * 1.3:
        raise UnitSpaceError(
            f"shape {shape}: no field of {len(layout.rows)} x {layout.columns} pins fits into the box "
            f"{box.round().tolist()}; correct field_x0, field_y0, field_x1 and field_y1 of the references in labels.csv"
        )
    return box


def _middle_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half (by value, along axis 0): boxes are whole px, and a box may be wrong."""
    cut = len(values) // 4
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0)


def _inliers(evened: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Return which references, (n, H, W), look like the others, as a whole and pin by pin: bool (n,)."""
    if len(evened) < _QUORUM:
        return np.ones(len(evened), bool)
    features = np.stack([measure_pins(image, templates) for image in evened])
    location = np.median(features[..., :SCORED], axis=0)
    precision = _precision((features[..., :SCORED] - location).reshape(-1, SCORED))
    worst_pin = np.array([pin_distances(measures, location, precision).max() for measures in features])
    misfits = np.array([misfit(image, templates) for image in evened])
    return (worst_pin <= _OUTLIER_PIN * np.median(worst_pin)) & (misfits <= _OUTLIER_MISFIT * np.median(misfits))


def _summarized(
    mean: np.ndarray,
    evened: np.ndarray,
    kept: np.ndarray,
    names: Sequence[str],
    box: np.ndarray,
    shape: str,
    layout: Layout,
    params: DstParams,
) -> UnitSpace:
    mean = mean.astype(np.float32)
    inliers = evened[kept]
    # A reference is part of its mean image, so it differs from that image less than a new capture does, by this factor.
    widen = np.sqrt((len(inliers) + 1) / (len(inliers) - 1))
    distances = np.stack([distance_image(image, mean, params.window, params.stride) for image in inliers]) * widen
    location = np.median(distances, axis=0)
    scale = _MAD_TO_SIGMA * np.median(np.abs(distances - location), axis=0)
    templates = pin_templates(mean, pin_centers(box, layout), _pitch(box, layout))
    features = np.stack([measure_pins(image, templates)[:, :SCORED] for image in inliers])
    pin_location = np.median(features, axis=0).astype(np.float32)
    deviations = (features - pin_location).reshape(-1, SCORED) * widen
    precision = _precision(deviations)
    reference_distances = np.sqrt(np.einsum("nk,kl,nl->n", deviations, precision, deviations))
    return UnitSpace(
        shape=shape,
        layout=layout,
        mean=mean,
        location=location.astype(np.float32),
        scale=scale.astype(np.float32),
        field_box=box.astype(np.float64),
        references=tuple(names),
        outliers=tuple(name for name, is_kept in zip(names, kept, strict=True) if not is_kept),
        white=float(np.quantile(distances, params.scale_quantile)),
        pin_location=pin_location,
        pin_precision=precision.astype(np.float32),
        pin_white=float(max(np.quantile(reference_distances, params.scale_quantile), 3.0)),
        window=params.window,
        stride=params.stride,
    )


def _precision(deviations: np.ndarray) -> np.ndarray:
    """Return the inverse covariance, (5, 5), of all references' pins; robust, with `FEATURE_FLOORS` as least spread."""
    spread = np.maximum(_MAD_TO_SIGMA * np.median(np.abs(deviations), axis=0), FEATURE_FLOORS)
    covariance = np.cov(np.clip(deviations, -3 * spread, 3 * spread).T)
    return np.linalg.inv(0.9 * covariance + 0.1 * np.diag(spread**2) + np.diag((0.3 * FEATURE_FLOORS) ** 2))


def _unpacked(name: str, array: np.ndarray) -> object:
    if name in ("references", "outliers"):
        return tuple(str(text) for text in array)
    if name == "shape":
        return str(array)
    if name in ("window", "stride"):
        return int(array)
    return float(array) if array.ndim == 0 else array
