"""The simple questions: where is the red star, and which marks has the address grid?

A model that cannot answer them cannot name an address. The stars lie on test captures that no training has shown, and
the marks of each grid are shuffled anew, so a model that ignores the picture names one star in as many as there are
pins, and reads no whole grid.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pinspect.composites.drawing import draw_star
from pinspect.core.answers import PASSED, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError
from pinspect.core.prompts import SimpleKind
from pinspect.core.question import Question, camera_else_virtual
from pinspect.core.rows import Row
from pinspect.examination.control_prompts import (
    Control,
    Prompts,
    draw_key,
    label_of,
    no_grid_reason,
    pictures_of,
)
from pinspect.examination.controls import AnswerRows, at_least_most, data_uri
from pinspect.examination.results import Check, ControlResult
from pinspect.model.augmentation import move_marks, simple_row

CAPTURES = 20  # of each question, at most


def ask_simple_questions(
    rows: Sequence[Row], images: Path, contract: AnswerContract, answer: AnswerRows, question: Question
) -> list[ControlResult]:
    """Make, ask and judge the simple questions.

    Args:
        rows: Rows of one split of the chat dataset; passed captures of production's question are chosen from them.
        images: Folder of their images.
        contract: The answer contract.
        answer: Returns the model's answers to rows whose images lie in a folder.
        question: What production asks.

    Returns:
        One result for each question, in the order of `SimpleKind`.

    Raises:
        StageInputError: An image is missing.
    """
    passed = [
        row
        for row in camera_else_virtual(question.rows(rows))
        if contract.parse(str(row["answer"]), AnswerKind(row["answer_kind"])).judgement == PASSED
    ]
    chosen = sorted(passed, key=lambda row: draw_key(row, "simple"))[:CAPTURES]
    with tempfile.TemporaryDirectory(prefix="pinspect-simple-") as folder:
        controls = [_make(kind, chosen, images, Path(folder), contract) for kind in SimpleKind]
        changed = [row for control in controls for row in control.rows]
        answers = iter(answer(changed, Path(folder)) if changed else [])
        return [_judge(control, [next(answers) for _ in control.rows], contract) for control in controls]


def _make(kind: SimpleKind, rows: Sequence[Row], images: Path, folder: Path, contract: AnswerContract) -> Control:
    if not rows:
        return Control(str(kind), reason="no passed test capture asks production's question")
    prompts = Prompts(str(kind), rows, images, folder, contract.layout)
    reason = no_grid_reason(prompts) if kind is SimpleKind.GRID else ""
    if reason:
        return Control(str(kind), reason=reason)
    made = []
    for row in rows:
        picture = prompts.singles(row)[-1]
        random = np.random.default_rng(int(draw_key(row, kind)[:16], 16))
        if kind is SimpleKind.STAR:
            address = contract.layout.addresses[random.integers(contract.layout.pins)]
            picture = draw_star(picture, address, contract.layout, prompts.cell(picture))
            label = label_of(row, contract)
            expected = contract.render(contract.star(label.shape, label.view, address), AnswerKind.STAR)
        else:
            columns, letters = (
                random.permutation(n).tolist() for n in (contract.layout.columns, len(contract.layout.rows))
            )
            move_marks(picture, prompts.cell(picture), columns, letters)
            expected = contract.render_grid(contract.grid(columns, letters))
        made.append(prompts.row(simple_row(row, kind, "", expected), [picture]))
    return Control(str(kind), tuple(made), tuple(rows))


def _judge(control: Control, answers: Sequence[str], contract: AnswerContract) -> ControlResult:
    if control.reason:
        return ControlResult(control.name, captures=0, reason=control.reason)
    pairs = [(str(row["answer"]), text) for row, text in zip(control.rows, answers, strict=True)]
    name = {SimpleKind.STAR: "stars at their address", SimpleKind.GRID: "grids read whole"}[SimpleKind(control.name)]
    right = [
        _shown(expected, control.name, contract) == _shown(text, control.name, contract) for expected, text in pairs
    ]
    checks = [at_least_most(name, right)]
    if control.name == SimpleKind.GRID:
        marks = [
            expected_mark == mark
            for expected, text in pairs
            for expected_mark, mark in _mark_pairs(expected, text, contract)
        ]
        checks.append(Check("marks read", sum(marks), len(marks)))
    pictures = tuple(data_uri(picture) for picture in pictures_of(control.rows[0]))
    return ControlResult(control.name, len(control.rows), tuple(checks), pictures=pictures)


def _shown(text: str, kind: str, contract: AnswerContract) -> object:
    """Return what an answer names: an address, or all marks; None for an answer that breaks the contract."""
    try:
        if kind == SimpleKind.GRID:
            return contract.parse_grid(text)
        return contract.parse(text, AnswerKind.STAR).defect_position
    except AnswerFormatError:
        return None


def _mark_pairs(expected: str, text: str, contract: AnswerContract) -> list[tuple[str, str]]:
    """Pair the marks of the picture with those of the answer; all are wrong if the answer breaks the contract."""
    shown = contract.parse_grid(expected)
    marks = (*shown.columns, *shown.rows)
    try:
        read = contract.parse_grid(text)
    except AnswerFormatError:
        return [(mark, "") for mark in marks]
    return list(zip(marks, (*read.columns, *read.rows), strict=True))
