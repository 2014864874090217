"""The lessons' chats: what they ask, and where they let the model look."""

import cv2
import numpy as np
import pytest

from pinspect.composites import drawing
from pinspect.core.answers import VIEWS, AnswerContract
from pinspect.core.layout import Layout
from pinspect.model.batching import IGNORED
from pinspect.pretraining import pretext
from pinspect.pretraining.base import new_base
from pinspect.pretraining.lessons import CHAT_KINDS, CHAT_SHARES, Lessons, mark_targets
from pinspect.pretraining.trainer import BaseTrainer

LAYOUT, CELL = Layout(("U", "C"), 4), 64
CONTRACT = AnswerContract(LAYOUT, pretext.SHAPES, pretext.CHANGES)
WIDTH = LAYOUT.columns + 1


def picture(shade: int) -> bytes:
    field = np.full((len(LAYOUT.rows) * CELL, LAYOUT.columns * CELL, 3), shade, np.uint8)
    return cv2.imencode(".png", drawing.single(field, LAYOUT, CELL)[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def base():
    return new_base(LAYOUT, seed=0)


@pytest.fixture(scope="module")
def lessons(base) -> Lessons:
    cells = np.zeros((3, LAYOUT.pins), np.int8)
    cells[1, 6] = 2
    pictures = {view: [picture(shade) for shade in (40, 80, 120)] for view in VIEWS}
    return Lessons([pretext.SetupPool("CYLN", pictures, pictures, cells)], base[1], LAYOUT, CELL)


def only(kind: str, monkeypatch) -> None:
    shares = tuple(float(name == kind) for name in CHAT_KINDS)
    monkeypatch.setattr("pinspect.pretraining.lessons.CHAT_SHARES", shares)


def answer_of(lessons: Lessons, ids, labels) -> str:
    return lessons.processor.tokenizer.decode(ids[labels != IGNORED], skip_special_tokens=True)


def test_the_shares_of_the_chat_kinds_sum_to_one():
    assert sum(CHAT_SHARES) == pytest.approx(1)


def test_a_grid_answer_names_the_marks_of_its_picture_in_their_order(lessons, monkeypatch):
    only("grid", monkeypatch)
    batch = lessons.compare(np.random.default_rng(2), 5)
    answers = [answer_of(lessons, *pair) for pair in zip(batch["input_ids"], batch["labels"], strict=True)]
    assert len(set(answers)) > 1, "a constant answer needs no picture"
    for text, marks in zip(answers, batch["marks"].tolist(), strict=True):
        columns, rows = marks[: LAYOUT.columns], [mark - LAYOUT.columns for mark in marks[LAYOUT.columns :]]
        assert text == CONTRACT.render_grid(CONTRACT.grid(columns, rows))


def test_the_pictures_of_grid_chats_show_the_marks_of_the_answer(lessons, monkeypatch):
    only("grid", monkeypatch)
    batch = lessons.compare(np.random.default_rng(3), 1)
    side = 32
    patches = batch["pixel_values"].view(len(LAYOUT.rows) + 1, WIDTH, 4, 3, side * side)
    usual = lessons.see(np.random.default_rng(0), 1)
    while not (usual["marks"][0] == mark_targets([None], LAYOUT)[0]).all():
        usual = lessons.see(np.random.default_rng(int(usual["marks"].sum())), 1)
    unmoved = usual["pixel_values"][: len(batch["pixel_values"])].view_as(patches)
    for place, mark in enumerate(batch["marks"][0, : LAYOUT.columns].tolist(), start=1):
        assert (patches[0, place] - unmoved[0, mark + 1]).abs().max() < 1e-5
    for place, mark in enumerate(batch["marks"][0, LAYOUT.columns :].tolist(), start=1):
        assert (patches[place, 0] - unmoved[mark - LAYOUT.columns + 1, 0]).abs().max() < 1e-5


def test_each_mark_of_a_grid_answer_looks_at_its_cell(lessons, monkeypatch):
    only("grid", monkeypatch)
    batch = lessons.compare(np.random.default_rng(4), 2)
    tokenizer = lessons.processor.tokenizer
    for chat in range(2):
        looks = [look for look in batch["looks"].tolist() if look[0] == chat]
        start = int(batch["mm_token_type_ids"][chat].nonzero()[0])
        cells = [token - start for _, _, token in looks]
        assert cells == [1, 2, 3, 4, WIDTH, 2 * WIDTH]
        marks = batch["marks"][chat].tolist()
        names = [*(str(mark + 1) for mark in marks[:4]), *(LAYOUT.rows[mark - 4] for mark in marks[4:])]
        assert [tokenizer.decode(batch["input_ids"][chat, position + 1]) for _, position, _ in looks] == names


def test_mode_column_and_row_look_at_the_changed_pin(lessons, monkeypatch):
    only("one_image", monkeypatch)
    batch = lessons.compare(np.random.default_rng(5), 6)
    changed = (batch["seen"] == 2).nonzero().tolist()
    assert changed
    for chat, cell in changed:
        looks = [look for look in batch["looks"].tolist() if look[0] == chat]
        start = int(batch["mm_token_type_ids"][chat].nonzero()[0])
        assert [token - start for _, _, token in looks] == [cell] * 3
        following = [batch["input_ids"][chat, position + 1] for _, position, _ in looks]
        assert lessons.processor.tokenizer.decode(following) == f"{pretext.CELL_CLASSES[2]}3C"


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_every_kind_of_chat_gives_a_finite_loss(lessons, base, monkeypatch, kind):
    only(kind, monkeypatch)
    model, _, known = base
    loss, figures = BaseTrainer(model, LAYOUT, known).compare(lessons.compare(np.random.default_rng(6), 3))
    assert np.isfinite(loss.item()) and figures["mark"] > 0
