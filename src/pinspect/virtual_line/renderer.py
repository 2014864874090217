"""Render virtual captures of connectors, in about 5 ms each.

A camera above a housing on a table sees pins in perspective, with sides, shadows of each lamp, uneven light, noise and
blur. `LineSetup` has the constants of a line. Place, light, noise and the natural tolerance of passed pins differ from
capture to capture. Lengths are in pitches (distance between neighboring pins); the connector's floor is at height 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import cv2
import numpy as np

from pinspect.core.layout import Layout
from pinspect.virtual_line.pins import Pins, feet_of
from pinspect.virtual_line.scene import Camera, Light
from pinspect.virtual_line.setups import Color, LineSetup

_SUBPIXEL_BITS = 4
_SIDE_SLICES = 5
_WHITE = 160  # canvas level of brightness 1.0, with headroom; OpenCV antialiases on 8-bit canvases only
_LIGHT_STEP = 16  # px between the points at which the light on the floor is computed
_LIGHT_WHITE = 2.0  # brightness at level 255 of the light's 8-bit picture
_WALL_SHARES = (0.55, 0.85, 1.15, 0.7)  # brightness of the upper, right, lower and left wall
_RIM_SHARE = 1.15
_INNER_TOP = 0.93  # share of a top's width without its edge


@dataclass
class Rendered:
    """A rendered connector.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        field_box: x0, y0, x1, y1 around the tops of all pins, in px.
        centers: float64 (pins, 2): where the tops of perfect pins would appear, in px.
        pin_boxes: float64 (pins, 4): x0, y0, x1, y1 around each pin, in px.
    """

    image: np.ndarray
    field_box: tuple[float, float, float, float]
    centers: np.ndarray = field(repr=False)
    pin_boxes: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ForeignObject:
    """A thing that lies on the pins or on the floor: a line of one width and color, such as a clipping of wire.

    Attributes:
        path: float64 (points, 3), x right, y down, z up, in pitches.
        width: In pitches.
        color: RGB, 0..1.
        closed: Whether the path ends where it begins, as a washer's does.
        on_pins: Whether the thing lies on the pins; else the pins hide it.
    """

    path: np.ndarray
    width: float
    color: Color
    closed: bool
    on_pins: bool


def render(
    rng: np.random.Generator,
    setup: LineSetup,
    pins: Pins,
    layout: Layout,
    objects: Sequence[ForeignObject] = (),
) -> Rendered:
    """Render one capture; light, place, noise and blur are drawn from the ranges of the set-up.

    Args:
        rng: Source of all random values.
        setup: The line.
        pins: The state of every pin.
        layout: Rows and columns of the pin field.
        objects: What lies on the pins or between them.
    """
    camera = Camera(setup, rng)
    light = Light(setup, rng)
    feet = feet_of(layout, pins)
    axis = _axes(pins)
    canvas = _background(camera, light, setup, layout, feet, axis, pins)
    _draw_objects(canvas, camera, light, [thing for thing in objects if not thing.on_pins])
    tops, boxes = _draw_pins(canvas, camera, setup, pins, feet, axis, light)
    _draw_objects(canvas, camera, light, [thing for thing in objects if thing.on_pins])
    image = _expose(canvas, rng, setup)
    present = pins.present > 0
    edges = np.concatenate([tops[present, :2].min(axis=0), tops[present, 2:].max(axis=0)])
    perfect = feet - np.column_stack([pins.shift_x, pins.shift_y, np.full(layout.pins, -setup.pin_height)])
    centers = camera.project(perfect)
    return Rendered(image, box_of(edges), centers, boxes)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode an RGB image as JPEG; the same input and library version give the same bytes.

    Args:
        image: uint8 (H, W, 3), RGB.
        quality: JPEG quality, 1..100.
    """
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def box_of(edges: np.ndarray) -> tuple[float, float, float, float]:
    """Return four edges (4,) as x0, y0, x1, y1."""
    x0, y0, x1, y1 = map(float, edges)
    return x0, y0, x1, y1


def _axes(pins: Pins) -> np.ndarray:
    lean = np.radians(pins.lean)
    return np.stack(
        [np.sin(lean) * np.cos(pins.lean_direction), np.sin(lean) * np.sin(pins.lean_direction), np.cos(lean)], axis=1
    )


