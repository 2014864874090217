"""The simple questions: a reader of the picture answers them, and nobody else."""

from __future__ import annotations

import numpy as np
import pytest

from pinspect.composites.drawing import single
from pinspect.core import prompts
from pinspect.core.answers import AnswerKind
from pinspect.core.question import Question
from pinspect.examination.simple_questions import ask_simple_questions
from tests.support.inspected_rows import CELL, CONTRACT, LAYOUT, make_rows, picture

PLAIN = single(np.zeros((len(LAYOUT.rows) * CELL, LAYOUT.columns * CELL, 3), np.uint8), LAYOUT, CELL)


def cells_of(shown: np.ndarray) -> np.ndarray:
    """Return the cells of a single composite: (rows + 1, columns + 1, CELL, CELL, 3)."""
    return shown.reshape(len(LAYOUT.rows) + 1, CELL, LAYOUT.columns + 1, CELL, 3).swapaxes(1, 2).astype(int)


def mark_like(cell: np.ndarray, marks: np.ndarray) -> int:
    return int(np.abs(marks - cell).sum((1, 2, 3)).argmin())


class Reader:
    """Reads each picture: the reddest pin, and the marks by their shape."""

    def __init__(self, images):
        self.images, self.rows = images, []

    def __call__(self, rows, folder):
        self.rows += rows
        return [self.answer(row, cells_of(picture(folder, row["images"][0]))) for row in rows]

    def answer(self, row, cells):
        if row["answer_kind"] == "star":
            red = (cells[1:, 1:, ..., 0] - cells[1:, 1:, ..., 1]).mean((2, 3))
            star = CONTRACT.star(row["shape"], row["view"], LAYOUT.addresses[int(red.argmax())])
            return CONTRACT.render(star, AnswerKind.STAR)
        plain = cells_of(PLAIN)
        columns = [mark_like(cell, plain[0, 1:]) for cell in cells[0, 1:]]
        return CONTRACT.render_grid(CONTRACT.grid(columns, [mark_like(cell, plain[1:, 0]) for cell in cells[1:, 0]]))


class Blind(Reader):
    """Answers each question always alike."""

    def answer(self, row, cells):
        star = CONTRACT.star(row["shape"], row["view"], LAYOUT.addresses[0])
        return (
            CONTRACT.render(star, AnswerKind.STAR) if row["kind"] == "star" else CONTRACT.render_grid(CONTRACT.grid())
        )


class Silent(Reader):
    def answer(self, row, cells):
        return "?"


def ask(images, model, kind="two_image", **changes):
    rows = make_rows(images, kind, **changes)
    return ask_simple_questions(rows, images, CONTRACT, model(images), Question("RAW", kind, "constrained"))


@pytest.mark.parametrize("kind", ["two_image", "one_image", "stacked"])
def test_a_model_that_reads_the_picture_answers_both_questions(kind, tmp_path):
    star, grid = ask(tmp_path, Reader, kind)
    assert (star.name, grid.name, star.captures, grid.captures) == ("star", "grid", 6, 6)
    assert star.held is True and grid.held is True
    assert [(check.name, check.hits, check.n) for check in grid.checks] == [
        ("grids read whole", 6, 6),
        ("marks read", 72, 72),
    ]
    assert star.pictures and star.pictures[0].startswith("data:image/jpeg")


def test_a_model_that_ignores_the_picture_fails_both(tmp_path):
    star, grid = ask(tmp_path, Blind)
    assert star.held is False and grid.held is False
    assert grid.checks[0].hits == 0 and grid.checks[1].hits < 36


def test_unreadable_answers_are_wrong(tmp_path):
    star, grid = ask(tmp_path, Silent)
    assert star.checks[0].hits == 0
    assert [(check.hits, check.n) for check in grid.checks] == [(0, 6), (0, 72)]


def test_the_questions_are_about_passed_captures_and_have_their_own_prompt(tmp_path):
    model = Reader(tmp_path)
    rows = make_rows(tmp_path)
    ask_simple_questions(rows, tmp_path, CONTRACT, model, Question("RAW", "two_image", "constrained"))
    passed = {row["sha256"] for row in rows if CONTRACT.parse(row["answer"]).judgement == "passed"}
    assert {row["sha256"] for row in model.rows} == passed
    for row in model.rows:
        assert row["messages"] == prompts.simple(row["kind"], row["answer"])
        assert len(row["images"]) == prompts.image_count(row["messages"]) == 1


def test_a_question_that_cannot_be_asked_reports_the_reason(tmp_path):
    star, grid = ask(tmp_path, Reader, grid=False)
    assert star.held is True
    assert "no address grid" in grid.reason and grid.held is None
    results = ask_simple_questions([], tmp_path, CONTRACT, Reader(tmp_path), Question("RAW", "two_image", "free"))
    assert ["no passed test capture" in result.reason for result in results] == [True, True]
