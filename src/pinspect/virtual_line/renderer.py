"""The virtual line: a parametric renderer of connectors, about 5 ms a capture.

It draws what a camera above a dark shell sees: pale pins in perspective, their sides, their shadows, uneven light,
noise and blur. `LineSetup` is what stays the same on one line (camera, lens, pins); what varies from capture to
capture (place, light, noise, the natural tolerance of passed pins) is drawn anew for each. Lengths are in pitches, the
distance of neighbouring pins; the connector's floor is at height 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.core.params import VirtualParams

_SUBPIXEL_BITS = 4
_SIDE_SLICES = 5
_WHITE = 160  # canvas level of brightness 1.0: an 8-bit canvas, since OpenCV antialiases no other, with room above
_PIN_WIDTH = {"CYLN": 0.52, "SQUR": 0.46}


@dataclass(frozen=True)
class LineSetup:
    """One line: its camera, its pins and how much its captures vary.

    Lengths in pitches, angles in degrees, image size and pitch in px, grey levels 0..1.
    """

    shape: str
    image_width: int = 640
    image_height: int = 260
    pitch_px: float = 65.5
    camera_height: float = 10.6
    camera_tilt: tuple[float, float] = (0.0, 0.0)
    camera_roll: float = 0.0
    lens_k1: float = 0.0
    centre_px: tuple[float, float] = (321.0, 131.0)
    pin_height: float = 1.6
    pin_width: float = 0.52
    corner: float = 0.0
    pin_grey: float = 0.8
    side_grey: float = 0.5
    floor_grey: float = 0.14
    shadow: float = 0.6
    place_jitter_px: tuple[float, float] = (8.0, 7.0)
    tilt_tolerance: float = 0.9
    height_tolerance: float = 0.018
    grey_tolerance: float = 0.02
    light_range: tuple[float, float] = (0.75, 1.15)
    noise_range: tuple[float, float] = (0.002, 0.008)
    blur_range: tuple[float, float] = (0.3, 0.9)
    jpeg_range: tuple[int, int] = (86, 96)


@dataclass
class Pins:
    """The state of every pin of one connector, each array float64 (pins,), in the layout's order.

    lean (degrees) and lean_direction (radians, image axes) tilt a pin about its foot; height and width are shares of
    the set-up's own; shift_x, shift_y (pitches) move the foot; grey is a share of the set-up's; present is 0 or 1.
    """

    lean: np.ndarray
    lean_direction: np.ndarray
    height: np.ndarray
    width: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray
    grey: np.ndarray
    present: np.ndarray


@dataclass
class Rendered:
    """A rendered connector: RGB uint8 (H, W, 3), and the boxes x0, y0, x1, y1 (px) of the pin field and each pin."""

    image: np.ndarray
    field_box: tuple[float, float, float, float]
    pin_boxes: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class VirtualCapture:
    """One capture of the virtual line with its label, as `labels.csv` words it, and its JPEG file."""

    name: str
    shape: str
    judgement: str
    defect_mode: str
    defect_position: str
    role: str
    split: str
    jpeg: bytes
    field_box: tuple[float, float, float, float]
    pin_box: tuple[float, float, float, float] | None


def random_setup(rng: np.random.Generator, shape: str) -> LineSetup:
    """A line drawn from a wide range of cameras, lenses, pins, materials and lights."""
    pitch = rng.uniform(58, 69)
    return LineSetup(
        shape=shape,
        pitch_px=pitch,
        camera_height=rng.uniform(8.0, 14.0),
        camera_tilt=(rng.normal(0, 1.0), rng.normal(0, 1.0)),
        camera_roll=rng.normal(0, 0.5),
        lens_k1=rng.uniform(-0.03, 0.03),
        centre_px=(320 + rng.uniform(-8, 8), 130 + rng.uniform(-8, 8)),
        pin_height=rng.uniform(1.2, 2.1),
        pin_width=rng.uniform(0.44, 0.6),
        corner=rng.uniform(0, 0.06),
        pin_grey=rng.uniform(0.5, 0.95),
        side_grey=rng.uniform(0.22, 0.62),
        floor_grey=rng.uniform(0.05, 0.22),
        shadow=rng.uniform(0.1, 0.85),
        light_range=(rng.uniform(0.6, 0.85), rng.uniform(1.0, 1.25)),
        noise_range=(0.001, rng.uniform(0.004, 0.014)),
        blur_range=(0.3, rng.uniform(0.5, 1.2)),
    )


def tolerated_pins(rng: np.random.Generator, setup: LineSetup, layout: Layout) -> Pins:
    """Pins as a passed connector has them: small tilts, heights and greys within the natural tolerance."""
    n = layout.pins
    return Pins(
        lean=rng.uniform(0, setup.tilt_tolerance, n),
        lean_direction=rng.uniform(0, 2 * np.pi, n),
        height=1 + rng.uniform(-setup.height_tolerance, setup.height_tolerance, n),
        width=np.ones(n),
        shift_x=np.zeros(n),
        shift_y=np.zeros(n),
        grey=1 + rng.uniform(-setup.grey_tolerance, setup.grey_tolerance, n),
        present=np.ones(n),
    )


def bend(pins: Pins, pin: int, rng: np.random.Generator, layout: Layout) -> None:
    """Bend one pin by 8-20 degrees about its foot, in a direction that does not cut a neighbour."""
    lean_clear_of_neighbours(pins, pin, rng.uniform(8, 20), rng, layout)


def retract(pins: Pins, pin: int, rng: np.random.Generator, layout: Layout) -> None:
    """Take 20-60 % of one pin's height."""
    pins.height[pin] *= rng.uniform(0.4, 0.8)


