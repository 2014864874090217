"""`make base`: the pre-text shows what its labels name, lessons teach, an interrupted training goes on exactly."""

import json

import numpy as np
import pytest
import torch

from pinspect.core.drawings import Draw
from pinspect.pretraining import pretext
from pinspect.pretraining.base import new_base
from pinspect.pretraining.lessons import Lessons
from pinspect.pretraining.train import LESSONS, THREADS, Curriculum, match_lengths, resume, run_lesson
from pinspect.pretraining.trainer import BaseTrainer
from pinspect.virtual_line import LineSetup, tolerated_pins
from tests.support.sample import params

LAYOUT = params().layout.layout()
PLAN = pretext.PoolPlan(setups=2, unit_space_references=5, references=2, inspected=12)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> list[pretext.SetupPool]:
    paths = pretext.build_pool(tmp_path_factory.mktemp("pool"), PLAN, LAYOUT, params().dst, 64, workers=2)
    return pretext.load_pool(paths)


def new_trainer(seed: int = 1) -> tuple[BaseTrainer, object]:
    model, processor, known = new_base(LAYOUT, seed)
    return BaseTrainer(model, LAYOUT, known), processor


def test_the_same_plan_renders_the_same_pre_text(tmp_path):
    plan = pretext.PoolPlan(setups=1, unit_space_references=5, references=1, inspected=2)
    first, second = (
        pretext.build_pool(tmp_path / name, plan, LAYOUT, params().dst, 64, workers=1)[0] for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("change", "x", "y"),
    [("leaning-left", -1, 0), ("leaning-right", 1, 0), ("leaning-up", 0, -1), ("leaning-down", 0, 1)],
)
def test_a_leaning_pin_leans_in_the_direction_of_its_word(change, x, y):
    setup = LineSetup("CYLN")
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pins = tolerated_pins(rng, setup, LAYOUT)
        pretext.change_pin(change, pins, 13, rng, LAYOUT, setup)
        direction = pins.lean_direction[13]
        assert np.cos(direction) * x + np.sin(direction) * y > np.cos(np.radians(45))
        assert pins.lean[13] > 4


@pytest.mark.parametrize("change", pretext.CHANGES)
def test_every_change_of_the_pre_text_changes_exactly_one_pin(change):
    setup, rng = LineSetup("CYLN"), np.random.default_rng(0)
    pins = tolerated_pins(np.random.default_rng(1), setup, LAYOUT)
    before = tolerated_pins(np.random.default_rng(1), setup, LAYOUT)
    pretext.change_pin(change, pins, 5, rng, LAYOUT, setup)
    changed = np.zeros(LAYOUT.pins, bool)
    for name, values in vars(before).items():
        changed |= (values != getattr(pins, name)).reshape(LAYOUT.pins, -1).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [5]


def test_the_words_of_the_pre_text_are_no_drawing_of_a_leaning_pin_without_a_direction():
    drawings = set(Draw.__args__) - {"lean", "nothing"}
    assert drawings < set(pretext.CHANGES)


def test_photographs_lie_on_their_unit_space(pool):
    """Two passed photographs of a line are alike, cell by cell."""
    for group in pool:
        unchanged = [number for number, cells in enumerate(group.cells) if not cells.any()]
        assert unchanged
        first = pretext.decode(group.references["RAW"][0])[64:, 64:].astype(np.float32).mean(axis=2)
        for number in unchanged:
            picture = pretext.decode(group.inspected["RAW"][number])[64:, 64:].astype(np.float32).mean(axis=2)
            assert np.corrcoef(first.ravel(), picture.ravel())[0, 1] > 0.8


def test_pre_training_improves_the_base(pool, tmp_path):
    trainer, processor = new_trainer()
    lessons = Lessons(pool, processor, LAYOUT, 64)
    curriculum = Curriculum(see_steps=20, see_images=6, compare_steps=20, join_steps=20, chats=4, warmup=2)
    for name in LESSONS:
        run_lesson(name, trainer, lessons, curriculum, tmp_path)
        draw = lessons.see if name == "see" else lessons.compare
        lesson = trainer.see if name == "see" else trainer.compare
        batch = draw(np.random.default_rng(99), 6)
        loss, _ = lesson(batch)
        untrained, _ = new_trainer()
        first, _ = (untrained.see if name == "see" else untrained.compare)(batch)
        assert loss.item() < 0.8 * first.item()
    curve = [json.loads(line)["lesson"] for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert curve == list(LESSONS)


@pytest.mark.parametrize("lesson", LESSONS)
def test_an_interrupted_training_makes_the_same_base(pool, tmp_path, lesson, monkeypatch):
    curriculum = Curriculum(
        see_steps=4, see_images=4, compare_steps=4, join_steps=4, chats=2, warmup=2, checkpoint_steps=2
    )

    def train(work, stop: str = "") -> dict[str, torch.Tensor]:
        trainer, processor = new_trainer()
        lessons = Lessons(pool, processor, LAYOUT, 64)
        work.mkdir(exist_ok=True)
        first = resume(trainer, work)
        for name in LESSONS[LESSONS.index(first) :]:
            if name == "compare" and first == "see":
                match_lengths(trainer, lessons)
            if name == stop:
                stop_at_third_step(trainer, name)
            run_lesson(name, trainer, lessons, curriculum, work)
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    def stop_at_third_step(trainer: BaseTrainer, name: str) -> None:
        loss_name = "see" if name == "see" else "compare"
        loss_of, parts = getattr(trainer, loss_name), []

        def interrupted(batch):
            parts.append(batch)
            if len(parts) > 2 * THREADS:
                raise KeyboardInterrupt
            return loss_of(batch)

        monkeypatch.setattr(trainer, loss_name, interrupted)

    straight = train(tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", stop=lesson)
    resumed = train(tmp_path / "interrupted")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
