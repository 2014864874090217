"""Pre-text: what the base is trained on before it sees a real line.

All pictures come from the virtual line, from many random set-ups of it, with the views that the stages draw; all texts
use neutral words. The base learns to see pins, to name addresses and to compare two pictures. Which changes are
defects, and what a line calls them, is left to the adapter. No judgement and no defect mode of the answer contract
occurs in the pre-text.
"""

from __future__ import annotations

import multiprocessing
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pinspect import virtual_line
from pinspect.composites.views import Style, draw_view
from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerContract, AnswerKind
from pinspect.core.corners import Corners
from pinspect.core.drawings import ModeDrawing
from pinspect.core.errors import UnitSpaceError
from pinspect.core.files import atomic_path
from pinspect.core.layout import Address, Layout
from pinspect.core.params import DstParams
from pinspect.nsoartc.aligned import place_capture
from pinspect.nsoartc.alignment import Alignment
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space
from pinspect.virtual_line import LineSetup, Pins, Rendered

SHAPES = ("CYLN", "SQUR")
UNCHANGED = "unchanged"
_LEANING = "leaning-"
CHANGES = (
    *(f"{_LEANING}{direction}" for direction in ("left", "right", "up", "down")),
    *("lower", "higher", "absent", "darker", "thinner"),
)
CELL_CLASSES = (UNCHANGED, *CHANGES, "star")
JPEG_QUALITY = 95
_ATTEMPTS = 20
_LEAN_SPREAD = 38.0  # degrees on either side of a direction
_THINNER_SHARE = (0.7, 0.88)
_STRAIGHT = 1.0  # degrees: largest turn of the references that make a unit space
# How far a capture is laid off its true place, as the alignment of a stage would: pitches, and a share.
_PLACE_ERROR = 0.012
_TURN_ERROR = 0.0015

# Replacements for the words of the contract's prompts and answers.
_NEUTRAL_WORDS = {"defective": "changed", "defect": "change", "passed": UNCHANGED}


def neutral(text: str) -> str:
    """Return `text` in neutral words: `passed` becomes `unchanged`, `defect` becomes `change`."""
    return re.sub("|".join(_NEUTRAL_WORDS), lambda match: _NEUTRAL_WORDS[match[0]], text)


def neutral_messages(messages: list[prompts.Message]) -> list[prompts.Message]:
    """Return chat messages with all texts in neutral words."""
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": neutral(part["text"])} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def neutral_answer(layout: Layout, shape: str, view: str, cells: np.ndarray, kind: AnswerKind) -> str | None:
    """Return the five-line answer in neutral words; None if several pins changed, since an answer names one pin.

    Args:
        layout: The pins.
        shape: Pin shape.
        view: `RAW` or `DST`.
        cells: Integers (pins,), an index into CELL_CLASSES for each pin.
        kind: Kind of the answer.
    """
    contract = AnswerContract(layout, SHAPES, CHANGES)
    changed = np.flatnonzero(cells)
    if len(changed) > 1:
        return None
    if len(changed) == 0:
        answer = contract.passed(shape, view)
    else:
        pin = int(changed[0])
        answer = contract.defective(shape, view, CELL_CLASSES[cells[pin]], layout.addresses[pin])
    return neutral(contract.render(answer, kind))


def neutral_star(layout: Layout, shape: str, view: str, address: Address) -> str:
    """Return the three-line star answer in neutral words."""
    contract = AnswerContract(layout, SHAPES, CHANGES)
    return neutral(contract.render(contract.star(shape, view, address), AnswerKind.STAR))


@dataclass
class SetupPool:
    """Composites of one virtual set-up, as JPEG bytes.

    Attributes:
        shape: Pin shape.
        references: View -> pictures of references.
        inspected: View -> inspected pictures.
        cells: int8 (inspected, pins), an index into CELL_CLASSES for each pin.
    """

    shape: str
    references: dict[str, list[bytes]]
    inspected: dict[str, list[bytes]]
    cells: np.ndarray