def remove(pins: Pins, pin: int, rng: np.random.Generator, layout: Layout) -> None:
    """Leave one pin out."""
    pins.present[pin] = 0


def lean_clear_of_neighbours(
    pins: Pins, pin: int, degrees: float, rng: np.random.Generator, layout: Layout, setup: LineSetup | None = None
) -> None:
    """Lean one pin by `degrees` about its foot, in a random direction in which its top meets no neighbour's."""
    setup = setup or LineSetup(shape="CYLN")
    reach = setup.pin_height * pins.height[pin] * np.sin(np.radians(degrees))
    feet = _feet(layout, pins)[:, :2]
    others = np.delete(feet[pins.present > 0], np.flatnonzero(np.flatnonzero(pins.present) == pin), axis=0)
    directions = rng.uniform(0, 2 * np.pi, 32)
    tops = feet[pin] + reach * np.stack([np.cos(directions), np.sin(directions)], axis=1)
    clearance = np.linalg.norm(tops[:, None] - others[None], axis=2).min(axis=1)
    free = np.flatnonzero(clearance > setup.pin_width * 1.1)
    pins.lean[pin] = degrees
    pins.lean_direction[pin] = directions[free[0] if len(free) else int(clearance.argmax())]


DEFECTS = {"bend": bend, "retract": retract, "missing": remove}


