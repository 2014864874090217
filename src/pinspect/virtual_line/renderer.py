"""Render virtual captures of connectors, in about 5 ms each.

A camera above a dark shell sees pale pins in perspective, with sides, shadows, uneven light, noise and blur.
`LineSetup` has the constants of a line (camera, lens, pins). Place, light, noise and the natural tolerance of passed
pins are drawn for each capture. Lengths are in pitches (distance between neighboring pins); the connector's floor is at
height 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from pinspect.core.layout import Layout
from pinspect.virtual_line.pins import LineSetup, Pins, feet_of

_SUBPIXEL_BITS = 4
_SIDE_SLICES = 5
_WHITE = 160  # canvas level of brightness 1.0, with headroom; OpenCV antialiases on 8-bit canvases only


@dataclass
class Rendered:
    """A rendered connector.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        field_box: x0, y0, x1, y1 around the tops of all pins, in px.
        pin_boxes: float64 (pins, 4): x0, y0, x1, y1 around each pin, in px.
    """

    image: np.ndarray
    field_box: tuple[float, float, float, float]
    pin_boxes: np.ndarray = field(repr=False)


def render(rng: np.random.Generator, setup: LineSetup, pins: Pins, layout: Layout) -> Rendered:
    """Render one capture; light, place, noise and blur are drawn from the ranges of the set-up.

    Args:
        rng: Source of all random values.
        setup: The line.
        pins: The state of every pin.
        layout: Rows and columns of the pin field.
    """
    camera = _Camera(setup, rng)
    feet = feet_of(layout, pins)
    axis = _axes(pins)
    light = _Light(rng, setup, layout)
    shell = _shell(setup, light, camera, layout) * _shadows(camera, setup, pins, feet, axis, light)
    canvas = np.clip(shell * _WHITE, 0, 255).astype(np.uint8)
    tops, boxes = _draw_pins(canvas, camera, setup, pins, feet, axis, light)
    image = _expose(canvas, rng, setup, light)
    present = pins.present > 0
    edges = np.concatenate([tops[present].min(axis=(0, 1)), tops[present].max(axis=(0, 1))])
    return Rendered(image, box_of(edges), boxes)


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


class _Camera:
    """A pinhole camera above the connector, with a little tilt, roll and radial distortion."""

    def __init__(self, setup: LineSetup, rng: np.random.Generator) -> None:
        self.setup = setup
        self.focal = setup.pitch_px * (setup.camera_height - setup.pin_height)
        tilt_x, tilt_y = np.radians(setup.camera_tilt)
        roll = np.radians(setup.camera_roll)
        about_x = np.array([[1, 0, 0], [0, np.cos(tilt_x), -np.sin(tilt_x)], [0, np.sin(tilt_x), np.cos(tilt_x)]])
        about_y = np.array([[np.cos(tilt_y), 0, np.sin(tilt_y)], [0, 1, 0], [-np.sin(tilt_y), 0, np.cos(tilt_y)]])
        about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
        self.rotation = about_z @ about_y @ about_x
        jitter = np.array(setup.place_jitter_px) / setup.pitch_px
        self.offset = rng.uniform(-jitter, jitter)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Project world points (…, 3), x right, y down, z up, in pitches, to px (…, 2)."""
        place = points.copy()
        place[..., :2] += self.offset
        # A rotation about the middle of the pins' tops keeps the field centered at any tilt.
        place[..., 2] -= self.setup.pin_height
        place = place @ self.rotation.T
        depth = (self.setup.camera_height - self.setup.pin_height) - place[..., 2:]
        flat = place[..., :2] / depth
        flat = flat * (1 + self.setup.lens_k1 * (flat**2).sum(-1, keepdims=True) * 4)
        return flat * self.focal + np.array(self.setup.center_px)


