"""Fitting a rows x columns grid of equal pins to an image: search, refinement, confidence (see `grid.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pinspect.core.layout import Layout
from pinspect.nsoartc.parts import FloatImage

Points = npt.NDArray[np.float64]

SMALLEST_PITCH = 8.0  # px
_PITCH_STEP = 1.07
_PITCH_RANGE = 0.3  # of the largest pitch that fits
_ANGLES = np.radians([-3.2, 0.0, 3.2])
_ASPECTS = (0.89, 1.0, 1.12)  # row pitch by column pitch
_RADII = (0.18, 0.25, 0.32)  # pitches, of a pin's top
_SEARCH_PITCH, _REFINED_PITCH = 14, 28  # px: the image is scaled so that its pitch becomes this
_CANDIDATES = 6
_ROUNDS = 4
_REACH = 0.32  # pitches that a pin may lie off the grid of the round before
_PATCH = 0.42  # pitches: half the side of a pin's patch
_OFF_GRID = 0.12  # pitches: a pin further off does not count for the grid
_TOP_REACH = 0.16  # pitches that a top may lie off the place where the mean pin fits best
_DIRECTIONS = np.linspace(0, 2 * np.pi, 24, endpoint=False)


@dataclass(frozen=True)
class _Candidate:
    """A grid of the search: mean disc likeness (0..1) of its nodes, their centers (pins, 2) px, the column pitch px."""

    score: float
    centers: Points
    pitch: float


@dataclass(frozen=True)
class _Refined:
    """A grid in an image that is scaled by `scale`: matrix from (column, row) to px, pitch in px, confidence."""

    matrix: Points
    scale: float
    pitch: float
    confidence: float


@dataclass(frozen=True)
class FittedGrid:
    """A refined grid: matrix from (column, row) to px, diameter of the tops px, confidence 0..1."""

    matrix: Points
    diameter: float
    confidence: float


def nodes_of(layout: Layout, outside: int = 0) -> Points:
    """Return column and row of every pin, float64 (pins, 2); `outside` adds rings of further nodes."""
    row, column = np.mgrid[-outside : len(layout.rows) + outside, -outside : layout.columns + outside]
    return np.stack([column.ravel(), row.ravel()], axis=1).astype(np.float64)


def largest_pitch(gray: FloatImage, layout: Layout) -> float:
    """Return the largest pitch, px, at which the layout fits into an image, float32 (rows, columns)."""
    height, width = gray.shape
    return min(width / (layout.columns - 0.5), height / (len(layout.rows) - 0.5))


def fit_grid(gray: FloatImage, layout: Layout) -> FittedGrid:
    """Return the grid that fits best to `gray`, float32 (rows, columns), 0..1."""
    candidates = sorted(_search(gray, layout), key=lambda candidate: -candidate.score)[:_CANDIDATES]
    best = max((_refine(gray, layout, each) for each in candidates), key=lambda refined: refined.confidence)
    image, pitch = _resized(gray, best.scale), best.pitch
    places, radius = _tops(image, project(best.matrix, nodes_of(layout)), pitch)
    matrix = _matrix(places, np.ones(layout.pins), layout, pitch)
    offset = 0.5 / best.scale - 0.5  # pixel centers lie at whole numbers
    to_full_size = np.array([[1 / best.scale, 0, offset], [0, 1 / best.scale, offset], [0, 0, 1]])
    return FittedGrid(to_full_size @ matrix, 2 * radius / best.scale, best.confidence)


def _resized(gray: FloatImage, scale: float) -> FloatImage:
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray, None, fx=scale, fy=scale, interpolation=interpolation), np.float32)


def _search(gray: FloatImage, layout: Layout) -> Iterator[_Candidate]:
    """Yield the best grid of each pitch, ratio and angle."""
    largest = largest_pitch(gray, layout)
    pitch = max(SMALLEST_PITCH, _PITCH_RANGE * largest)
    while pitch <= largest:
        scale = _SEARCH_PITCH / pitch
        small = _resized(gray, scale)
        for radius in _RADII:
            # Blurred, so that a node may lie a pixel off its pin.
            likeness = np.asarray(cv2.blur(_disc_likeness(small, radius * _SEARCH_PITCH), (3, 3)), np.float32)
            for aspect, angle in product(_ASPECTS, _ANGLES):
                offsets = _offsets(layout, _SEARCH_PITCH, aspect, float(angle))
                for score, place in _best_places_of_grid(likeness, offsets):
                    yield _Candidate(score, (offsets + place + 0.5) / scale - 0.5, pitch)
        pitch *= _PITCH_STEP


def _offsets(layout: Layout, pitch: float, aspect: float, angle: float) -> Points:
    """Return the nodes' places relative to the first, turned by `angle`, shifted so that none is negative."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offsets = nodes_of(layout) * (pitch, pitch * aspect) @ turn
    return offsets - offsets.min(axis=0)