def render(rng: np.random.Generator, setup: LineSetup, pins: Pins, layout: Layout) -> Rendered:
    """Draw one capture of `pins`; light, place, noise and blur are drawn from the set-up's ranges."""
    camera = _Camera(setup, rng)
    feet = _feet(layout, pins)
    axis = _axes(pins)
    light = _Light(rng, setup, layout)
    shell = _shell(setup, light, camera, layout) * _shadows(camera, setup, pins, feet, axis, light)
    canvas = np.clip(shell * _WHITE, 0, 255).astype(np.uint8)
    tops, boxes = _draw_pins(canvas, camera, setup, pins, feet, axis, light, rng)
    image = _expose(canvas, rng, setup, light)
    present = pins.present > 0
    field_box = (*tops[present].min(axis=(0, 1)), *tops[present].max(axis=(0, 1)))
    return Rendered(image, tuple(float(edge) for edge in field_box), boxes)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of an RGB uint8 image; the same bytes for the same input and library version."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def render_line(
    layout: Layout, shapes: tuple[str, ...], defect_modes: tuple[str, ...], params: VirtualParams
) -> Iterator[VirtualCapture]:
    """Render the captures of one virtual line: references of every shape, then training, test and validation captures.

    Each capture has a random stream of its own, so that asking for more of them changes none of the others.
    Raises ValueError for a shape or a defect mode that the renderer cannot draw.
    """
    unknown = [shape for shape in shapes if shape not in _PIN_WIDTH] + [m for m in defect_modes if m not in DEFECTS]
    if unknown:
        raise ValueError(
            f"the virtual line cannot draw {', '.join(unknown)}; set raw.virtual.train, .validation and .test to 0"
        )
    for number, shape in enumerate(shapes):
        for index in range(params.references):
            rng = np.random.default_rng([params.seed, 0, number, index])
            yield _capture(rng, f"virtual-{shape}-reference-{index:03d}", shape, PASSED, "reference", "train", layout)
    parts = (("train", params.train), ("test", params.test), ("validation", params.validation))
    for part, (split, count) in enumerate(parts, start=1):
        for index in range(count):
            rng = np.random.default_rng([params.seed, part, index])
            shape = shapes[index % len(shapes)]
            mode = rng.choice(defect_modes) if rng.random() < params.defective_share else PASSED
            yield _capture(rng, f"virtual-{split}-{index:05d}", shape, str(mode), "inspected", split, layout)


def _capture(
    rng: np.random.Generator, name: str, shape: str, mode: str, role: str, split: str, layout: Layout
) -> VirtualCapture:
    setup = LineSetup(shape=shape, pin_width=_PIN_WIDTH[shape])
    pins = tolerated_pins(rng, setup, layout)
    pin = None
    if mode != PASSED:
        pin = int(rng.integers(layout.pins))
        DEFECTS[mode](pins, pin, rng, layout)
    rendered = render(rng, setup, pins, layout)
    return VirtualCapture(
        name=f"{name}.jpg",
        shape=shape,
        judgement=PASSED if pin is None else DEFECTIVE,
        defect_mode=mode,
        defect_position=NO_ADDRESS if pin is None else str(layout.addresses[pin]),
        role=role,
        split=split,
        jpeg=encode_jpeg(rendered.image, int(rng.integers(*setup.jpeg_range))),
        field_box=rendered.field_box,
        pin_box=None if pin is None else tuple(float(edge) for edge in rendered.pin_boxes[pin]),
    )


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
        """World (…, 3), x right, y down, z up, in pitches -> px (…, 2)."""
        place = points.copy()
        place[..., :2] += self.offset
        # Turning about the middle of the pins' tops keeps the field centred whatever the tilt.
        place[..., 2] -= self.setup.pin_height
        place = place @ self.rotation.T
        depth = (self.setup.camera_height - self.setup.pin_height) - place[..., 2:]
        flat = place[..., :2] / depth
        flat = flat * (1 + self.setup.lens_k1 * (flat**2).sum(-1, keepdims=True) * 4)
        return flat * self.focal + np.array(self.setup.centre_px)


