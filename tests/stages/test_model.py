"""The model: its encoding equals the processor's, its answers follow the grammar, and it learns."""

import importlib.util
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinspect import virtual_line
from pinspect.composites import drawing as composite
from pinspect.core import prompts
from pinspect.core.answers import AnswerKind
from pinspect.core.errors import ModelError
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.model.adapter import train_adapter
from pinspect.model.batching import IGNORED, collate, encode_chat, prepared_ahead
from pinspect.model.families import Checkpoint, checkpoint_of
from pinspect.model.generation import answer_rows
from pinspect.model.loading import load_base, load_inspector
from pinspect.model.processor import build_processor, build_tokenizer, patchify
from pinspect.model.rows import RowEncoder
from pinspect.pretraining import pretext
from pinspect.pretraining.base import new_base, pretext_texts, save_base
from tests.support import chat_line

ROOT = Path(__file__).parents[2]


def run_stage(name: str, root: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(root)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A small line with composites of the model's cell size, its chat dataset, and an untrained base."""
    root = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_line, "CELL", 64)
        params = chat_line.make_line(root, inspected=8)
    run_stage("chat", root)
    model, processor, known = new_base(params.layout.layout(), seed=0)
    save_base(model, processor, known, root / "models/base")
    return root, params


def base_of(root: Path) -> Checkpoint:
    """The default family's checkpoint in the project at `root`; two ways to one answer differ by little in float32."""
    model = load_params(ROOT / "params.yaml").model
    return checkpoint_of(model.model_copy(update={"precision": "float32"}), root)


@pytest.fixture(scope="module")
def trained(line, tmp_path_factory) -> Path:
    """An adapter of a few steps on the shipped base."""
    root, params = line
    few = params.train.model_copy(update={"batch_size": 4, "epochs": 1.0, "maximum_steps": 4, "rank": 4})
    data, out = root / "data", tmp_path_factory.mktemp("trained") / "adapter"
    few_steps = params.model_copy(update={"train": few})
    train_adapter(few_steps, base_of(ROOT), data / "chat", data / "composited", out, out.parent / "work")
    return out


def rows_of(root: Path, shot: str | None = None) -> list[dict]:
    return [row for row in read_chat(root / "data/chat/test.jsonl") if shot in (None, row["shot"])]


# --- processor and encoding


def test_batched_patches_equal_the_image_processors():
    images = list(np.random.default_rng(0).integers(0, 256, (3, 128, 192, 3), dtype=np.uint8))
    processor = build_processor(build_tokenizer(["a"]), patch=32, merge=2)
    expected = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(patchify(images, 32, 2), expected, atol=1e-6)


def test_one_pin_is_one_visual_token(line):
    root, _ = line
    encoder = RowEncoder(load_base(base_of(root))[1], root / "data/composited")
    batch = encoder.batch(rows_of(root, prompts.ZERO_SHOT)[:1], answers=False)
    assert batch["mm_token_type_ids"].sum() == 2 * 4 * 10


def test_the_encoded_prompt_is_the_processors_own(line):
    root, _ = line
    processor = load_base(base_of(root))[1]
    encoder = RowEncoder(processor, root / "data/composited")
    row = rows_of(root, prompts.ONE_SHOT)[0]
    text = processor.apply_chat_template(prompts.without_answer(row["messages"]), add_generation_prompt=True)
    images = [np.zeros((256, 640, 3), np.uint8)] * len(row["images"])
    expected = processor(text=[text], images=images, return_tensors="pt")["input_ids"][0].tolist()
    assert encoder.chat(row).prompt == expected
    assert processor.tokenizer.decode(encoder.chat(row).input_ids[len(expected) : -1]) == row["answer"]


def test_the_loss_sees_answer_tokens_only(line):
    root, _ = line
    processor = load_base(base_of(root))[1]
    batch = RowEncoder(processor, root / "data/composited").batch(rows_of(root)[:3], answers=True)
    for row, labels in zip(rows_of(root), batch["labels"], strict=False):
        assert processor.tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True) == row["answer"]


def test_images_and_placeholders_must_agree():
    processor = build_processor(build_tokenizer(prompts.texts()), 32, 2)
    with pytest.raises(ValueError, match="2 image placeholders for 1 images"):
        encode_chat(processor, prompts.two_image("RAW"), [40])


def test_prompts_are_padded_at_the_left_and_answers_at_the_right():
    processor = build_processor(build_tokenizer(prompts.texts()), 32, 2)
    chats = [encode_chat(processor, prompts.one_image("RAW", answer), [4]) for answer in ("a", "a b c d e f")]
    pad, image = processor.tokenizer.pad_token_id, processor.image_token_id
    whole = collate(chats, pad, image, answers=True)
    assert whole["attention_mask"][0, -1] == 0 and whole["attention_mask"][0, 0] == 1
    longer = encode_chat(processor, prompts.two_image("RAW"), [4, 4])
    batch = collate([chats[0], longer], pad, image, answers=False)
    assert batch["attention_mask"][0, 0] == 0 and batch["attention_mask"][0, -1] == 1
    assert "labels" not in batch


def test_an_error_while_preparing_a_batch_reaches_the_training():
    def make(index: int) -> int:
        if index == 2:
            raise ValueError("no such picture")
        return index

    prepared = prepared_ahead(make, 5)
    assert [next(prepared), next(prepared)] == [0, 1]
    with pytest.raises(ValueError, match="no such picture"):
        next(prepared)


# --- pre-text


def test_pre_text_contains_no_judgement_and_no_defect_mode(line):
    _, params = line
    _, shown = pretext_texts(params.layout.layout())
    contract_words = {"passed", "defective", "defect", *params.answers.defect_modes}
    assert not {word for text in shown for word in re.findall(r"[a-z]+", text)} & contract_words
    assert any("lower" in text for text in shown)