@dataclass(frozen=True)
class PoolPlan:
    """Amount of pre-text to render.

    Attributes:
        setups: Number of virtual set-ups.
        unit_space_references: References per set-up that the unit space is built from.
        references: Further references per set-up, shown in pictures.
        inspected: Inspected captures per set-up.
        seed: Seed of all random choices.
    """

    setups: int = 700
    unit_space_references: int = 6
    references: int = 3
    inspected: int = 20
    seed: int = 1


def build_pool(directory: Path, plan: PoolPlan, layout: Layout, dst: DstParams, cell: int, workers: int) -> list[Path]:
    """Render the pre-text, one file per set-up; existing files are kept, so an interrupted build resumes.

    Args:
        directory: Folder to write.
        plan: Amount of pre-text.
        layout: The pins.
        dst: Parameters of the DST view.
        cell: Side of one pin's cell in px.
        workers: Number of processes.

    Returns:
        The files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"setup-{number:04d}.npz" for number in range(plan.setups)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        jobs = [(paths[number], number, plan, layout, dst, cell) for number in missing]
        # A fork of a process with threads can wait forever for a lock that one of them held.
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as executor:
            list(tqdm(executor.map(_build_setup, jobs), total=len(jobs), desc="pre-text", unit="set-up"))
    return paths


def load_pool(paths: list[Path]) -> list[SetupPool]:
    """Read the rendered set-ups into memory, as JPEG bytes of about 40 KB per composite."""
    pools = []
    for path in paths:
        with np.load(path, allow_pickle=False) as stored:
            data, ends = stored["data"].tobytes(), np.cumsum(stored["lengths"])
            pictures = [data[end - length : end] for end, length in zip(ends, stored["lengths"], strict=True)]
            per_view = [
                (view, role, int(count)) for (view, role), count in zip(_POOL_ORDER, stored["counts"], strict=True)
            ]
            pool = SetupPool(str(stored["shape"]), {}, {}, stored["cells"])
        for view, role, count in per_view:
            getattr(pool, role)[view], pictures = pictures[:count], pictures[count:]
        pools.append(pool)
    return pools


def decode(jpeg: bytes) -> np.ndarray:
    """Decode a composite to RGB.

    Args:
        jpeg: The bytes of a JPEG file.

    Returns:
        uint8 (H, W, 3).
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


_POOL_ORDER = [(view, role) for view in VIEWS for role in ("references", "inspected")]


def _build_setup(job: tuple[Path, int, Any, Any, Any, Any]) -> None:
    cv2.setNumThreads(1)
    path, number, *settings = job
    for attempt in range(_ATTEMPTS):
        try:
            return _render_setup(path, number, attempt, *settings)
        except UnitSpaceError:
            continue  # a random camera may show a line that no unit space can be built for: draw another camera
    raise RuntimeError(f"set-up {number}: no usable line in {_ATTEMPTS} attempts; narrow virtual_line.random_setup")


def _render_setup(
    path: Path, number: int, attempt: int, plan: PoolPlan, layout: Layout, dst: DstParams, cell: int
) -> None:
    rng = np.random.default_rng([plan.seed, number, attempt])
    shape = SHAPES[number % len(SHAPES)]
    setup = virtual_line.random_setup(rng, shape)
    straight = replace(setup, turn=min(setup.turn, _STRAIGHT))
    passed = [
        _photograph(rng, straight, _passed(rng, setup, layout), layout) for _ in range(plan.unit_space_references)
    ]
    names = [f"reference {index}" for index in range(len(passed))]
    last_row = layout.pins - layout.columns
    outer = passed[0].centers[[0, layout.columns - 1, layout.pins - 1, last_row]]
    corners = Corners(names[0], tuple((float(x), float(y)) for x, y in outer))
    space = build_unit_space([each.image for each in passed], names, None, shape, layout, dst, corners)
    pictures: dict[tuple[str, str], list[bytes]] = {key: [] for key in _POOL_ORDER}
    for _ in range(plan.references):
        photograph = _photograph(rng, setup, _passed(rng, setup, layout), layout)
        _add_views(pictures, "references", photograph, space, rng, layout, cell)
    cells = np.zeros((plan.inspected, layout.pins), np.int8)
    for row in cells:
        pins = _passed(rng, setup, layout)
        for pin in _changed_pins(rng, layout):
            row[pin] = rng.integers(1, len(CHANGES) + 1)
            change_pin(CELL_CLASSES[row[pin]], pins, int(pin), rng, layout, setup)
        _add_views(pictures, "inspected", _photograph(rng, setup, pins, layout), space, rng, layout, cell)
    ordered = [picture for key in _POOL_ORDER for picture in pictures[key]]
    with atomic_path(path) as partial:
        np.savez(
            partial,
            shape=shape,
            cells=cells,
            counts=[len(pictures[key]) for key in _POOL_ORDER],
            lengths=[len(picture) for picture in ordered],
            data=np.frombuffer(b"".join(ordered), np.uint8),
        )


