"""The captures of the default virtual line, with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.drawings import ModeDrawing
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.core.params import VirtualParams
from pinspect.virtual_line.pins import change_pin, tolerated_pins
from pinspect.virtual_line.renderer import box_of, encode_jpeg, render
from pinspect.virtual_line.setups import LineSetup, image_size

PIN_WIDTH = {"CYLN": 0.52, "SQUR": 0.46}
DRAWN_SHAPES = tuple(PIN_WIDTH)
_TRAINING_SKEW = 2.0  # small defects are hard to see, and a small lean looks like a pin that is pulled out


@dataclass(frozen=True)
class VirtualCapture:
    """One capture of the virtual line, with its label.

    Attributes:
        name: File name.
        shape: The pin shape, e.g. `CYLN`.
        judgement: `passed` or `defective`.
        defect_mode: `passed`, or one of the line's modes.
        defect_position: Address of the defective pin, or `passed`.
        role: `reference` or `inspected`.
        split: `train`, `validation` or `test`.
        jpeg: The bytes of the JPEG file.
        field_box: x0, y0, x1, y1 around the tops of all pins, in px.
        pin_box: x0, y0, x1, y1 around the defective pin, in px; None for a passed capture.
    """

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


def render_line(
    layout: Layout,
    shapes: tuple[str, ...],
    drawings: Mapping[str, ModeDrawing],
    params: VirtualParams,
    setups: Mapping[str, LineSetup] | None = None,
) -> Iterator[VirtualCapture]:
    """Render the captures of one virtual line: references of every shape, then training, test and validation captures.

    Each capture has its own random stream, so a larger number of captures changes none of the others.

    Args:
        layout: Rows and columns of the pin field.
        shapes: Pin shapes; captures alternate between them.
        drawings: Defect mode -> how it is drawn. A mode that is drawn as `nothing` does not occur.
        params: Numbers of captures, the share of defective ones, and the seed.
        setups: Shape -> what the captures look like; `default_setup` for the other shapes.

    Raises:
        ValueError: The renderer cannot draw a shape, or defective captures are wanted and no mode can be drawn.
    """
    if unknown := [shape for shape in shapes if shape not in PIN_WIDTH]:
        raise ValueError(
            f"the virtual line cannot draw {', '.join(unknown)}; set raw.virtual.train, .validation and .test to 0"
        )
    modes = [mode for mode, drawing in drawings.items() if drawing.draw != "nothing"]
    if params.defective_share and not modes:
        raise ValueError(
            "the virtual line draws no defect mode; declare how to draw one in answers.defect_modes, or set "
            "raw.virtual.train, .validation and .test to 0"
        )
    setups = {shape: default_setup(shape, layout) for shape in shapes} | dict(setups or {})
    for number, shape in enumerate(shapes):
        for index in range(params.references):
            rng = np.random.default_rng([params.seed, 0, number, index])
            name = f"virtual-{shape}-reference-{index:03d}"
            yield _capture(rng, name, setups[shape], PASSED, "reference", "train", layout)
    parts = (("train", params.train), ("test", params.test), ("validation", params.validation))
    for part, (split, count) in enumerate(parts, start=1):
        for index in range(count):
            rng = np.random.default_rng([params.seed, part, index])
            shape = shapes[index % len(shapes)]
            mode = str(rng.choice(modes)) if rng.random() < params.defective_share else PASSED
            name = f"virtual-{split}-{index:05d}"
            yield _capture(rng, name, setups[shape], mode, "inspected", split, layout, drawings.get(mode))


def default_setup(shape: str, layout: Layout) -> LineSetup:
    """Return a line with gray pins in a dark housing, in an image that the pin field fills.

    Args:
        shape: A shape that the renderer can draw.
        layout: Rows and columns of the pin field.
    """
    width, height = image_size(layout)
    setup = LineSetup(shape=shape, pin_width=PIN_WIDTH[shape], image_width=width, image_height=height)
    return replace(setup, center_px=(width / 2 + 1, height / 2 + 1))


def _capture(
    rng: np.random.Generator,
    name: str,
    setup: LineSetup,
    mode: str,
    role: str,
    split: str,
    layout: Layout,
    drawing: ModeDrawing | None = None,
) -> VirtualCapture:
    pins = tolerated_pins(rng, setup, layout)
    pin = None
    if drawing is not None:
        shares = training_shares(drawing, layout) if split == "train" else None
        pin = int(rng.choice(layout.pins, p=shares))
        change_pin(pins, pin, drawing, rng, layout, setup, skew=_TRAINING_SKEW if split == "train" else 1.0)
    rendered = render(rng, setup, pins, layout)
    return VirtualCapture(
        name=f"{name}.jpg",
        shape=setup.shape,
        judgement=PASSED if pin is None else DEFECTIVE,
        defect_mode=mode,
        defect_position=NO_ADDRESS if pin is None else str(layout.addresses[pin]),
        role=role,
        split=split,
        jpeg=encode_jpeg(rendered.image, int(rng.integers(*setup.jpeg_range))),
        field_box=rendered.field_box,
        pin_box=None if pin is None else box_of(rendered.pin_boxes[pin]),
    )


def training_shares(drawing: ModeDrawing, layout: Layout) -> np.ndarray | None:
    """Return how often each pin has a defect of this drawing in training captures.

    The camera sees another height as a shift away from the middle of the picture, so in the middle it sees hardly
    anything. Far from the middle a pin that leans looks like one of another height. These cases are shown more often.

    Args:
        drawing: How the defect is drawn.
        layout: Rows and columns of the pin field.

    Returns:
        float64 (pins,), in the order of `layout.addresses`, sum 1; None if all pins are alike.
    """
    if drawing.draw not in ("lean", "lower", "higher"):
        return None
    rows, columns = np.divmod(np.arange(layout.pins), layout.columns)
    radius = np.hypot(columns - columns.mean(), rows - rows.mean())  # pitches
    weights = 1 + radius / 2 if drawing.draw == "lean" else 1 / (1 + radius)
    return weights / weights.sum()
