"""Synthetic pin fields of many looks, with the true places of their pins."""

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np

from pinspect.core.layout import Layout
from pinspect.nsoartc.pixels import LUMINANCE

SIZE = (640, 300)  # width and height, px
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Look:
    """One look: colors, pins and background of the picture."""

    pin: Color = (0.8, 0.8, 0.8)
    ground: Color = (0.12, 0.12, 0.12)
    table: Color = (0.3, 0.3, 0.3)
    pitch: float = 62.0
    diameter: float = 0.5  # pitches
    square: bool = False
    layout: Layout = field(default_factory=lambda: Layout(("U", "C", "D"), 9))
    middle: tuple[float, float] = (320.0, 150.0)
    degrees: float = 0.0
    perspective: float = 0.0  # relative height difference of left and right edge
    noise: float = 0.004
    add: Callable[[np.ndarray, np.random.Generator], None] | None = None
    light: Callable[[np.ndarray], np.ndarray] | None = None


def bright_table(image: np.ndarray, rng: np.random.Generator) -> None:
    image[:, :22] = 0.95
    image[270:] = 0.9


def rim_of_screws(image: np.ndarray, rng: np.random.Generator) -> None:
    for x in range(30, 640, 83):
        for y in (22, 278):
            cv2.circle(image, (x, y), 14, (0.75, 0.75, 0.75), -1, cv2.LINE_AA)


def texture(image: np.ndarray, rng: np.random.Generator) -> None:
    wood = cv2.GaussianBlur(rng.random(image.shape[:2], np.float32), (0, 0), 6)
    image += (1.6 * (wood - wood.mean()) / wood.std() * 0.06)[..., None]


def print_and_cable(image: np.ndarray, rng: np.random.Generator) -> None:
    cv2.line(image, (0, 290), (640, 262), (0.7, 0.2, 0.15), 12, cv2.LINE_AA)
    letters = np.zeros(image.shape[:2], np.uint8)  # OpenCV 5 writes text on 8-bit images only
    cv2.putText(letters, "CONNECTOR 27P  0815", (60, 36), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 255, 3)
    image[letters > 0] = 0.9


def side_shadow(image: np.ndarray) -> np.ndarray:
    return image * np.linspace(0.25, 1.2, image.shape[1], dtype=np.float32)[None, :, None]


LOOKS = {
    "pale pins in a dark shell": Look(),
    "dark pins on pale ground": Look(pin=(0.15, 0.15, 0.17), ground=(0.75, 0.74, 0.7), table=(0.9, 0.9, 0.9)),
    "bright table beside the connector": Look(add=bright_table),
    "colored housing": Look(pin=(0.72, 0.55, 0.2), ground=(0.1, 0.25, 0.75), table=(0.55, 0.5, 0.45)),
    "rim of pin-like screws": Look(pitch=56.0, add=rim_of_screws),
    "perspective": Look(pitch=58.0, perspective=0.12),
    "rotation": Look(pitch=58.0, degrees=3.7, middle=(317.0, 146.0)),
    "low contrast": Look(pin=(0.42, 0.42, 0.42), ground=(0.34, 0.34, 0.34), table=(0.38, 0.38, 0.38), noise=0.01),
    "shadow from the left": Look(light=side_shadow),
    "square pins": Look(square=True, diameter=0.44, degrees=-2.0, pitch=59.0),
    "small field in a large picture": Look(pitch=33.0, middle=(212.0, 118.0), add=texture),
    "six columns, two rows": Look(layout=Layout(("A", "B"), 6), pitch=74.0, middle=(300.0, 140.0)),
    "print and a cable": Look(pitch=58.0, add=print_and_cable),
    "turned, in perspective, on a textured table": Look(pitch=55.0, degrees=-3.2, perspective=-0.1, add=texture),
}


def draw(look: Look, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The mean picture of a line of this look, float32 (rows, columns) gray, and the pins' places, (pins, 2) px."""
    rng = np.random.default_rng(seed)
    image = np.empty((SIZE[1], SIZE[0], 3), np.float32)
    image[:] = look.table
    rows, columns, pitch = len(look.layout.rows), look.layout.columns, look.pitch
    housing = np.array([(-0.8, -0.8), (columns - 0.2, -0.8), (columns - 0.2, rows - 0.2), (-0.8, rows - 0.2)])
    cv2.fillPoly(image, [_px(_placed(look, housing))], look.ground, cv2.LINE_AA, shift=4)
    if look.add is not None:
        look.add(image, rng)
    nodes = np.array([(column, row) for row in range(rows) for column in range(columns)], float)
    centers = _placed(look, nodes)
    half = look.diameter / 2
    for node, center in zip(nodes, centers, strict=True):
        color = tuple(float(value * rng.uniform(0.95, 1.05)) for value in look.pin)
        if look.square:
            corners = node + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
            cv2.fillPoly(image, [_px(_placed(look, corners))], color, cv2.LINE_AA, shift=4)
        else:
            cv2.circle(image, tuple(_px(center).tolist()), round(16 * half * pitch), color, -1, cv2.LINE_AA, shift=4)
    image = cv2.GaussianBlur(image, (0, 0), 1.2)
    if look.light is not None:
        image = look.light(image)
    image = np.clip(image + rng.normal(0, look.noise, image.shape), 0, 1).astype(np.float32)
    return image @ LUMINANCE, centers


def _placed(look: Look, nodes: np.ndarray) -> np.ndarray:
    """Return the pixel positions of grid points, (n, 2), rotated and in perspective."""
    relative = (nodes - ((look.layout.columns - 1) / 2, (len(look.layout.rows) - 1) / 2)) * look.pitch
    angle = np.radians(look.degrees)
    turned = relative @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    depth = 1 + look.perspective * turned[:, :1] / SIZE[0]
    return turned / depth + look.middle


def _px(places: np.ndarray) -> np.ndarray:
    """Convert px to OpenCV's fixed point with four fractional bits."""
    return np.rint(places * 16).astype(np.int32)
