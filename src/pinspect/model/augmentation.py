"""Augmentation of training rows: mirror images, brightness, simple questions, and counterexamples.

A mirrored row stays true if all its images, addresses and directions are mirrored (`X-plus` becomes `X-minus`), so a
line's captures show each defect at up to four places. The address grid keeps its place; only the pins change sides. A
row is not mirrored in a way that its line has no word for.

Some rows ask a simple question instead: where the star is, or which marks the grid has, with the marks shuffled. So an
adapter does not unlearn to read what it answers by.

Counterexamples remove what a model could use instead of looking at the pins: the order of the images, the presence of
pins, the shape of the reference, and the letters of the address grid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from pinspect.core.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.core.layout import Address, Layout
from pinspect.core.mirroring import mirrored_modes
from pinspect.core.names import eye_of
from pinspect.core.params import TrainParams
from pinspect.core.prompts import PromptKind, SimpleKind, simple
from pinspect.core.rows import Row

_ADDRESS = re.compile(r"X:\d+, Y:[A-Z]")
_MODE = re.compile(r"(?<=^- defect mode->).+$", re.MULTILINE)


class Counterexample(StrEnum):
    """Kinds of counterexamples, with the names of `train.counterexamples` in `params.yaml`."""

    SWAPPED = "swapped"  # reference and inspected image change places: the inspected image is passed
    BLANK = "blank"  # one gray hides all pins: defective, with a random mode and address
    OTHER_SHAPE = "other_shape"  # a reference of another shape: the answer stays
    SHUFFLED_LETTERS = "shuffled_letters"  # the marks of the grid change places: addresses follow the pins


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of one row.

    Attributes:
        layout: The pins.
        columns: Whether the columns are mirrored, left to right.
        rows: Whether the rows are mirrored, top to bottom.
        gains: For each image the factor of its pin field's brightness; 1 keeps it.
        blank: The gray value, 0..255, that hides the inspected pins; None to show the pins.
        swapped: Whether the halves of the inspected stacked composite change places.
        marks: For each column, and for each row, the index of the mark that is shown there; None to keep all marks.
        modes: Pairs of a defect mode and the mode that it becomes in the mirrored picture.
    """

    layout: Layout
    columns: bool = False
    rows: bool = False
    gains: tuple[float, ...] = ()
    blank: int | None = None
    swapped: bool = False
    marks: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    modes: tuple[tuple[str, str], ...] = ()

    def image(self, composite: np.ndarray, number: int) -> np.ndarray:
        """Return an augmented copy of one image of the row.

        Args:
            composite: uint8 (H, W, 3), a single or a stacked composite.
            number: Index of the image in the row.
        """
        cell = composite.shape[1] // (self.layout.columns + 1)
        height = cell * (len(self.layout.rows) + 1)
        singles = [composite[top : top + height].copy() for top in range(0, len(composite), height)]
        inspected = number == len(self.gains) - 1  # the worked example of a one-shot row is not changed
        if self.swapped and inspected:
            singles.reverse()
        for single in singles:
            field = single[cell:, cell:]
            mirrored = field[:: -1 if self.rows else 1, :: -1 if self.columns else 1].astype(np.float32)
            field[:] = np.clip(mirrored * self.gains[number] + 0.5, 0, 255)
            if self.marks:
                move_marks(single, cell, *self.marks)
        if self.blank is not None and inspected:
            singles[-1][cell:, cell:] = self.blank
        return np.vstack(singles)

    def text(self, text: str) -> str:
        """Return `text` with all addresses and all defect modes mirrored."""
        text = _ADDRESS.sub(lambda match: str(self._mirrored(self.layout.address(match[0]))), text)
        modes = dict(self.modes)
        return _MODE.sub(lambda match: modes.get(match[0], match[0]), text)

    def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a chat message with all addresses and all defect modes mirrored."""
        parts: Sequence[dict[str, Any]] = message["content"]
        content = [part | {"text": self.text(part["text"])} if part["type"] == "text" else part for part in parts]
        return {**message, "content": content}

    def _mirrored(self, address: Address) -> Address:
        letters = self.layout.rows
        column = self.layout.columns + 1 - address.column if self.columns else address.column
        row = letters[-1 - letters.index(address.row)] if self.rows else address.row
        return Address(column, row)


class Augmenter:
    """Draws the augmentation of training rows."""

    def __init__(self, rows: Sequence[Row], contract: AnswerContract, params: TrainParams) -> None:
        """Prepare the augmentation.

        Args:
            rows: All training rows; references of another shape come from them.
            contract: The answer contract.
            params: `mirror`, `light_jitter`, `simple_questions` and `counterexamples` of the section `train`.
        """
        self._contract, self._params = contract, params
        shares = params.counterexamples
        self._shares = {
            view: np.cumsum([getattr(of_view, kind) for kind in Counterexample])
            for view, of_view in (("RAW", shares.RAW), ("DST", shares.DST))
        }
        self._references: dict[tuple[str, str, str], dict[str, list[str]]] = {}  # by source, view and eye; by shape
        for row in rows:
            if row["kind"] == PromptKind.TWO_IMAGE:
                by_shape = self._references.setdefault(_scene(row), {})
                by_shape.setdefault(row["shape"], []).append(row["images"][-2])

    def __call__(self, row: Row, rng: np.random.Generator) -> Row:
        """Return a copy of a row with its `augmentation`, and with its messages and answer changed to match.

        Photographs become up to 1 + light_jitter times brighter or darker. Distance images do not, because their
        brightness is the measured distance.

        Args:
            row: A row of the chat dataset.
            rng: Source of the random choices.
        """
        reach = np.log1p(self._params.light_jitter if row["view"] == "RAW" else 0.0)
        question = self._simple_question(row, rng) if rng.random() < self._params.simple_questions else None
        if question is None:
            columns, rows, modes = self._mirroring(row, rng)
            augmentation = Augmentation(self._contract.layout, columns, rows, self._gains(row, reach, rng), modes=modes)
            row, augmentation = self._counterexample(row, augmentation, rng)
        else:
            row, marks = question
            columns, rows, _ = self._mirroring(row, rng)
            augmentation = Augmentation(self._contract.layout, columns, rows, self._gains(row, reach, rng), marks=marks)
        return {
            **row,
            "answer": augmentation.text(row["answer"]),
            "messages": [augmentation.message(message) for message in row["messages"]],
            "augmentation": augmentation,
        }

    def _mirroring(self, row: Row, rng: np.random.Generator) -> tuple[bool, bool, tuple[tuple[str, str], ...]]:
        """Draw whether columns and rows are mirrored, and return what the modes of the row become."""
        columns, rows = (bool(toss) for toss in rng.random(2) < 0.5 * self._params.mirror)
        texts = [part["text"] for turn in row["messages"] for part in turn["content"] if part["type"] == "text"]
        named = {mode for text in texts for mode in _MODE.findall(text)} - {PASSED}
        mirrored = mirrored_modes(self._contract, columns=columns, rows=rows)
        if not named <= mirrored.keys():
            return False, False, ()
        return columns, rows, tuple(mirrored.items())

    def _gains(self, row: Row, reach: float, rng: np.random.Generator) -> tuple[float, ...]:
        return tuple(float(gain) for gain in np.exp(rng.uniform(-reach, reach, len(row["images"]))))

    def _simple_question(
        self, row: Row, rng: np.random.Generator
    ) -> tuple[Row, tuple[tuple[int, ...], tuple[int, ...]] | None] | None:
        """Return a simple question about a picture of `row`, and its marks; None if it has no single composite."""
        if row["kind"] == PromptKind.STACKED:
            return None
        if len(row["images"]) > 2:  # the worked example of a one-shot row
            return star_question(row), None
        layout = self._contract.layout
        columns, rows = (tuple(map(int, rng.permutation(n))) for n in (layout.columns, len(layout.rows)))
        answer = self._contract.render_grid(self._contract.grid(columns, rows))
        return simple_row(row, SimpleKind.GRID, row["images"][-1], answer), (columns, rows)

    def _counterexample(
        self, row: Row, augmentation: Augmentation, rng: np.random.Generator
    ) -> tuple[Row, Augmentation]:
        kind = [*Counterexample, None][int(np.searchsorted(self._shares[row["view"]], rng.random(), side="right"))]
        answer = self._contract.parse(row["answer"], AnswerKind(row["answer_kind"]))
        if kind is Counterexample.SWAPPED and answer.judgement == DEFECTIVE and row["kind"] != PromptKind.ONE_IMAGE:
            swapped = self._with_answer(row, self._contract.passed(answer.shape, answer.view))
            if row["kind"] == PromptKind.STACKED:
                return swapped, replace(augmentation, swapped=True)
            *before, reference, inspected = row["images"]
            return swapped | {"images": [*before, inspected, reference]}, augmentation
        if kind is Counterexample.BLANK:
            layout, modes = self._contract.layout, self._contract.defect_modes
            address, mode = layout.addresses[rng.integers(layout.pins)], modes[rng.integers(len(modes))]
            defective = self._contract.defective(answer.shape, answer.view, mode, address)
            return self._with_answer(row, defective), replace(augmentation, blank=_blank_gray(row, rng))
        if kind is Counterexample.OTHER_SHAPE and row["kind"] == PromptKind.TWO_IMAGE:
            others = [
                reference
                for shape, references in self._references[_scene(row)].items()
                if shape != row["shape"]
                for reference in references
            ]
            if others:
                *before, _, inspected = row["images"]
                return row | {"images": [*before, others[rng.integers(len(others))], inspected]}, augmentation
        if kind is Counterexample.SHUFFLED_LETTERS:
            layout = self._contract.layout
            columns, rows = (tuple(map(int, rng.permutation(n))) for n in (layout.columns, len(layout.rows)))
            return row, replace(augmentation, marks=(columns, rows))
        return row, augmentation

    def _with_answer(self, row: Row, answer: Answer) -> Row:
        text = self._contract.render(answer, AnswerKind(row["answer_kind"]))
        *before, last = row["messages"]
        return row | {"answer": text, "messages": [*before, {**last, "content": [{"type": "text", "text": text}]}]}


def _blank_gray(row: Row, rng: np.random.Generator) -> int:
    """Draw the gray, 0..255, of a blank picture; distance images are dark, so dark grays are more frequent there."""
    return int(256 * rng.random() ** (1 if row["view"] == "RAW" else 2))


def _scene(row: Row) -> tuple[str, str, str]:
    """Return what pictures of a row share with those that may replace them: source, view and eye."""
    return row["source"], row["view"], eye_of(row["capture"])


def star_question(row: Row) -> Row:
    """Return the simple question about the star image of a one-shot two-image row."""
    return simple_row(row, SimpleKind.STAR, row["images"][0], row["messages"][1]["content"][0]["text"])


def simple_row(row: Row, kind: SimpleKind, image: str, answer: str) -> Row:
    """Return a row that asks a simple question about one image of `row`.

    Args:
        row: A row of the chat dataset.
        kind: The question.
        image: Name of the image.
        answer: The expected answer.
    """
    facts = {"kind": str(kind), "answer_kind": str(kind), "answer": answer, "images": [image]}
    return {**row, **facts, "messages": simple(kind, answer)}


def move_marks(single: np.ndarray, cell: int, columns: Sequence[int], rows: Sequence[int]) -> None:
    """Move the marks of the address grid of a single composite, in place.

    Args:
        single: uint8 (H, W, 3).
        cell: Side of a cell in px.
        columns: For each column the index of the mark to show there.
        rows: For each row the index of the mark to show there.
    """
    top, left = single[:cell].copy(), single[:, :cell].copy()
    for place, mark in enumerate(columns, start=1):
        single[:cell, place * cell : (place + 1) * cell] = top[:, (mark + 1) * cell : (mark + 2) * cell]
    for place, mark in enumerate(rows, start=1):
        single[place * cell : (place + 1) * cell, :cell] = left[(mark + 1) * cell : (mark + 2) * cell]
