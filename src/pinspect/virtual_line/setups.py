"""The constants of a virtual line, and random lines: camera, connector, colors, lamps."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pinspect.core.layout import Layout

Color = tuple[float, float, float]
Range = tuple[float, float]

_LUMINANCE = np.array([0.299, 0.587, 0.114])
_WIDEST = 800  # px, of a virtual capture
_LEAST_CONTRAST = 0.22  # between the gray of the pins' tops and of the floor


@dataclass(frozen=True)
class Lamp:
    """A lamp above the connector; all lamps of a line together have a power of about 1.

    Attributes:
        place: x to the right, y downward, z up, in pitches from the middle of the floor.
        power: Share of the light.
        color: RGB factors, about 1.
        place_jitter: Largest deviation of a capture's lamp from `place`, in pitches.
        power_jitter: Largest deviation of a capture's lamp from `power`, as a share.
    """

    place: tuple[float, float, float]
    power: float = 1.0
    color: Color = (1.0, 1.0, 1.0)
    place_jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    power_jitter: float = 0.0


_CEILING_LAMP = Lamp((0.0, 0.0, 8.5), place_jitter=(4.5, 3.6, 3.5))


@dataclass(frozen=True)
class LineSetup:
    """The constants of a line: its camera, its connector, its light, and how much its captures vary.

    Lengths are in pitches, angles in degrees, image size and pitch in px, colors RGB 0..1. The default is a line with
    gray pins in a dark housing.

    Attributes:
        camera_offset: Where the camera stands, right of and below the middle of the pins: an eye of a pair.
        camera_tilt: Turn of the camera about the x and the y axis.
        center_px: Where the middle of the pins' tops appears.
        wall_margin: Distance of the walls from the outer pins, x and y.
        wall_height: Height of the walls as a share of the pins' height.
        side_share: Brightness of the pins' sides as a share of their tops' brightness.
        side_fade: Brightness of a side's lower end as a share of its upper end's.
        edge_share: Brightness of the tops' edges as a share of the tops' brightness.
        shadow: Share of a lamp's light that a shadow takes away.
        table_contrast: Contrast of the table's texture.
        texture_seed: Seed of the table's texture.
        place_jitter_px: Largest shift of a connector, right and down.
        turn: Largest turn of a connector.
        light_range: Brightness of a capture.
        tint: Standard deviation of a capture's color temperature.
    """

    shape: str
    image_width: int = 640
    image_height: int = 260
    pitch_px: float = 65.5
    camera_height: float = 10.6
    camera_offset: tuple[float, float] = (0.0, 0.0)
    camera_tilt: tuple[float, float] = (0.0, 0.0)
    camera_roll: float = 0.0
    lens_k1: float = 0.0
    center_px: tuple[float, float] = (321.0, 131.0)
    pin_height: float = 1.6
    pin_width: float = 0.52
    corner: float = 0.0
    wall_margin: tuple[float, float] = (0.85, 0.95)
    wall_height: float = 1.3
    rim: float = 0.12
    pin_color: Color = (0.8, 0.8, 0.8)
    floor_color: Color = (0.14, 0.14, 0.14)
    wall_color: Color = (0.14, 0.14, 0.14)
    table_color: Color = (0.2, 0.2, 0.2)
    side_share: float = 0.62
    side_fade: float = 0.4
    edge_share: float = 1.0
    lamps: tuple[Lamp, ...] = (_CEILING_LAMP,)
    shadow: float = 0.6
    shadow_softness_px: Range = (3.0, 12.0)
    table_contrast: float = 0.05
    texture_seed: int = 0
    place_jitter_px: tuple[float, float] = (8.0, 7.0)
    turn: float = 0.0
    tilt_tolerance: float = 0.9
    height_tolerance: float = 0.018
    gray_tolerance: float = 0.02
    light_range: Range = (0.75, 1.15)
    tint: float = 0.03
    noise_range: Range = (0.002, 0.008)
    blur_range: Range = (0.3, 0.9)
    jpeg_range: tuple[int, int] = (86, 96)


def random_setup(rng: np.random.Generator, shape: str) -> LineSetup:
    """Draw a line from a wide range of cameras, connectors, colors and lights."""
    width = int(rng.choice([560, 640, 640, 720, 800]))
    height = int(width * rng.uniform(0.41, 0.58))
    pitch = width / rng.uniform(9.2, 11.0)
    pins, floor, wall, table = _colors(rng)
    return LineSetup(
        shape=shape,
        image_width=width,
        image_height=height,
        pitch_px=pitch,
        camera_height=rng.uniform(8.0, 14.0),
        # A third of the cameras looks straight down at the middle; the others are the left or right eye of a pair.
        camera_offset=(float(rng.choice([-1, 0, 1])) * rng.uniform(0.3, 1.8), rng.uniform(-0.5, 0.5)),
        camera_tilt=(rng.normal(0, 1.0), rng.normal(0, 1.0)),
        camera_roll=rng.normal(0, 0.5),
        lens_k1=rng.uniform(-0.03, 0.03),
        center_px=(width / 2 + pitch * rng.uniform(-0.2, 0.2), height * rng.uniform(0.46, 0.54)),
        pin_height=rng.uniform(1.2, 2.1),
        pin_width=rng.uniform(0.42, 0.6),
        corner=rng.uniform(0, 0.06),
        wall_margin=(rng.uniform(0.6, 1.3), rng.uniform(0.6, 1.3)),
        wall_height=rng.uniform(0.5, 1.5),
        rim=rng.uniform(0.05, 0.3),
        pin_color=pins,
        floor_color=floor,
        wall_color=wall,
        table_color=table,
        side_share=rng.uniform(0.4, 0.9),
        side_fade=rng.uniform(0.2, 0.95),
        edge_share=rng.uniform(0.85, 1.15),
        lamps=_lamps(rng),
        shadow=rng.uniform(0.1, 0.97),
        shadow_softness_px=(rng.uniform(1, 3), rng.uniform(3, 12)),
        table_contrast=rng.uniform(0, 0.12),
        texture_seed=int(rng.integers(1 << 30)),
        place_jitter_px=(pitch * rng.uniform(0.05, 0.3), pitch * rng.uniform(0.05, 0.3)),
        turn=float(rng.choice([rng.uniform(0, 0.5), rng.uniform(0.5, 4.0)])),
        tilt_tolerance=rng.uniform(0.3, 1.0),
        height_tolerance=rng.uniform(0.005, 0.02),
        light_range=(rng.uniform(0.6, 0.85), rng.uniform(1.0, 1.2)),
        noise_range=(0.001, rng.uniform(0.004, 0.014)),
        blur_range=(0.3, rng.uniform(0.5, 1.2)),
    )


def setup_like(pictures: Sequence[np.ndarray], setup: LineSetup, layout: Layout) -> LineSetup:
    """Give a line the image size and the colors of real captures.

    The brightest part of the field is taken for the pins' tops, a darker part for the floor. A wrong guess makes
    another look, not a wrong label.

    Args:
        pictures: Captures of one line, uint8 (H, W, 3), RGB; captures of another size than the first are left out.
        setup: The line to change.
        layout: Rows and columns of the pin field.
    """
    height, width = pictures[0].shape[:2]
    scale = min(1.0, _WIDEST / width)
    size = (round(width * scale), round(height * scale))
    alike = [
        cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in pictures if each.shape[:2] == (height, width)
    ]
    middle = np.median(alike, axis=0) / 255
    field = middle[size[1] // 4 : -(size[1] // 4), size[0] // 8 : -(size[0] // 8)].reshape(-1, 3)
    gray = field @ _LUMINANCE
    dark, deep, half, bright = np.quantile(gray, [0.1, 0.35, 0.5, 0.9])
    return replace(
        setup,
        image_width=size[0],
        image_height=size[1],
        pitch_px=min(side / pitches for side, pitches in zip(size, _pitches(layout), strict=True)),
        center_px=(size[0] / 2, size[1] / 2),
        pin_color=_coarse(field[gray >= bright]),
        floor_color=_coarse(field[(gray >= dark) & (gray <= deep)]),
        wall_color=_coarse(field[(gray >= deep) & (gray <= half)]),
        table_color=_coarse(np.concatenate([middle[:4], middle[-4:]]).reshape(-1, 3)),
    )


def image_size(layout: Layout) -> tuple[int, int]:
    """Return width and height, px, of a default image: the pin field and its margin at the default pitch."""
    width, height = (round(pitches * LineSetup.pitch_px) for pitches in _pitches(layout))
    return width, height


def _pitches(layout: Layout) -> tuple[float, float]:
    """Return width and height of an image that the pin field fills, in pitches."""
    return layout.columns + 0.77, len(layout.rows) + 0.97


def _coarse(colors: np.ndarray) -> Color:
    """Return the mean of colors (n, 3) in coarse steps, so that few new references change the virtual line."""
    red, green, blue = ((round(float(value) ** 0.5 * 40) / 40) ** 2 for value in colors.mean(axis=0))
    return red, green, blue


def _colors(rng: np.random.Generator) -> tuple[Color, Color, Color, Color]:
    """Draw the colors of pins, floor, walls and table, with enough contrast between pins and floor."""
    while True:
        look = rng.choice(["dark", "housing", "pale", "any"], p=[0.32, 0.5, 0.1, 0.08])
        pins = _color(rng, saturation=(0.0, 0.12), value=(0.5, 0.97))
        if look == "dark":  # gray pins, dark floor
            floor = _color(rng, saturation=(0.0, 0.25), value=(0.03, 0.25))
        elif look == "housing":  # pale pins, a colored housing
            pins = _color(rng, saturation=(0.0, 0.35), value=(0.5, 0.97))
            floor = _color(rng, saturation=(0.35, 0.9), value=(0.08, 0.55))
        elif look == "pale":  # dark pins, pale floor
            pins = _color(rng, saturation=(0.0, 0.6), value=(0.06, 0.45))
            floor = _color(rng, saturation=(0.0, 0.3), value=(0.45, 0.95))
        else:  # such as brass or copper pins
            pins = _color(rng, saturation=(0.3, 0.8), value=(0.4, 0.97))
            floor = _color(rng, saturation=(0.0, 0.8), value=(0.05, 0.9))
        if abs(float(_LUMINANCE @ np.subtract(pins, floor))) >= _LEAST_CONTRAST:
            break
    # The camera's exposure suits the brighter of both.
    gain = rng.uniform(0.55, 0.95) / max(float(_LUMINANCE @ pins), float(_LUMINANCE @ floor))
    pins, floor = _brightened(pins, gain), _brightened(floor, gain)
    share = rng.uniform(0.7, 1.5)
    return pins, floor, _brightened(floor, share), _color(rng, saturation=(0.0, 0.35), value=(0.1, 0.9))


def _color(rng: np.random.Generator, saturation: Range, value: Range) -> Color:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _brightened(color: Color, gain: float) -> Color:
    red, green, blue = color
    return min(1.0, red * gain), min(1.0, green * gain), min(1.0, blue * gain)


def _lamps(rng: np.random.Generator) -> tuple[Lamp, ...]:
    """Draw one or two lamps; in a third of the lines the lamps stand elsewhere for each capture."""
    wandering = rng.random() < 1 / 3
    jitter = (3.0, 2.5, 2.0) if wandering else (0.3, 0.3, 0.3)
    share = rng.uniform(0.3, 0.7) if rng.random() < 0.7 else 1.0
    side = float(rng.choice([-1, 1]))
    lamps = []
    for sign, power in ((1, share), (-1, 1 - share)):
        if power > 0:
            place = (rng.uniform(-4.5, 4.5), sign * side * rng.uniform(0.3, 6.0), rng.uniform(5, 12))
            # A lamp at the side lights the floor at a low angle: it is stronger, so that the exposure stays the same.
            strength = float(power / (place[2] / np.linalg.norm(place)) ** 1.5)
            lamps.append(Lamp(place, strength, _lamp_color(rng), jitter, rng.uniform(0.02, 0.35)))
    return tuple(lamps)


def _lamp_color(rng: np.random.Generator) -> Color:
    warmth, green = rng.normal(0, 0.05), rng.normal(0, 0.02)
    return 1 + warmth, 1 + green, 1 - warmth