def _outline(setup: LineSetup) -> np.ndarray:
    """Return the cross-section (points, 2) of a pin of width 1."""
    if setup.shape == "CYLN":
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) / 2
    half, cut = 0.5, 0.5 - setup.corner
    if setup.corner == 0:
        return np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    return np.array(
        [[-cut, -half], [cut, -half], [half, -cut], [half, cut], [cut, half], [-cut, half], [-half, cut], [-half, -cut]]
    )


def _background(
    camera: Camera,
    light: Light,
    setup: LineSetup,
    layout: Layout,
    feet: np.ndarray,
    axis: np.ndarray,
    pins: Pins,
) -> np.ndarray:
    """Draw table, housing and floor in the lamps' light, with the pins' shadows: uint8 (H, W, 3)."""
    size = (setup.image_width, setup.image_height)
    surface, inside = _surfaces(camera, setup, layout)
    y, x = np.mgrid[0 : setup.image_height : _LIGHT_STEP, 0 : setup.image_width : _LIGHT_STEP].astype(np.float64)
    # The scale of the pins' tops is close enough for smooth light.
    world = (np.stack([x, y], axis=-1) - setup.center_px) / setup.pitch_px
    shares = light.shares(np.concatenate([world, np.zeros_like(world[..., :1])], axis=-1)).astype(np.float32)
    # Light is smooth: half the resolution is enough.
    small = (size[0] // 2, size[1] // 2)
    inside = cv2.resize(inside, small, interpolation=cv2.INTER_AREA)
    softness = (2 * round(light.softness_px / 2) + 1,) * 2
    lit = np.zeros((small[1], small[0], 3), np.float32)
    for share, color, place in zip(shares, light.colors, light.places, strict=True):
        shadow = cv2.bitwise_and(_shadow(camera, setup, pins, feet, axis, place), inside)
        left = cv2.convertScaleAbs(cv2.blur(shadow, softness), alpha=-setup.shadow, beta=255)
        brightness = cv2.multiply(
            cv2.resize(share, small, interpolation=cv2.INTER_LINEAR), left, scale=1 / 255, dtype=cv2.CV_32F
        )
        lit += brightness[..., None] * color.astype(np.float32)
    light_picture = cv2.resize(cv2.convertScaleAbs(lit, alpha=255 / _LIGHT_WHITE), size)
    return cv2.multiply(surface, light_picture, scale=_LIGHT_WHITE / 255)


def _surfaces(camera: Camera, setup: LineSetup, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors of table, rim, walls and floor: uint8 (H, W, 3); and the mask of walls and floor."""
    surface = _table(setup.image_width, setup.image_height, setup.table_color, setup.table_contrast, setup.texture_seed)
    surface = surface.copy()
    half = np.array([layout.columns - 1, len(layout.rows) - 1]) / 2 + setup.wall_margin
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    high = np.full((4, 1), setup.pin_height * setup.wall_height)
    foot = camera.project(np.hstack([corners, np.zeros((4, 1))]))
    crest = camera.project(np.hstack([corners * 1.02, high]))
    rim = camera.project(np.hstack([corners * 1.02 + np.sign(corners) * setup.rim, high]))
    inside = np.zeros(surface.shape[:2], np.uint8)
    wall = np.array(setup.wall_color)
    _fill(surface, _fixed(rim), _levels(wall * _RIM_SHARE))
    _fill(inside, _fixed(crest), [255])
    _fill(surface, _fixed(foot), _levels(setup.floor_color))
    for side, share in enumerate(_WALL_SHARES):
        other = (side + 1) % 4
        corners = np.array([foot[side], foot[other], crest[other], crest[side]])
        _fill(surface, _fixed(corners), _levels(wall * share))
    return surface, inside


@lru_cache(maxsize=4)
def _table(width: int, height: int, color: tuple[float, float, float], contrast: float, seed: int) -> np.ndarray:
    """Draw the table: a cloth with spots, grain and a few wide bands, uint8 (H, W, 3), 1.0 at `_WHITE`."""
    rng = np.random.default_rng(seed)
    spots = cv2.resize(rng.standard_normal((height // 24 + 2, width // 24 + 2)), (width, height))
    grain = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 1.2) * 2
    bands = rng.normal(0, 1.5, 4)[np.sort(rng.integers(0, 4, height))][:, None]
    pattern = 1 + contrast * (spots + grain + bands) / 2
    return np.clip(pattern[..., None] * np.array(color) * _WHITE, 0, 255).astype(np.uint8)


def _shadow(
    camera: Camera, setup: LineSetup, pins: Pins, feet: np.ndarray, axis: np.ndarray, lamp: np.ndarray
) -> np.ndarray:
    """Return the mask of the pins' shadows on the floor by one lamp: uint8 (H // 2, W // 2)."""
    mask = np.zeros((setup.image_height // 2, setup.image_width // 2), np.uint8)
    outline = np.column_stack([_outline(setup) * setup.pin_width, np.zeros(len(_outline(setup)))])
    tops = camera.place(feet + axis * (setup.pin_height * pins.height)[:, None])
    bases = camera.place(feet)
    thrown = tops + (tops - lamp) * (tops[:, 2:] / np.maximum(lamp[2] - tops[:, 2:], 0.5))
    ends = np.stack([bases, thrown * [1, 1, 0]], axis=1)[:, :, None] + outline
    ends = _fixed(camera.project_world(ends) / 2).reshape(len(feet), -1, 2)
    for pin in np.flatnonzero(pins.present):
        _fill(mask, cv2.convexHull(ends[pin]), [255])
    return mask


def _draw_pins(
    canvas: np.ndarray,
    camera: Camera,
    setup: LineSetup,
    pins: Pins,
    feet: np.ndarray,
    axis: np.ndarray,
    light: Light,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw sides and tops; return the boxes of the tops and of the whole pins, both (pins, 4), in px."""
    shown = _pin_pictures(camera, setup, pins, feet, axis, light)
    if pins.foreign.any():
        other = "SQUR" if setup.shape == "CYLN" else "CYLN"
        others = _pin_pictures(camera, replace(setup, shape=other), pins, feet, axis, light)
        shown = [others[pin] if foreign else shown[pin] for pin, foreign in enumerate(pins.foreign)]
    # Pins farther from the camera's axis lean away from it in the picture, so nearer pins are painted later.
    for pin in np.argsort(-camera.distance_from_axis(feet)):
        if pins.present[pin]:
            for polygon, color in shown[pin].polygons:
                _fill(canvas, polygon, color)
    return np.array([each.top_box for each in shown]), np.array([each.box for each in shown])


@dataclass
class _PinPicture:
    """How a pin appears: its polygons with their levels in the order of painting; boxes (4,) of top and pin, in px."""

    polygons: list[tuple[np.ndarray, list[float]]]
    top_box: np.ndarray
    box: np.ndarray


def _pin_pictures(
    camera: Camera, setup: LineSetup, pins: Pins, feet: np.ndarray, axis: np.ndarray, light: Light
) -> list[_PinPicture]:
    """Return the pictures of all pins, as pins of the set-up's shape."""
    flat = _outline(setup)
    first = np.stack([axis[:, 2], np.zeros(len(axis)), -axis[:, 0]], axis=1)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)
    width = (setup.pin_width * pins.width)[:, None, None]
    ring = width * (flat[None, :, :1] * first[:, None] + flat[None, :, 1:] * second[:, None])
    length = setup.pin_height * pins.height
    levels = np.linspace(0, 1, _SIDE_SLICES + 1)
    centers = feet[:, None] + axis[:, None] * (length[:, None] * levels)[..., None]
    rings = camera.project(centers[:, :, None] + ring[:, None])
    tops = rings[:, -1]
    bright = light.at(camera.place(centers[:, -1])) * pins.gray[:, None] * setup.pin_color * pins.tint
    deep = setup.side_fade + (1 - setup.side_fade) * (np.arange(_SIDE_SLICES) + 0.5) / _SIDE_SLICES
    sides = setup.side_share * bright[:, None] * deep[:, None]
    faces = _faces(_fixed(rings), sides, _side_light(flat, camera, light, feet), setup.shape)
    middles = tops.mean(axis=1, keepdims=True)
    edges, inner = _fixed(tops), _fixed(middles + _INNER_TOP * (tops - middles))
    return [
        _PinPicture(
            [
                *faces[pin],
                (edges[pin], _levels(bright[pin] * setup.edge_share)),
                (inner[pin], _levels(bright[pin])),
            ],
            np.concatenate([tops[pin].min(axis=0), tops[pin].max(axis=0)]),
            np.concatenate([rings[pin].min(axis=(0, 1)), rings[pin].max(axis=(0, 1))]),
        )
        for pin in range(len(feet))
    ]


def _draw_objects(canvas: np.ndarray, camera: Camera, light: Light, objects: Sequence[ForeignObject]) -> None:
    for thing in objects:
        color = light.at(camera.place(thing.path)).mean(axis=0) * thing.color
        points = _fixed(camera.project(thing.path))
        thickness = max(1, round(thing.width * camera.setup.pitch_px))
        cv2.polylines(canvas, [points], thing.closed, _levels(color), thickness, cv2.LINE_AA, _SUBPIXEL_BITS)


def _faces(
    rings: np.ndarray, colors: np.ndarray, facing: np.ndarray, shape: str
) -> list[list[tuple[np.ndarray, list[float]]]]:
    """Return the visible faces of every pin's side with their levels, in the order in which they are painted.

    Args:
        rings: int32 (pins, slices + 1, points, 2), the outlines of the slices.
        colors: float64 (pins, slices, 3).
        facing: float64 (pins, points), relative brightness of the faces.
        shape: Pin shape.
    """
    if shape == "CYLN":
        both = np.concatenate([rings[:, :-1], rings[:, 1:]], axis=2)
        return [
            [(cv2.convexHull(points), _levels(color)) for points, color in zip(slices, shades, strict=True)]
            for slices, shades in zip(both, colors, strict=True)
        ]
    following = np.roll(rings, -1, axis=2)
    quads = np.stack([rings[:, :-1], following[:, :-1], following[:, 1:], rings[:, 1:]], axis=3)
    along, across = quads[..., 1, :] - quads[..., 0, :], quads[..., 3, :] - quads[..., 0, :]
    front = along[..., 0] * across[..., 1] - along[..., 1] * across[..., 0] >= 0
    shades = colors[:, :, None] * facing[:, None, :, None]
    return [
        [(quads[pin, level, edge], _levels(shades[pin, level, edge])) for level, edge in np.argwhere(front[pin])]
        for pin in range(len(rings))
    ]


def _side_light(flat: np.ndarray, camera: Camera, light: Light, feet: np.ndarray) -> np.ndarray:
    """Return the relative brightness (pins, edges) of the side faces; faces toward the lamps are brighter."""
    edges = np.roll(flat, -1, axis=0) - flat
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    towards = light.places[:, None] - camera.place(feet)
    directions = towards[..., :2] / np.linalg.norm(towards, axis=2, keepdims=True)
    power = light.colors.mean(axis=1) / light.colors.mean(axis=1).sum()
    return 1 + 0.5 * np.tensordot(power, directions, axes=(0, 0)) @ normals.T


def _fixed(points: np.ndarray) -> np.ndarray:
    """Return points in px as fixed-point numbers, int32."""
    return np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _levels(color: Color | np.ndarray) -> list[float]:
    """Return the levels of a color on the canvas."""
    return [min(255.0, float(value) * _WHITE) for value in color]


def _fill(canvas: np.ndarray, polygon: np.ndarray, levels: list[float]) -> None:
    """Fill a convex polygon of fixed-point numbers."""
    cv2.fillConvexPoly(canvas, polygon, levels, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _expose(canvas: np.ndarray, rng: np.random.Generator, setup: LineSetup) -> np.ndarray:
    sharp = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(*setup.blur_range))
    noise = rng.standard_normal(canvas.shape[:2], dtype=np.float32)
    noise *= np.float32(rng.uniform(*setup.noise_range) * 255)
    return cv2.addWeighted(sharp, 255 / _WHITE, cv2.merge([noise] * 3), 1, 0, dtype=cv2.CV_8U)