def test_pre_text_answers_name_at_most_one_pin(line):
    layout = line[1].layout.layout()
    cells = np.zeros(27, np.int8)
    assert pretext.neutral_answer(layout, "CYLN", "RAW", cells, AnswerKind.COMPARISON).endswith("->unchanged")
    cells[3] = pretext.CELL_CLASSES.index("absent")
    lines = pretext.neutral_answer(layout, "CYLN", "RAW", cells, AnswerKind.COMPARISON).splitlines()
    assert lines[2:] == ["- your judgement->changed", "- change mode->absent", "- change position->X:4, Y:U"]
    cells[5] = 1
    assert pretext.neutral_answer(layout, "CYLN", "RAW", cells, AnswerKind.COMPARISON) is None


def test_a_rendered_lesson_matches_its_labels(line, tmp_path):
    _, params = line
    layout = params.layout.layout()
    plan = pretext.PoolPlan(setups=1, unit_space_references=5, references=1, inspected=10)
    paths = pretext.build_pool(tmp_path, plan, layout, params.dst, 64, workers=1)
    before = paths[0].read_bytes()
    assert pretext.build_pool(tmp_path, plan, layout, params.dst, 64, workers=1)[0].read_bytes() == before
    (pool,) = pretext.load_pool(paths)
    assert len(pool.inspected["RAW"]) == len(pool.inspected["DST"]) == len(pool.cells) == 10
    reference = pretext.decode(pool.references["RAW"][0]).astype(int)
    absent = pretext.CELL_CLASSES.index("absent")
    for picture, cells in zip(pool.inspected["RAW"], pool.cells, strict=True):
        for pin in np.flatnonzero(cells == absent):
            row, column = divmod(int(pin), 9)
            middle = np.s_[(row + 1) * 64 + 24 : (row + 1) * 64 + 40, (column + 1) * 64 + 24 : (column + 1) * 64 + 40]
            assert np.abs(pretext.decode(picture)[middle].astype(int) - reference[middle]).mean() > 20


# --- answering


def test_constrained_answers_always_parse_even_from_an_untrained_base(line):
    root, params = line
    contract, rows = params.contract(), rows_of(root)[:6]
    inspector = load_inspector(base_of(root))
    for row, answer in zip(
        rows, answer_rows(inspector, rows, root / "data/composited", contract, batch_size=4), strict=True
    ):
        contract.parse(answer.text, AnswerKind(row["answer_kind"]))
        assert 0 <= answer.p_defective <= 1
        assert answer.seconds > 0


def test_batched_answers_equal_answers_one_by_one(line, trained):
    root, params = line
    inspector = load_inspector(base_of(ROOT), trained)
    rows, images, contract = rows_of(root)[:7], root / "data/composited", params.contract()
    together = answer_rows(inspector, rows, images, contract, batch_size=7)
    alone = answer_rows(inspector, rows, images, contract, batch_size=1)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.p_defective for answer in together] == pytest.approx(
        [answer.p_defective for answer in alone], abs=1e-4
    )


def test_the_shipped_base_finds_the_star(line):
    """The base and the contract share only the words for shapes, views, the count and addresses."""
    root, params = line
    layout, contract = params.layout.layout(), params.contract()
    inspector = load_inspector(base_of(ROOT))
    rng = np.random.default_rng(1)
    setup = virtual_line.LineSetup(shape="CYLN", place_jitter_px=(0.0, 0.0))
    x, y = np.array(setup.center_px) - np.array([4, 1]) * setup.pitch_px
    grid = np.array([[setup.pitch_px, 0, x], [0, setup.pitch_px, y], [0, 0, 1]])
    rows, addresses = [], [layout.addresses[pin] for pin in rng.permutation(layout.pins)[:9]]
    for number, address in enumerate(addresses):
        image = virtual_line.render(rng, setup, virtual_line.tolerated_pins(rng, setup, layout), layout).image
        picture = composite.single(composite.rectify(image, np.eye(2, 3), grid, layout, 64), layout, 64)
        starred = composite.draw_star(picture, address, layout, 64)
        Image.fromarray(starred).save(root / "data/composited" / f"star-{number}.png")
        rows.append(
            {
                "id": str(number),
                "answer_kind": "star",
                "images": [f"star-{number}.png"],
                "messages": pretext.neutral_messages(prompts.two_image("RAW", star="")[:1]),
            }
        )
    answers = answer_rows(inspector, rows, root / "data/composited", contract, batch_size=9, constrained=False)
    positions = [answer.text.splitlines()[-1].removeprefix("- change position->") for answer in answers]
    assert positions == [str(address) for address in addresses]


def test_free_answers_are_not_constrained(line):
    root, params = line
    rows = rows_of(root)[:2]
    inspector = load_inspector(base_of(root))
    answers = answer_rows(inspector, rows, root / "data/composited", params.contract(), batch_size=2, constrained=False)
    pattern = params.contract().pattern()
    assert not any(re.match(pattern, answer.text) for answer in answers), "an untrained base does not know the contract"


def test_a_missing_or_broken_model_is_an_error_in_one_line(line, trained, tmp_path):
    root, _ = line
    with pytest.raises(ModelError, match="adapter not found"):
        load_inspector(base_of(root), tmp_path / "nowhere")
    with pytest.raises(ModelError, match="make base"):
        load_base(base_of(tmp_path))
    broken = shutil.copytree(trained, tmp_path / "adapter")
    weights = broken / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="does not fit") as caught:
        load_inspector(base_of(ROOT), broken)
    assert "\n" not in str(caught.value)