class _Light:
    """One lamp over the shell: its place, power, colour and softness."""

    def __init__(self, rng: np.random.Generator, setup: LineSetup, layout: Layout) -> None:
        self.place = np.array(
            [
                rng.uniform(-0.5, 0.5) * layout.columns,
                rng.uniform(-1.2, 1.2) * len(layout.rows),
                rng.uniform(5, 12),
            ]
        )
        self.power = rng.uniform(*setup.light_range)
        self.colour = 1 + np.array([1.0, 0.0, -1.0]) * rng.normal(0, 0.03) + rng.normal(0, 0.01, 3)
        self.softness_px = rng.uniform(3, 12)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Relative brightness (…,) of an upward-facing surface at world points (…, 3)."""
        towards = self.place - points
        distance = np.linalg.norm(towards, axis=-1)
        # Lambert's law with the inverse square of the distance, tamed as a wide lamp and bounced light tame it.
        fall = (towards[..., 2] / distance) * (self.place[2] / distance) ** 1.2
        return self.power * (0.25 + 0.75 * fall)


def _feet(layout: Layout, pins: Pins) -> np.ndarray:
    column = np.tile(np.arange(layout.columns), len(layout.rows)) - (layout.columns - 1) / 2
    row = np.repeat(np.arange(len(layout.rows)), layout.columns) - (len(layout.rows) - 1) / 2
    return np.stack([column + pins.shift_x, row + pins.shift_y, np.zeros(layout.pins)], axis=1)


def _axes(pins: Pins) -> np.ndarray:
    lean = np.radians(pins.lean)
    return np.stack(
        [np.sin(lean) * np.cos(pins.lean_direction), np.sin(lean) * np.sin(pins.lean_direction), np.cos(lean)], axis=1
    )


def _outline(setup: LineSetup) -> np.ndarray:
    """Unit cross-section (points, 2) of a pin of width 1."""
    if setup.shape == "CYLN":
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1) / 2
    half, cut = 0.5, 0.5 - setup.corner
    return np.array(
        [[-cut, -half], [cut, -half], [half, -cut], [half, cut], [cut, half], [-cut, half], [-half, cut], [-half, -cut]]
    )


def _shell(setup: LineSetup, light: _Light, camera: _Camera, layout: Layout) -> np.ndarray:
    """The dark floor and walls, float32 (H, W), lit unevenly."""
    height, width = setup.image_height, setup.image_width
    y, x = np.mgrid[0:height:8, 0:width:8].astype(np.float64)
    world = np.stack(
        [(x - setup.centre_px[0]) / setup.pitch_px, (y - setup.centre_px[1]) / setup.pitch_px, np.zeros_like(x)],
        axis=-1,
    )
    floor = (setup.floor_grey * light.at(world)).astype(np.float32)
    canvas = cv2.resize(floor, (width, height), interpolation=cv2.INTER_LINEAR)
    half_x, half_y = layout.columns / 2 + 0.35, len(layout.rows) / 2 + 0.45
    rim = np.array([[-half_x, -half_y], [half_x, -half_y], [half_x, half_y], [-half_x, half_y]])
    foot = camera.project(np.column_stack([rim, np.zeros(4)]))
    crest = camera.project(np.column_stack([rim * 1.02, np.full(4, setup.pin_height * 1.3)]))
    for side in range(4):
        other = (side + 1) % 4
        wall = np.array([foot[side], foot[other], crest[other], crest[side]])
        grey = setup.floor_grey * light.power * (0.55 + 0.3 * (side % 3))
        cv2.fillConvexPoly(canvas, np.round(wall).astype(np.int32), float(grey))
    return canvas


def _shadows(camera, setup, pins, feet, axis, light) -> np.ndarray:
    """The share of light, float32 (H, W), that the pins' shadows leave on the floor."""
    mask = np.zeros((setup.image_height, setup.image_width), np.uint8)
    outline = np.column_stack([_outline(setup) * setup.pin_width, np.zeros(len(_outline(setup)))])
    tops = feet + axis * (setup.pin_height * pins.height)[:, None]
    thrown = tops + (tops - light.place) * (tops[:, 2:] / (light.place[2] - tops[:, 2:]))
    for pin in np.flatnonzero(pins.present):
        ends = np.concatenate([feet[pin] + outline, thrown[pin] * [1, 1, 0] + outline])
        _fill(mask, _hull(camera.project(ends)), 255 / _WHITE)
    mask = cv2.blur(mask, (2 * int(light.softness_px) + 1,) * 2)
    return 1 - np.float32(setup.shadow / 255) * mask


