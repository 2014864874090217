"""The unit space of one shape: the mean image and the normal spread of its passed captures (the references)."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pinspect.core.corners import Corners
from pinspect.core.errors import UnitSpaceError
from pinspect.core.layout import Layout
from pinspect.core.nsoartc_settings import NsoartcSettings
from pinspect.core.params import DstParams
from pinspect.nsoartc.alignment import AlignmentTarget, warp
from pinspect.nsoartc.distance import nsoartc
from pinspect.nsoartc.field import place_references, require_confidence
from pinspect.nsoartc.grid import PinGrid
from pinspect.nsoartc.grid_fit import Points, mean_pitch, project
from pinspect.nsoartc.light import MAD_TO_SIGMA, light_field, without_light
from pinspect.nsoartc.parts import FloatImage
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
from pinspect.nsoartc.pixels import gray_of

_OUTLIER_PIN = 3.0  # times the median of the references: a higher worst pin makes a reference an outlier
_OUTLIER_MISFIT = 2.2  # times the median of the references: a higher misfit makes a reference an outlier
_QUORUM = 5  # fewer references cannot outvote one of them
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class UnitSpace:
    """The unit space of one shape, in px of its mean image.

    Attributes:
        shape: Pin shape.
        layout: Rows and columns of the pin field.
        mean: float32 (H, W), mean gray of the references with their light evened, 0..1.
        grid: float64 (3, 3), maps the column and row of a pin, both from 0, to px; it follows rotation and perspective.
        references: File names of the references.
        outliers: Names of the references that differ from the others and were left out of the mean.
        nsoartc: The settings of NSOARTC's stage 1.
        white: NSOARTC distance that is white in a DST picture: a multiple of the references' own distances.
        per_picture: Whether a DST picture is scaled by its own maximum instead of `white`.
        pin_location: float32 (pins, 5), medians of the pins' features in the references.
        pin_precision: float32 (5, 5), inverse covariance of the pins' features.
        pin_white: Mahalanobis distance that few passed pins reach.
    """

    shape: str
    layout: Layout
    mean: np.ndarray
    grid: Points
    references: tuple[str, ...]
    outliers: tuple[str, ...]
    nsoartc: NsoartcSettings
    white: float
    per_picture: bool
    pin_location: np.ndarray
    pin_precision: np.ndarray
    pin_white: float

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height of the mean image, px."""
        return self.mean.shape[1], self.mean.shape[0]

    @cached_property
    def pitch(self) -> float:
        """Return the mean distance of neighboring pins' tops, px."""
        return mean_pitch(self.pin_centers.astype(np.float64), self.layout)

    @cached_property
    def pin_centers(self) -> np.ndarray:
        """Return the places of the pins' tops, float32 (pins, 2), x and y px, in the order of `layout.addresses`."""
        return PinGrid(self.grid, self.layout).centers.astype(np.float32)

    @property
    def cell_box(self) -> tuple[float, float, float, float]:
        """Return x0, y0, x1, y1, px, of the upright rectangle around the cells of all pins."""
        last_column, last_row = self.layout.columns - 0.5, len(self.layout.rows) - 0.5
        corners = np.array([(-0.5, -0.5), (last_column, -0.5), (last_column, last_row), (-0.5, last_row)])
        places = project(self.grid, corners)
        (x0, y0), (x1, y1) = places.min(axis=0), places.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def cell_corners(self, pin: int) -> Points:
        """Return the corners of a pin's cell, clockwise from its top left.

        Args:
            pin: Index of the pin in `layout.addresses`.

        Returns:
            float64 (4, 2), x and y px.
        """
        row, column = divmod(pin, self.layout.columns)
        square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        return project(self.grid, square + np.array((column, row)))

    @property
    def picture_matrix(self) -> np.ndarray:
        """Return the map from px of a DST picture to px of the unit space, float64 (2, 3)."""
        return np.array([[self.nsoartc.stride, 0, 0], [0, self.nsoartc.stride, 0]], np.float64)

    @cached_property
    def templates(self) -> PinTemplates:
        """Return the pins of the mean image, prepared for measuring."""
        return pin_templates(self.mean, self.pin_centers, self.pitch)

    @cached_property
    def alignment_target(self) -> AlignmentTarget:
        """Return the mean image, prepared for aligning captures to it."""
        return AlignmentTarget(self.mean)

    @cached_property
    def field_box(self) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1, whole px, of the part of `cell_box` that lies in the mean image."""
        (x0, y0, x1, y1), (width, height) = self.cell_box, self.size
        return max(0, round(x0)), max(0, round(y0)), min(width, round(x1)), min(height, round(y1))

    @cached_property
    def field_target(self) -> AlignmentTarget:
        """Return the mean image within `field_box`, prepared for aligning pin fields to it."""
        x0, y0, x1, y1 = self.field_box
        return AlignmentTarget(np.ascontiguousarray(self.mean[y0:y1, x0:x1]))

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
        return hashlib.sha256(self.packed()).hexdigest()

    def packed(self) -> bytes:
        """Return the artifact as npz; equal unit spaces give equal bytes."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layout"}
        arrays |= {"rows": self.layout.rows, "columns": self.layout.columns}
        arrays["nsoartc"] = json.dumps(asdict(self.nsoartc), sort_keys=True)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in sorted(arrays.items()):
                content = io.BytesIO()
                array = np.array(value, dtype=np.str_) if isinstance(value, tuple) else np.asarray(value)
                np.lib.format.write_array(content, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
                # A fixed time stamp: equal content must give equal bytes.
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", _FIXED_TIME), content.getvalue(), zipfile.ZIP_DEFLATED)
        return packed.getvalue()

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


def light_of(aligned: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Return the smooth difference in light of an aligned capture to the mean image.

    Args:
        aligned: The aligned capture, float32 (H, W), 0..1.
        templates: The pins of the mean image.

    Returns:
        The factor by which the capture is brighter, float32 (H, W).
    """
    return light_field(top_brightness(aligned, templates), templates.centers, (aligned.shape[1], aligned.shape[0]))


def even_light(aligned: np.ndarray, templates: PinTemplates) -> np.ndarray:
    """Divide an aligned capture, float32 (H, W), by its smooth difference in light to the mean image."""
    return aligned / light_of(aligned, templates)


def build_unit_space(
    references: Sequence[np.ndarray],
    names: Sequence[str],
    field_boxes: Sequence[Sequence[float]] | None,
    shape: str,
    layout: Layout,
    params: DstParams,
    corners: Corners | None = None,
) -> UnitSpace:
    """Build the unit space of a shape from its references, which need not be aligned with one another.

    Args:
        references: Captures, all of one aspect ratio: uint8 (H, W, 3), RGB, or float32 (H, W), gray, 0..1.
        names: The references' names, for errors and `outliers`.
        field_boxes: x0, y0, x1, y1 around the pins' tops of each reference, px in that reference's image. None if
            unknown: the layout's grid is then fitted to the references (`grid.py`).
        shape: Pin shape.
        layout: Rows and columns of the pin field.
        params: The parameters of stage dst.
        corners: Four corner pins that a person has marked in one of the references; they replace `field_boxes`.

    Returns:
        The unit space.

    Raises:
        UnitSpaceError: There are fewer than `params.minimum_references` references, a reference has another aspect
            ratio or shows something else, or no pin field was found.
    """
    grays = [gray_of(image) for image in references]
    placed = place_references(grays, names, field_boxes, corners, shape, layout, params)
    require_confidence(placed)
    aligned, grid = placed.aligned, placed.grid
    middle, kept, evened = np.median(aligned, axis=0), np.ones(len(references), bool), aligned
    for _ in range(2):
        templates = pin_templates(middle, grid.centers.astype(np.float32), grid.pitch)
        evened = np.stack([even_light(image, templates) for image in aligned])
        kept = _inliers(evened, templates)
        middle = evened[kept].mean(axis=0)
    middle = middle.astype(np.float32)
    # A reference is part of its mean image, so it differs from that image less than a new capture does, by this factor.
    widen = float(np.sqrt((kept.sum() + 1) / (kept.sum() - 1)))
    templates = pin_templates(middle, grid.centers.astype(np.float32), grid.pitch)
    pin_location, pin_precision, pin_white = _unit_group(evened[kept], templates, widen, params)
    colors = [
        without_light(warp(image, place, (middle.shape[1], middle.shape[0])), light_of(gray, templates))
        for image, place, gray, is_kept in zip(references, placed.alignments, aligned, kept, strict=True)
        if is_kept
    ]
    return UnitSpace(
        shape=shape,
        layout=layout,
        mean=middle,
        grid=grid.matrix,
        references=tuple(names),
        outliers=tuple(name for name, is_kept in zip(names, kept, strict=True) if not is_kept),
        nsoartc=params.nsoartc(),
        white=widen * _white(colors, middle, params),
        per_picture=params.scaling == "per_picture",
        pin_location=pin_location,
        pin_precision=pin_precision,
        pin_white=pin_white,
    )


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


def _unit_group(
    inliers: np.ndarray, templates: PinTemplates, widen: float, params: DstParams
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return `pin_location`, `pin_precision` and `pin_white` of the references, (n, H, W), with their light evened."""
    features = np.stack([measure_pins(image, templates)[:, :SCORED] for image in inliers])
    location = np.median(features, axis=0).astype(np.float32)
    deviations = (features - location).reshape(-1, SCORED) * widen
    precision = _precision(deviations)
    distances = np.sqrt(np.einsum("nk,kl,nl->n", deviations, precision, deviations))
    return location, precision.astype(np.float32), float(max(np.quantile(distances, params.white_quantile), 3.0))


def _white(inliers: Sequence[FloatImage], mean: FloatImage, params: DstParams) -> float:
    """Return the NSOARTC distance that is white, from the references with their light evened."""
    settings = params.nsoartc()
    distances = np.stack([nsoartc(image, mean, settings, same_size=True) for image in inliers])
    return params.white * float(np.quantile(distances, params.white_quantile))


def _precision(deviations: np.ndarray) -> np.ndarray:
    """Return the inverse covariance, (5, 5), of all references' pins; robust, with `FEATURE_FLOORS` as least spread."""
    spread = np.maximum(MAD_TO_SIGMA * np.median(np.abs(deviations), axis=0), FEATURE_FLOORS)
    covariance = np.cov(np.clip(deviations, -3 * spread, 3 * spread).T)
    return np.linalg.inv(0.9 * covariance + 0.1 * np.diag(spread**2) + np.diag((0.3 * FEATURE_FLOORS) ** 2))


def _unpacked(name: str, array: np.ndarray) -> object:
    if name in ("references", "outliers"):
        return tuple(str(text) for text in array)
    if name == "shape":
        return str(array)
    if name == "per_picture":
        return bool(array)
    if name == "nsoartc":
        values: dict[str, Any] = json.loads(str(array))
        rows_of: dict[str, list[list[float]]] = values.pop("own_parts")
        names: list[str] = values.pop("parts")
        own_parts = {part: tuple(tuple(row) for row in rows) for part, rows in rows_of.items()}
        return NsoartcSettings(parts=tuple(names), own_parts=own_parts, **values)
    return float(array) if array.ndim == 0 else array
