"""Chat rows for tests of controls and evidence maps: pictures of a virtual line, of both shapes, in composites as the
model sees them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from pinspect import virtual_line
from pinspect.composites import drawing as composite
from pinspect.core import prompts
from tests.support.sample import params

CONTRACT = params().contract()
LAYOUT = CONTRACT.layout
CELL = 32  # default pixels per pin
MODES = ("passed", "bend", "passed", "retract", "passed", "missing")


def make_rows(
    folder: Path, kind: str = "two_image", *, view: str = "RAW", shapes=("CYLN", "SQUR"), grid=True, cell=CELL
):
    """Zero-shot rows of six captures of each shape, half of them defective; their pictures are written to `folder`."""
    return [row for shape in shapes for row in _rows_of(folder, prompts.PromptKind(kind), view, shape, grid, cell)]


def picture(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / name))


def field(picture: np.ndarray) -> np.ndarray:
    """Return the pin field of a single composite."""
    cell = picture.shape[1] // (LAYOUT.columns + 1)
    return picture[cell:, cell:]


def _rows_of(folder: Path, kind: prompts.PromptKind, view: str, shape: str, grid: bool, cell: int) -> list[dict]:
    rng = np.random.default_rng(5)
    lamp = virtual_line.Lamp((0.0, 0.0, 8.5))
    setup = virtual_line.LineSetup(shape, place_jitter_px=(0.0, 0.0), lamps=(lamp,), light_range=(0.9, 0.9))
    reference = _composite(setup, "passed", 0, rng, grid, cell)
    rows = []
    for number, mode in enumerate(MODES):
        pin = int(rng.integers(LAYOUT.pins))
        inspected = _composite(setup, mode, pin, rng, grid, cell)
        shown = {"two_image": [reference, inspected], "one_image": [inspected]}.get(
            kind, [composite.stacked(reference, inspected)]
        )
        sha256 = hashlib.sha256(f"{shape}-{number}".encode()).hexdigest()
        identity = f"{sha256[:20]}-{view}-{kind}-zero_shot-0{'' if grid else '-bare'}"
        names = [f"{identity}-{place}.png" for place in range(len(shown))]
        for name, image in zip(names, shown, strict=True):
            Image.fromarray(image).save(folder / name, compress_level=1)
        passed = CONTRACT.passed(shape, view)
        truth = passed if mode == "passed" else CONTRACT.defective(shape, view, mode, LAYOUT.addresses[pin])
        answer_kind = prompts.answer_kind_of(kind)
        answer = CONTRACT.render(truth, answer_kind)
        messages = {"two_image": prompts.two_image, "one_image": prompts.one_image}.get(kind, prompts.stacked)
        rows.append(
            {
                "id": identity,
                "source": "camera",
                "split": "test",
                "shape": shape,
                "view": view,
                "kind": str(kind),
                "shot": prompts.ZERO_SHOT,
                "file": f"images/{sha256[:20]}.jpg",
                "capture": f"{identity}.jpg",
                "sha256": sha256,
                "answer_kind": str(answer_kind),
                "answer": answer,
                "images": names,
                "messages": messages(view, answer),
            }
        )
    return rows


def _composite(setup, mode: str, pin: int, rng: np.random.Generator, grid: bool, cell: int) -> np.ndarray:
    pins = virtual_line.tolerated_pins(rng, setup, LAYOUT)
    if mode != "passed":
        virtual_line.change_pin(pins, pin, CONTRACT.drawings[mode], rng, LAYOUT, setup)
    image = virtual_line.render(rng, setup, pins, LAYOUT).image
    pitch = setup.pitch_px
    x, y = np.array(setup.center_px) - np.array([LAYOUT.columns - 1, len(LAYOUT.rows) - 1]) / 2 * pitch
    pins = np.array([[pitch, 0, x], [0, pitch, y], [0, 0, 1]])
    return composite.single(composite.rectify(image, np.eye(2, 3), pins, LAYOUT, cell), LAYOUT, cell, grid=grid)