def _draw_pins(canvas, camera, setup, pins, feet, axis, light, rng) -> tuple[np.ndarray, np.ndarray]:
    """Draw sides and tops; returns the tops' outlines (pins, points, 2) and the boxes (pins, 4) in px."""
    flat = _outline(setup)
    first = np.stack([axis[:, 2], np.zeros(len(axis)), -axis[:, 0]], axis=1)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)
    width = (setup.pin_width * pins.width)[:, None, None]
    ring = width * (flat[None, :, :1] * first[:, None] + flat[None, :, 1:] * second[:, None])
    length = setup.pin_height * pins.height
    levels = np.linspace(0, 1, _SIDE_SLICES + 1)
    centres = feet[:, None] + axis[:, None] * (length[:, None] * levels)[..., None]
    rings = camera.project(centres[:, :, None] + ring[:, None])
    tops = rings[:, -1]
    lit = light.at(centres[:, -1]) * pins.grey
    facing = _side_light(flat, light, feet)
    boxes = np.concatenate([rings.min(axis=(1, 2)), rings.max(axis=(1, 2))], axis=1)
    away = np.linalg.norm(feet[:, :2] + camera.offset, axis=1)
    # Pins further from the camera's axis lean away from it in the picture, so nearer ones are painted over them.
    for pin in np.argsort(-away):
        if not pins.present[pin]:
            continue
        for level in range(_SIDE_SLICES):
            deep = 0.4 + 0.6 * (level + 0.5) / _SIDE_SLICES
            grey = setup.side_grey * lit[pin] * deep
            _draw_slice(canvas, rings[pin, level], rings[pin, level + 1], grey, facing[pin], setup.shape)
        _fill(canvas, tops[pin], setup.pin_grey * lit[pin])
    return tops, boxes


def _side_light(flat: np.ndarray, light: _Light, feet: np.ndarray) -> np.ndarray:
    """Relative brightness (pins, edges) of the side faces: those that face the lamp are brighter."""
    edges = np.roll(flat, -1, axis=0) - flat
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    towards = light.place[None, :2] - feet[:, :2]
    towards /= np.linalg.norm(light.place - feet, axis=1, keepdims=True)
    return 1 + 0.5 * towards @ normals.T


def _draw_slice(canvas, lower, upper, grey, facing, shape) -> None:
    if shape == "CYLN":
        _fill(canvas, _hull(np.concatenate([lower, upper])), grey)
        return
    for edge in range(len(lower)):
        other = (edge + 1) % len(lower)
        quad = np.array([lower[edge], lower[other], upper[other], upper[edge]])
        along, across = quad[1] - quad[0], quad[3] - quad[0]
        if along[0] * across[1] - along[1] * across[0] < 0:  # seen from inside: the face looks away
            continue
        _fill(canvas, quad, grey * facing[edge])


def _hull(points: np.ndarray) -> np.ndarray:
    return cv2.convexHull(points.astype(np.float32))[:, 0]


def _fill(canvas: np.ndarray, polygon: np.ndarray, value: float) -> None:
    fixed = np.round(polygon * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    level = min(255.0, float(value) * _WHITE)
    cv2.fillConvexPoly(canvas, fixed, level, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _expose(canvas: np.ndarray, rng: np.random.Generator, setup: LineSetup, light: _Light) -> np.ndarray:
    blur = rng.uniform(*setup.blur_range)
    sharp = cv2.GaussianBlur(canvas.astype(np.float32) / _WHITE, (0, 0), blur)
    colour = sharp[..., None] * light.colour.astype(np.float32)
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(*setup.noise_range))
    exposed = np.clip(colour + noise[..., None], 0, 1)
    return (exposed * 255 + 0.5).astype(np.uint8)