def _passed(rng: np.random.Generator, setup: LineSetup, layout: Layout) -> Pins:
    return virtual_line.tolerated_pins(rng, setup, layout)


def _photograph(rng: np.random.Generator, setup: LineSetup, pins: Pins, layout: Layout) -> Rendered:
    rendered = virtual_line.render(rng, setup, pins, layout)
    jpeg = virtual_line.encode_jpeg(rendered.image, int(rng.integers(*setup.jpeg_range)))
    return replace(rendered, image=decode(jpeg))


def _add_views(
    pictures: dict[tuple[str, str], list[bytes]],
    role: str,
    photograph: Rendered,
    space: UnitSpace,
    rng: np.random.Generator,
    layout: Layout,
    cell: int,
) -> None:
    capture = place_capture(photograph.image, _true_place(photograph, space, rng), space)
    style = Style(layout, cell, grid=True, jpeg_quality=JPEG_QUALITY)
    for view in VIEWS:
        pictures[view, role].append(style.encode(draw_view(view, photograph.image, capture, style)))


def _true_place(photograph: Rendered, space: UnitSpace, rng: np.random.Generator) -> Alignment:
    """Return the place of a photograph in its unit space, which the renderer knows, with a small error.

    So the pre-text contains lines that are hard to align, and takes half the time.
    """
    points = np.column_stack([photograph.centers, np.ones(len(photograph.centers))])
    matrix = np.linalg.lstsq(points, space.pin_centers.astype(np.float64), rcond=None)[0].T
    middle = photograph.centers.mean(axis=0)
    turned = matrix[:, :2] @ (np.eye(2) + rng.normal(0, _TURN_ERROR, (2, 2)))
    shift = matrix[:, :2] @ middle + matrix[:, 2] + rng.normal(0, _PLACE_ERROR * space.pitch, 2) - turned @ middle
    x, y = turned @ middle + shift - middle
    return Alignment(np.column_stack([turned, shift]).astype(np.float32), 1.0, (float(x), float(y)))


def _changed_pins(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    """Draw no, one or several pins: answers name one pin, but dense supervision learns more from several."""
    kind = rng.random()
    count = 0 if kind < 0.25 else 1 if kind < 0.75 else int(rng.integers(2, 7))
    return rng.choice(layout.pins, size=count, replace=False)


def change_pin(change: str, pins: Pins, pin: int, rng: np.random.Generator, layout: Layout, setup: LineSetup) -> None:
    """Change one pin.

    Args:
        change: One of CHANGES.
        pins: The pins, changed in place.
        pin: Index of the pin in the layout.
        rng: Source of the amount.
        layout: The pins.
        setup: The line.
    """
    if change.startswith(_LEANING):
        virtual_line.lean_towards(pins, pin, change.removeprefix(_LEANING), rng, setup, _LEAN_SPREAD)
    elif change == "thinner":
        pins.width[pin] *= rng.uniform(*_THINNER_SHARE)
    else:
        virtual_line.change_pin(pins, pin, ModeDrawing.model_validate({"draw": change}), rng, layout, setup)
