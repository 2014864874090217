"""The lessons' chats: what they ask, and where they let the model look."""

import cv2
import numpy as np
import pytest
import torch

from pinspect.composites import drawing
from pinspect.core.answers import VIEWS, AnswerContract
from pinspect.core.layout import Layout
from pinspect.model.batching import IGNORED
from pinspect.pretraining import pretext
from pinspect.pretraining.base import new_base
from pinspect.pretraining.lessons import CHAT_KINDS, CHAT_SHARES, IMAGE_TYPES, Lessons, mark_targets
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
    leaning = torch.isin(batch["seen"], torch.tensor([1, 2]))  # left or right, by the mirror
    assert leaning.any()
    for chat, cell in leaning.nonzero().tolist():
        change = pretext.CELL_CLASSES[int(batch["seen"][chat, cell])]
        looks = [look for look in batch["looks"].tolist() if look[0] == chat]
        start = int(batch["mm_token_type_ids"][chat].nonzero()[0])
        assert [token - start for _, _, token in looks] == [cell] * 3
        following = [batch["input_ids"][chat, position + 1] for _, position, _ in looks]
        column, row = (cell % WIDTH, LAYOUT.rows[cell // WIDTH - 1])
        assert lessons.processor.tokenizer.decode(following) == f"{change}{column}{row}"


def two_shapes(base) -> Lessons:
    """Return lessons with a set-up of each shape, whose inspected picture has one changed pin."""
    cells = np.zeros((1, LAYOUT.pins), np.int8)
    cells[0, 6] = 2
    inspected = {view: [picture(80)] for view in VIEWS}
    pool = [
        pretext.SetupPool(shape, {view: [picture(shade)] for view in VIEWS}, inspected, cells)
        for shape, shade in (("CYLN", 40), ("SQUR", 120))
    ]
    return Lessons(pool, base[1], LAYOUT, CELL)


def counterexamples(lessons: Lessons, monkeypatch, kind: str, name: str) -> dict[str, torch.Tensor]:
    """Return chats of one kind that are all counterexamples of this name."""
    only(kind, monkeypatch)
    for each in ("OTHER_SHAPE", "OTHER_MARKS"):
        monkeypatch.setattr(f"pinspect.pretraining.lessons.{each}", float(each == name))
    monkeypatch.setattr("pinspect.pretraining.lessons.CHANGED_REFERENCES", 0.0)
    return lessons.compare(np.random.default_rng(7), 4, counterexamples=True)


def changed_pins(seen: torch.Tensor) -> list[str]:
    """Return the addresses of the changed pins among the cells of a picture."""
    changed = seen.view(len(LAYOUT.rows) + 1, WIDTH)[1:, 1:].nonzero().tolist()
    return [f"X:{column + 1}, Y:{LAYOUT.rows[row]}" for row, column in changed]


def test_a_reference_of_another_shape_leaves_the_answer_to_the_inspected_picture(base, monkeypatch):
    lessons = two_shapes(base)
    batch = counterexamples(lessons, monkeypatch, "two_image", "OTHER_SHAPE")
    pairs = batch["types"].view(4, 2).tolist(), batch["seen"].view(4, 2, -1)
    for chat, ((reference, inspected), (before, after)) in enumerate(zip(*pairs, strict=True)):
        assert IMAGE_TYPES[reference][:4] != IMAGE_TYPES[inspected][:4]
        assert changed_pins(before) == [] and len(changed_pins(after)) == 1
        answer = answer_of(lessons, batch["input_ids"][chat], batch["labels"][chat])
        assert IMAGE_TYPES[inspected] in answer and answer.endswith(changed_pins(after)[0])


def test_other_marks_are_those_of_all_pictures_of_a_chat_and_leave_its_address(base, monkeypatch):
    lessons = two_shapes(base)
    batch = counterexamples(lessons, monkeypatch, "two_image", "OTHER_MARKS")
    marks = batch["marks"].view(4, 2, -1)
    assert (marks[:, 0] == marks[:, 1]).all() and len(marks[:, 0].unique(dim=0)) == 4
    for chat, (_, after) in enumerate(batch["seen"].view(4, 2, -1)):
        answer = answer_of(lessons, batch["input_ids"][chat], batch["labels"][chat])
        assert answer.endswith(changed_pins(after)[0])


def test_a_mirrored_set_up_shows_its_changed_pin_at_the_mirrored_place_with_the_mirrored_direction(base, monkeypatch):
    """The only changed pin is bright and leans right, in row C, column 3."""
    only("one_image", monkeypatch)
    field = np.full((len(LAYOUT.rows) * CELL, LAYOUT.columns * CELL, 3), 40, np.uint8)
    field[CELL : 2 * CELL, 2 * CELL : 3 * CELL] = 250
    shown = cv2.imencode(".png", drawing.single(field, LAYOUT, CELL)[:, :, ::-1])[1].tobytes()
    cells = np.zeros((1, LAYOUT.pins), np.int8)
    cells[0, 6] = pretext.CELL_CLASSES.index("leaning-right")
    pictures = {view: [shown] for view in VIEWS}
    lessons = Lessons([pretext.SetupPool("CYLN", pictures, pictures, cells)], base[1], LAYOUT, CELL)
    batch = lessons.compare(np.random.default_rng(8), 40)
    brightness = batch["pixel_values"].view(40, len(LAYOUT.rows) + 1, WIDTH, -1).mean(-1)[:, 1:, 1:].flatten(1)
    answers = [answer_of(lessons, *pair) for pair in zip(batch["input_ids"], batch["labels"], strict=True)]
    shown = {(str(LAYOUT.addresses[int(each.argmax())]), text) for each, text in zip(brightness, answers, strict=True)}
    assert len(shown) >= 4
    for address, text in shown:
        assert text.endswith(address)
        assert f"leaning-{'right' if 'X:3' in address else 'left'}" in text


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_every_kind_of_chat_gives_a_finite_loss(lessons, base, monkeypatch, kind):
    only(kind, monkeypatch)
    model, _, known = base
    loss, figures = BaseTrainer(model, LAYOUT, known).compare(lessons.compare(np.random.default_rng(6), 3))
    assert np.isfinite(loss.item()) and figures["mark"] > 0
