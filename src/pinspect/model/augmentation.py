"""What training rows are changed by before they are shown: mirror images, other light, and counterexamples.

A mirrored row is as true as its original, so long as all its images are mirrored and every address with them: a line's
captures then show each defect at up to four places. The address grid keeps its place, and only the pins change sides.

Counterexamples take away what a model could lean on instead of looking: which image is the inspected one, whether there
are pins at all, whose shape the reference has, and the letters of the address grid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from pinspect.core.answers import DEFECTIVE, AnswerContract, AnswerKind
from pinspect.core.layout import Address, Layout
from pinspect.core.params import TrainParams
from pinspect.core.prompts import PromptKind

_ADDRESS = re.compile(r"X:\d+, Y:[A-Z]")


class Counterexample(StrEnum):
    """What a row is turned into; the same names as `train.counterexamples` in `params.yaml`."""

    SWAPPED = "swapped"  # reference and inspected image change places: the one to inspect is passed
    BLANK = "blank"  # nothing but one grey where the pins should be: defective, whatever mode and address
    OTHER_SHAPE = "other_shape"  # a reference of another shape: the inspected image's own truth stays
    SHUFFLED_LETTERS = "shuffled_letters"  # the grid's marks change places: addresses follow the pins' places


@dataclass(frozen=True)
class Augmentation:
    """How one row is shown.

    layout: of its pins. columns, rows: whether they are mirrored, left to right and top to bottom. gains: what the
    brightness of each image's pin field is multiplied by, 1 leaves it. blank: the grey, 0..255, that hides the
    inspected pins. swapped: whether the halves of the inspected stacked composite change places. marks: the column and
    the row whose mark stands at each column and row of the grid.
    """

    layout: Layout
    columns: bool = False
    rows: bool = False
    gains: tuple[float, ...] = ()
    blank: int | None = None
    swapped: bool = False
    marks: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def image(self, composite: np.ndarray, number: int) -> np.ndarray:
        """The `number`th image of the row: uint8 (H, W, 3), a single or a stacked composite, as a new array."""
        cell = composite.shape[1] // (self.layout.columns + 1)
        height = cell * (len(self.layout.rows) + 1)
        singles = [composite[top : top + height].copy() for top in range(0, len(composite), height)]
        inspected = number == len(self.gains) - 1  # a worked example before it stays as it is
        if self.swapped and inspected:
            singles.reverse()
        for single in singles:
            field = single[cell:, cell:]
            turned = field[:: -1 if self.rows else 1, :: -1 if self.columns else 1].astype(np.float32)
            field[:] = np.clip(turned * self.gains[number] + 0.5, 0, 255)
            if self.marks:
                self._move_marks(single, cell)
        if self.blank is not None and inspected:
            singles[-1][cell:, cell:] = self.blank
        return np.vstack(singles)

    def text(self, text: str) -> str:
        """`text` with every address mirrored."""
        return _ADDRESS.sub(lambda found: str(self._mirrored(self.layout.address(found[0]))), text)

    def _mirrored(self, address: Address) -> Address:
        letters = self.layout.rows
        column = self.layout.columns + 1 - address.column if self.columns else address.column
        row = letters[-1 - letters.index(address.row)] if self.rows else address.row
        return Address(column, row)

    def _move_marks(self, single: np.ndarray, cell: int) -> None:
        columns, rows = self.marks
        top, left = single[:cell].copy(), single[:, :cell].copy()
        for place, mark in enumerate(columns, start=1):
            single[:cell, place * cell : (place + 1) * cell] = top[:, (mark + 1) * cell : (mark + 2) * cell]
        for place, mark in enumerate(rows, start=1):
            single[place * cell : (place + 1) * cell, :cell] = left[(mark + 1) * cell : (mark + 2) * cell]


class Augmenter:
    """Draws how training rows are shown.

    rows: all training rows; references of another shape are taken from them. params: `mirror`, `light_jitter` and
    `counterexamples` of the train section.
    """

    def __init__(self, rows: Sequence[dict], contract: AnswerContract, params: TrainParams) -> None:
        self._contract, self._params = contract, params
        self._shares = np.cumsum([getattr(params.counterexamples, kind) for kind in Counterexample])
        self._references: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            if row["kind"] == PromptKind.TWO_IMAGE:
                self._references.setdefault((row["source"], row["view"], row["shape"]), []).append(row["images"][-2])

    def __call__(self, row: dict, rng: np.random.Generator) -> dict:
        """A copy of a chat row with its `augmentation`, all its turns, answers and addresses as they are shown then.

        Photographs become up to 1 + light_jitter times brighter or darker; distance images never, their brightness has
        a meaning.
        """
        reach = np.log1p(self._params.light_jitter if row["view"] == "RAW" else 0.0)
        columns, rows = (bool(toss) for toss in rng.random(2) < 0.5 * self._params.mirror)
        gains = tuple(float(gain) for gain in np.exp(rng.uniform(-reach, reach, len(row["images"]))))
        chosen = Augmentation(self._contract.layout, columns, rows, gains)
        row, chosen = self._counterexample(row, chosen, rng)
        messages = [_retold(message, chosen) for message in row["messages"]]
        return {**row, "answer": chosen.text(row["answer"]), "messages": messages, "augmentation": chosen}

    def _counterexample(self, row: dict, chosen: Augmentation, rng: np.random.Generator) -> tuple[dict, Augmentation]:
        drawn = int(np.searchsorted(self._shares, rng.random(), side="right"))
        kind = [*Counterexample, None][drawn]
        answer = self._contract.parse(row["answer"], AnswerKind(row["answer_kind"]))
        if kind is Counterexample.SWAPPED and answer.judgement == DEFECTIVE and row["kind"] != PromptKind.ONE_IMAGE:
            told = self._answered(row, self._contract.passed(answer.shape, answer.view))
            if row["kind"] == PromptKind.STACKED:
                return told, replace(chosen, swapped=True)
            *before, reference, inspected = row["images"]
            return told | {"images": [*before, inspected, reference]}, chosen
        if kind is Counterexample.BLANK:
            layout, modes = self._contract.layout, self._contract.defect_modes
            address, mode = layout.addresses[rng.integers(layout.pins)], modes[rng.integers(len(modes))]
            told = self._contract.defective(answer.shape, answer.view, mode, address)
            return self._answered(row, told), replace(chosen, blank=int(rng.integers(256)))
        if kind is Counterexample.OTHER_SHAPE and row["kind"] == PromptKind.TWO_IMAGE:
            others = [
                reference
                for (source, view, shape), references in self._references.items()
                if (source, view) == (row["source"], row["view"]) and shape != row["shape"]
                for reference in references
            ]
            if others:
                *before, _, inspected = row["images"]
                return row | {"images": [*before, others[rng.integers(len(others))], inspected]}, chosen
        if kind is Counterexample.SHUFFLED_LETTERS:
            layout = self._contract.layout
            marks = (rng.permutation(layout.columns), rng.permutation(len(layout.rows)))
            return row, replace(chosen, marks=tuple(tuple(int(mark) for mark in order) for order in marks))
        return row, chosen

    def _answered(self, row: dict, answer) -> dict:
        text = self._contract.render(answer, AnswerKind(row["answer_kind"]))
        *before, last = row["messages"]
        told = {**last, "content": [{"type": "text", "text": text}]}
        return row | {"answer": text, "messages": [*before, told]}


def _retold(message: dict, chosen: Augmentation) -> dict:
    content: Sequence[dict] = message["content"]
    return {
        **message,
        "content": [part | {"text": chosen.text(part["text"])} if part["type"] == "text" else part for part in content],
    }