class _Light:
    """One lamp over the shell: its place, power, color and softness."""

    def __init__(self, rng: np.random.Generator, setup: LineSetup, layout: Layout) -> None:
        self.place = np.array(
            [
                rng.uniform(-0.5, 0.5) * layout.columns,
                rng.uniform(-1.2, 1.2) * len(layout.rows),
                rng.uniform(5, 12),
            ]
        )
        self.power = rng.uniform(*setup.light_range)
        self.color = 1 + np.array([1.0, 0.0, -1.0]) * rng.normal(0, 0.03) + rng.normal(0, 0.01, 3)
        self.softness_px = rng.uniform(3, 12)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Return the relative brightness (…,) of an upward-facing surface at world points (…, 3)."""
        towards = self.place - points
        distance = np.linalg.norm(towards, axis=-1)
        # Lambert's law; a wide lamp and reflected light soften the inverse square of the distance.
        fall = (towards[..., 2] / distance) * (self.place[2] / distance) ** 1.2
        return self.power * (0.25 + 0.75 * fall)


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
    return np.array(
        [[-cut, -half], [cut, -half], [half, -cut], [half, cut], [cut, half], [-cut, half], [-half, cut], [-half, -cut]]
    )


def _shell(setup: LineSetup, light: _Light, camera: _Camera, layout: Layout) -> np.ndarray:
    """Draw the dark floor and walls in uneven light: float32 (H, W)."""
    height, width = setup.image_height, setup.image_width
    y, x = np.mgrid[0:height:8, 0:width:8].astype(np.float64)
    world = np.stack(
        [(x - setup.center_px[0]) / setup.pitch_px, (y - setup.center_px[1]) / setup.pitch_px, np.zeros_like(x)],
        axis=-1,
    )
    floor = (setup.floor_gray * light.at(world)).astype(np.float32)
    canvas = cv2.resize(floor, (width, height), interpolation=cv2.INTER_LINEAR)
    half_x, half_y = layout.columns / 2 + 0.35, len(layout.rows) / 2 + 0.45
    rim = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y], [-half_x, half_y]])
    foot = camera.project(np.column_stack([rim, np.zeros(4)]))
    crest = camera.project(np.column_stack([rim * 1.02, np.full(4, setup.pin_height * 1.3)]))
    for side in range(4):
        other = (side + 1) % 4
        wall = np.array([foot[side], foot[other], crest[other], crest[side]])
        gray = setup.floor_gray * light.power * (0.55 + 0.3 * (side % 3))
        cv2.fillConvexPoly(canvas, np.round(wall).astype(np.int32), float(gray))
    return canvas


def _shadows(
    camera: _Camera, setup: LineSetup, pins: Pins, feet: np.ndarray, axis: np.ndarray, light: _Light
) -> np.ndarray:
    """Return the share of light that the pins' shadows leave on the floor: float32 (H, W), 0..1."""
    mask = np.zeros((setup.image_height, setup.image_width), np.uint8)
    outline = np.column_stack([_outline(setup) * setup.pin_width, np.zeros(len(_outline(setup)))])
    tops = feet + axis * (setup.pin_height * pins.height)[:, None]
    thrown = tops + (tops - light.place) * (tops[:, 2:] / (light.place[2] - tops[:, 2:]))
    for pin in np.flatnonzero(pins.present):
        ends = np.concatenate([feet[pin] + outline, thrown[pin] * [1, 1, 0] + outline])
        _fill(mask, _hull(camera.project(ends)), 255 / _WHITE)
    mask = cv2.blur(mask, (2 * int(light.softness_px) + 1,) * 2)
    return 1 - np.float32(setup.shadow / 255) * mask


def _draw_pins(
    canvas: np.ndarray,
    camera: _Camera,
    setup: LineSetup,
    pins: Pins,
    feet: np.ndarray,
    axis: np.ndarray,
    light: _Light,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw sides and tops; return the outlines of the tops (pins, points, 2) and the boxes (pins, 4), in px."""
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
    lit = light.at(centers[:, -1]) * pins.gray
    facing = _side_light(flat, light, feet)
    boxes = np.concatenate([rings.min(axis=(1, 2)), rings.max(axis=(1, 2))], axis=1)
    away = np.linalg.norm(feet[:, :2] + camera.offset, axis=1)
    # Pins farther from the camera's axis lean away from it in the picture, so nearer pins are painted later.
    for pin in np.argsort(-away):
        if not pins.present[pin]:
            continue
        for level in range(_SIDE_SLICES):
            deep = 0.4 + 0.6 * (level + 0.5) / _SIDE_SLICES
            gray = float(setup.side_gray * lit[pin] * deep)
            _draw_slice(canvas, rings[pin, level], rings[pin, level + 1], gray, facing[pin], setup.shape)
        _fill(canvas, tops[pin], float(setup.pin_gray * lit[pin]))
    return tops, boxes


def _side_light(flat: np.ndarray, light: _Light, feet: np.ndarray) -> np.ndarray:
    """Return the relative brightness (pins, edges) of the side faces; faces toward the lamp are brighter."""
    edges = np.roll(flat, -1, axis=0) - flat
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    towards = light.place[None, :2] - feet[:, :2]
    towards /= np.linalg.norm(light.place - feet, axis=1, keepdims=True)
    return 1 + 0.5 * towards @ normals.T


def _draw_slice(
    canvas: np.ndarray, lower: np.ndarray, upper: np.ndarray, gray: float, facing: np.ndarray, shape: str
) -> None:
    if shape == "CYLN":
        _fill(canvas, _hull(np.concatenate([lower, upper])), gray)
        return
    for edge in range(len(lower)):
        other = (edge + 1) % len(lower)
        quad = np.array([lower[edge], lower[other], upper[other], upper[edge]])
        along, across = quad[1] - quad[0], quad[3] - quad[0]
        if along[0] * across[1] - along[1] * across[0] < 0:  # a back face
            continue
        _fill(canvas, quad, gray * facing[edge])


def _hull(points: np.ndarray) -> np.ndarray:
    return cv2.convexHull(points.astype(np.float32))[:, 0]


def _fill(canvas: np.ndarray, polygon: np.ndarray, value: float) -> None:
    fixed = np.round(polygon * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    level = min(255.0, float(value) * _WHITE)
    cv2.fillConvexPoly(canvas, fixed, level, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _expose(canvas: np.ndarray, rng: np.random.Generator, setup: LineSetup, light: _Light) -> np.ndarray:
    blur = rng.uniform(*setup.blur_range)
    sharp = cv2.GaussianBlur(canvas.astype(np.float32) / _WHITE, (0, 0), blur)
    color = sharp[..., None] * light.color.astype(np.float32)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(*setup.noise_range))
    exposed = np.clip(color + noise[..., None], 0, 1)
    return (exposed * 255 + 0.5).astype(np.uint8)