def _best_places_of_grid(likeness: FloatImage, offsets: Points) -> list[tuple[float, Points]]:
    """Return mean likeness (its magnitude) and place of the best grid of bright pins and of dark pins, if one fits."""
    steps = offsets.round().astype(int)
    width, height = np.array(likeness.shape[::-1]) - steps.max(axis=0)
    if width < 1 or height < 1:
        return []
    total = np.zeros((height, width), np.float32)
    for x, y in steps:
        total += likeness[y : y + height, x : x + width]
    lowest, highest, dark_place, bright_place = cv2.minMaxLoc(total / len(steps))
    return [(highest, np.array(bright_place, np.float64)), (-lowest, np.array(dark_place, np.float64))]


def _disc_likeness(image: FloatImage, radius: float) -> FloatImage:
    """Return how much each place looks like the middle of a bright disc on dark ground, -1..1, size of the image."""
    reach = max(2, int(np.ceil(2 * radius)))
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    distance = np.hypot(*np.meshgrid(axis, axis))
    disc = np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
    bordered = cv2.copyMakeBorder(image, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    likeness = cv2.matchTemplate(bordered, disc, cv2.TM_CCOEFF_NORMED)
    return np.nan_to_num(np.asarray(likeness, np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _refine(gray: FloatImage, layout: Layout, candidate: _Candidate) -> _Refined:
    scale = min(1.0, _REFINED_PITCH / candidate.pitch)
    image, pitch = _resized(gray, scale), candidate.pitch * scale
    nodes = nodes_of(layout)
    matrix = _matrix((candidate.centers + 0.5) * scale - 0.5, np.ones(layout.pins), layout, pitch)
    for _ in range(_ROUNDS):
        places, likeness = _best_places(image, project(matrix, nodes), pitch)
        matrix = _matrix(places, likeness, layout, pitch)
    return _Refined(matrix, scale, pitch, _confidence(image, layout, matrix, pitch))


def mean_pitch(centers: Points, layout: Layout) -> float:
    """Return the mean distance, px, of neighboring centers, float64 (pins, 2), px."""
    grid = centers.reshape(len(layout.rows), layout.columns, 2)
    steps = [np.linalg.norm(np.diff(grid, axis=axis), axis=-1).ravel() for axis in (0, 1)]
    return float(np.mean([step.mean() for step in steps if step.size]))


def _best_places(image: FloatImage, centers: Points, pitch: float) -> tuple[Points, Points]:
    """Return where the mean pin fits best around each center, (pins, 2) px, and how well, (pins,), 0..1."""
    half, reach = round(_PATCH * pitch), round(_REACH * pitch)
    template = np.median(_normalized(_cut(image, centers, half)), axis=0).astype(np.float32)
    places, likeness = np.empty_like(centers), np.empty(len(centers))
    for pin, area in enumerate(_cut(image, centers, half + reach)):
        match = np.nan_to_num(np.asarray(cv2.matchTemplate(area, template, cv2.TM_CCOEFF_NORMED), np.float32))
        row, column = np.unravel_index(int(match.argmax()), match.shape)
        likeness[pin] = match[row, column]
        shift = _below_a_pixel(match, int(column), int(row))
        places[pin] = centers[pin] + (column - reach, row - reach) + shift
    return places, np.clip(likeness, 0, 1)


def _below_a_pixel(values: FloatImage, column: int, row: int) -> Points:
    """Return the summit, x and y, of the parabolas through a highest value and its neighbors, -0.5 to 0.5."""
    shift = np.zeros(2)
    for axis, (place, line) in enumerate(((column, values[row]), (row, values[:, column]))):
        if 0 < place < len(line) - 1:
            before, middle, after = (float(value) for value in line[place - 1 : place + 2])
            bend = before - 2 * middle + after
            shift[axis] = np.clip((before - after) / (2 * bend), -0.5, 0.5) if bend < 0 else 0
    return shift


def _matrix(places: Points, weights: Points, layout: Layout, pitch: float) -> Points:
    """Return the 3 x 3 matrix from (column, row) to px that most of the pins agree on.

    Affine, by weights that fall with the distance from the grid; projective, where the field has enough pins for it.
    """
    nodes = nodes_of(layout)
    is_single_line = min(len(layout.rows), layout.columns) == 1
    design = np.column_stack([nodes, np.ones(len(nodes))])
    weight, affine = weights + 1e-3, np.zeros((3, 2))
    for _ in range(6):
        affine = np.linalg.lstsq(design * weight[:, None], places * weight[:, None], rcond=None)[0]
        if is_single_line:  # a single row or column: take the second direction at right angles to the first
            x, y = affine[0] if layout.columns > 1 else affine[1]
            affine[:2] = ((x, y), (-y, x)) if layout.columns > 1 else ((y, -x), (x, y))
        distance = np.linalg.norm(places - design @ affine, axis=1) / (_OFF_GRID * pitch)
        weight = (weights + 1e-3) / (1 + distance**2)
    matrix = np.vstack([affine.T, [0, 0, 1]])
    if layout.pins < 8 or is_single_line:
        return matrix
    result: Any = cv2.findHomography(nodes, places, cv2.RANSAC, _OFF_GRID * pitch)[0]
    if result is None:  # despite OpenCV's type stubs
        return matrix
    projective = np.asarray(result, np.float64)
    if not np.isfinite(projective).all():
        return matrix
    moved = np.linalg.norm(project(projective, nodes) - design @ affine, axis=1).max()
    return projective if moved < 0.5 * pitch else matrix


def project(matrix: Points, nodes: Points) -> Points:
    """Return where a 3 x 3 matrix puts columns and rows, (n, 2): float64 (n, 2), px."""
    points = np.column_stack([nodes, np.ones(len(nodes))]) @ matrix.T
    return points[:, :2] / points[:, 2:]


def _tops(image: FloatImage, centers: Points, pitch: float) -> tuple[Points, float]:
    """Return the middles of the pins' tops near `centers`, px, and the radius (or half side) of most tops, px.

    A top's rim is where brightness changes along the radius, with one sign all around. The side of a pin in perspective
    has a rim too, but only on some sides of the top: the median over the directions ignores it.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), 0.03 * pitch)
    slope_x, slope_y = (np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *order), np.float32) for order in ((1, 0), (0, 1)))
    radii = np.linspace(0.16, 0.38, 12) * pitch
    axis = np.linspace(-_TOP_REACH, _TOP_REACH, 13) * pitch
    shifts = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    directions = np.stack([np.cos(_DIRECTIONS), np.sin(_DIRECTIONS)], axis=-1)
    circle, square = directions, directions / np.abs(directions).max(axis=1, keepdims=True)
    rims = np.concatenate([radii[:, None, None] * shape for shape in (circle, square)]).reshape(-1, 2)
    strength = np.empty((len(centers), len(shifts), 2 * len(radii)), np.float32)
    for pin, center in enumerate(centers):
        points = (center + shifts[:, None] + rims).astype(np.float32)
        by_direction = np.stack([_sampled(slope, points) for slope in (slope_x, slope_y)], axis=-1)
        along = (by_direction.reshape(len(shifts), 2 * len(radii), -1, 2) * directions).sum(axis=-1)
        strength[pin] = np.median(along, axis=-1)
    best = np.median(np.abs(strength).max(axis=1), axis=0).argmax()
    of_radius = strength[:, :, best]
    sign = -1 if np.median(of_radius.min(axis=1) + of_radius.max(axis=1)) < 0 else 1
    maps = (sign * of_radius).reshape(len(centers), 13, 13)
    places = centers.copy()
    for pin, rim_strength in enumerate(maps):
        row, column = np.unravel_index(int(rim_strength.argmax()), rim_strength.shape)
        offset = _below_a_pixel(rim_strength, int(column), int(row)) * (axis[1] - axis[0])
        places[pin] += (axis[column] + offset[0], axis[row] + offset[1])
    return places, float(radii[best % len(radii)])


def _sampled(image: FloatImage, points: FloatImage) -> FloatImage:
    """Return the values at sub-pixel places, x and y px in float32 (n, m, 2): float32 (n, m)."""
    x, y = np.ascontiguousarray(points[..., 0]), np.ascontiguousarray(points[..., 1])
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)


def _confidence(image: FloatImage, layout: Layout, matrix: Points, pitch: float) -> float:
    """Return 0..1: how alike the pins are, in each row and column, and how unlike them their outer neighbors are."""
    half = round(_PATCH * pitch)
    pins: FloatImage = _normalized(_cut(image, project(matrix, nodes_of(layout)), half))
    template = _normalized(np.median(pins, axis=0)[None])[0]
    alike = (pins * template).mean(axis=(1, 2))
    by_place = np.clip(alike, 0, 1).reshape(len(layout.rows), layout.columns)
    # A layout with a row or column too many has pins everywhere but in that line.
    worst_line = float(min(by_place.mean(axis=0).min(), by_place.mean(axis=1).min()))
    inside = float(by_place.mean()) * min(1.0, 1.5 * worst_line / max(float(by_place.mean()), 1e-6))
    nodes = nodes_of(layout, outside=1)
    last_column, last_row = layout.columns - 1, len(layout.rows) - 1
    in_rows = (nodes[:, 1] >= 0) & (nodes[:, 1] <= last_row)
    in_columns = (nodes[:, 0] >= 0) & (nodes[:, 0] <= last_column)
    sides = [in_rows & (nodes[:, 0] == -1), in_rows & (nodes[:, 0] == last_column + 1)]
    sides += [in_columns & (nodes[:, 1] == -1), in_columns & (nodes[:, 1] == last_row + 1)]
    height, width = image.shape
    outside = 0.0
    for side in sides:
        places = project(matrix, nodes[side])
        within = ((places >= 0) & (places <= (width - 1, height - 1))).all(axis=1)
        patches = _normalized(_cut(image, places, half))
        likeness: FloatImage = (patches * template).mean(axis=(1, 2))
        outside = max(outside, float((likeness * within).mean()))
    return float(np.clip(inside * min(1.0, 2 * (1 - outside / max(inside, 1e-6))), 0, 1))


def _normalized(patches: FloatImage) -> FloatImage:
    """Return patches (n, rows, columns) with mean 0 and mean square 1; flat ones become 0."""
    centered = patches - patches.mean(axis=(1, 2), keepdims=True)
    spread = np.sqrt(np.square(centered).mean(axis=(1, 2), keepdims=True))
    return np.where(spread > 1e-4, centered / np.maximum(spread, 1e-4), 0).astype(np.float32)


def _cut(image: FloatImage, centers: Points, half: int) -> FloatImage:
    """Return float32 (n, side, side), squares around sub-pixel places; outside the image its border repeats."""
    side = (2 * half + 1, 2 * half + 1)
    patches = [cv2.getRectSubPix(image, side, (float(x), float(y))) for x, y in centers.tolist()]
    return np.asarray(patches, np.float32)
