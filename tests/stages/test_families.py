"""Every model family keeps one contract: it has its own prompts, its adapters learn, its answers are well-formed.

Each family's checkpoint (tests/support/tiny_families.py) is tiny and random, made from its own config and processor
classes, and is loaded by the code that loads a real checkpoint.
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from pinspect.chat.dataset import build_chat
from pinspect.core import prompts
from pinspect.core.answers import AnswerKind
from pinspect.core.errors import ParamsError, StageInputError
from pinspect.core.params import CounterexampleParams, CounterexampleShares
from pinspect.model.adapter import train_adapter
from pinspect.model.backends import Backend
from pinspect.model.batching import IGNORED, prompt_text
from pinspect.model.families import (
    FAMILIES,
    Checkpoint,
    checkpoint_of,
    composite_cell,
    require_images_fit,
)
from pinspect.model.generation import answer_rows
from pinspect.model.loading import load_base, load_inspector, load_processor
from pinspect.model.rows import RowEncoder, require_placeholders
from tests.support import chat_line
from tests.support.tiny_families import TINY_FAMILIES
from tests.support.tiny_torchvision_families import TINY_TORCHVISION_FAMILIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A small line, its parameters, and two rows of each shot with two-image prompts."""
    root = tmp_path_factory.mktemp("line")
    params = chat_line.make_line(root, inspected=8)
    data = root / "data"
    dataset = build_chat(data / "raw", data / "dst", data / "composited", params.contract(), params.chat).rows["train"]
    rows = [row for shot in prompts.SHOTS for row in [row for row in dataset if row["shot"] == shot][:2]]
    (data / "chat").mkdir()
    for split, content in (("train", rows), ("validation", [])):
        (data / "chat" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return root, params, rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save the tiny checkpoint of a family, once per family."""
    root = tmp_path_factory.mktemp("checkpoints")

    @cache
    def save(name: str) -> Checkpoint:
        tiny = (TINY_FAMILIES | TINY_TORCHVISION_FAMILIES)[name]
        folder = tiny.save(root / name / "base")
        return Checkpoint(FAMILIES[tiny.family], str(folder), folder, precision="float32")

    return save


@pytest.fixture(scope="module", params=TINY_FAMILIES, ids=str)
def checkpoint(request, saved) -> Checkpoint:
    return saved(request.param)


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load_processor(checkpoint)


def small_training(params):
    """Three steps over the same four rows without augmentation, so that their losses can be compared."""
    no_shares = CounterexampleShares(**dict.fromkeys(CounterexampleShares.model_fields, 0.0))
    train = params.train.model_copy(
        update={
            **{"maximum_steps": 3, "epochs": 3.0, "batch_size": 4, "learning_rate": 0.01, "warmup_share": 0.0},
            **{"vision": True, "mirror": False, "light_jitter": 0.0},
            "counterexamples": CounterexampleParams(RAW=no_shares, DST=no_shares),
        }
    )
    return params.model_copy(update={"train": train})


# --- the contract, family by family


def test_training_sees_the_prompt_that_generation_starts_from(line, checkpoint, processor):
    root, _, rows = line
    encoder = RowEncoder(processor, root / "data/composited")
    for row in rows:
        prompt, trained = encoder.batch([row], answers=False), encoder.batch([row], answers=True)
        length = prompt["input_ids"].shape[1]
        assert trained["input_ids"][0, :length].tolist() == prompt["input_ids"][0].tolist() == encoder.chat(row).prompt
        assert torch.equal(trained["pixel_values"], prompt["pixel_values"])
        assert (trained["labels"][0, :length] == IGNORED).all()
        labels = trained["labels"][0, length:].tolist()
        assert processor.tokenizer.decode(labels[:-1]) == row["answer"]
        assert processor.tokenizer.convert_ids_to_tokens(labels[-1]) == checkpoint.family.end_of_turn


def test_threads_build_batches_of_one_processor_at_the_same_time(line, saved):
    """A training encodes ahead in a thread while it answers validation rows."""
    root, _, rows = line
    processor = load_processor(saved("LLaVA-1.5"))
    assert len({RowEncoder(processor, root / "data/composited").chat(row).prompt_length for row in rows}) > 1

    def lengths(_: int) -> set[int]:
        encoder = RowEncoder(processor, root / "data/composited")
        return {encoder.batch(rows, answers=True)["input_ids"].shape[1] for _ in range(20)}

    with ThreadPoolExecutor(4) as pool:
        (length,) = set.union(*pool.map(lengths, range(4)))
    assert length == RowEncoder(processor, root / "data/composited").batch(rows, answers=True)["input_ids"].shape[1]


def test_a_prompt_holds_every_instruction_and_one_placeholder_per_image(line, processor):
    _, _, rows = line
    for row in rows:
        text = prompt_text(processor, row["messages"], len(row["images"]))
        parts = [part for message in prompts.without_answer(row["messages"]) for part in message["content"]]
        assert all(part["text"] in text for part in parts if part["type"] == "text")
        assert text.count(processor.image_token) == len(row["images"])
        with pytest.raises(ValueError, match="image placeholders for 7 images"):
            prompt_text(processor, row["messages"], 7)


def test_the_model_looks_at_every_image(line, checkpoint, tmp_path):
    root, _, rows = line
    model, processor = load_base(checkpoint)
    model.eval()
    row = rows[-1]
    shutil.copytree(root / "data/composited/images", tmp_path / "images")
    encoder = RowEncoder(processor, tmp_path)

    @torch.inference_mode()
    def logits() -> torch.Tensor:
        return model(**encoder.batch([row], answers=False)).logits[0, -1]

    before = logits()
    for name in row["images"]:
        content = (tmp_path / name).read_bytes()
        picture = np.asarray(Image.open(tmp_path / name))
        Image.fromarray(255 - picture).save(tmp_path / name)
        assert not torch.allclose(logits(), before, atol=1e-6), f"{name} does not change the logits"
        (tmp_path / name).write_bytes(content)
    assert torch.allclose(logits(), before, atol=1e-6)


def test_the_loss_of_a_training_is_that_of_the_model_s_own_logits(line, checkpoint):
    root, params, rows = line
    train, backend = small_training(params).train, Backend()
    model, processor = backend.load(checkpoint, train)
    batch = RowEncoder(processor, root / "data/composited").batch(rows[-1:], answers=True)
    adapted = backend.adapt(model, train, ()).eval()
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = adapted(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss = backend.answer_loss(adapted, batch, int((labels != IGNORED).sum()))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_an_adapter_learns_answers_and_merges(line, checkpoint, tmp_path):
    root, params, rows = line
    images, contract = root / "data/composited", params.contract()
    train_adapter(
        small_training(params), checkpoint, root / "data/chat", images, tmp_path / "adapter", tmp_path / "work"
    )
    losses = [float(text.split(",")[1]) for text in (tmp_path / "adapter/learning_curve.csv").read_text().split()[1:]]
    assert len(losses) == 3 and losses[2] < losses[0]

    inspector = load_inspector(checkpoint, tmp_path / "adapter")
    rows = rows[1:3]  # one zero-shot, one one-shot
    answers = answer_rows(inspector, rows, images, contract, batch_size=2)
    for row, answer in zip(rows, answers, strict=True):
        contract.parse(answer.text, AnswerKind(row["answer_kind"]))
    plain = answer_rows(inspector, rows, images, contract, batch_size=2, fast_forward=False)
    assert [answer.p_defective for answer in answers] == pytest.approx([a.p_defective for a in plain], abs=1e-4)

    merged = tmp_path / "merged"
    shutil.copytree(checkpoint.folder, merged, ignore=shutil.ignore_patterns("*.safetensors"))
    inspector.model.merge_and_unload().save_pretrained(merged)
    again = answer_rows(load_inspector(checkpoint.at(merged)), rows, images, contract, batch_size=2)
    assert [answer.p_defective for answer in again] == pytest.approx([a.p_defective for a in answers], abs=1e-3)


# --- the table of families


def test_every_family_without_its_own_code_has_a_tiny_checkpoint():
    tiny_families = TINY_FAMILIES | TINY_TORCHVISION_FAMILIES
    covered = {kind for tiny in tiny_families.values() for kind in FAMILIES[tiny.family].model_types}
    uncovered = {family.name for family in FAMILIES.values() if not covered & set(family.model_types)}
    assert uncovered == {"phi-3.5-vision"}
    assert {FAMILIES[tiny.family].vision_type for tiny in TINY_FAMILIES.values()} >= {"pixtral", "clip_vision_model"}


def test_the_documented_table_is_the_one_in_the_code():
    documented = (ROOT / "docs/models.md").read_text().split("<!-- families -->")[1].split("<!-- /families -->")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in documented.strip().splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        [f"`{family.name}`", family.model_id, f"{family.parameters:g}", f"{family.stride} px"]
        for family in FAMILIES.values()
    ]
    for row, family in zip(rows, FAMILIES.values(), strict=True):
        assert (row[4] == "rescales") == family.rescales
        assert row[5].split(" (")[0] == str(family.max_images) and ("trained" in row[5]) == bool(family.trained_images)
        assert row[7] == ("yes" if family.four_bit else "no")


def test_a_composite_lays_each_pin_on_whole_tokens(line):
    _, params, _ = line

    def cell(family: str, wanted: int, *, aligned: bool = True) -> int:
        drawn = params.composite.model_copy(update={"cell": wanted, "token_aligned": aligned})
        model = params.model.model_copy(update={"family": family})
        return composite_cell(params.model_copy(update={"composite": drawn, "model": model}))

    assert cell("pinspect", 64) == 64
    assert cell("qwen2-vl-7b", 64) == 84
    assert cell("qwen3-vl-2b", 64) == 64
    assert cell("pixtral-12b", 60) == 64
    assert cell("pinspect", 60, aligned=False) == 60
    for family in FAMILIES.values():
        assert family.rescales or cell(family.name, 61) % family.stride == 0


def test_the_family_s_own_processor_keeps_an_aligned_composite_as_it_is(line, checkpoint, processor):
    """Otherwise cells would not be aligned to whole tokens."""
    if checkpoint.family.rescales:
        assert composite_cell(with_model(line[1], family=checkpoint.family.name)) == 64
        return
    inputs = processor.image_processor([Image.new("RGB", (160, 64))], return_tensors="pt")
    patches = "image_grid_thw" in inputs
    pixels = inputs["image_grid_thw"].prod() * 8 * 8 * 3 if patches else inputs["pixel_values"][0].numel()
    assert int(pixels) == 160 * 64 * 3


def with_model(params, **changes):
    return params.model_copy(update={"model": params.model.model_copy(update=changes)})


def test_more_images_than_a_family_takes_are_refused_and_more_than_it_was_trained_with_warned_of(line):
    _, _, rows = line
    assert require_images_fit(FAMILIES["qwen2-vl-7b"], rows) == []
    (warning,) = require_images_fit(FAMILIES["llama-3.2-11b-vision"], rows)
    assert "trained with 1 image per prompt, and rows show up to 3" in warning
    with pytest.raises(StageInputError, match=r"shows 3 images, and small accepts at most 2; choose other chat.kinds"):
        require_images_fit(replace(FAMILIES["pinspect"], name="small", max_images=2), rows)


def test_a_chat_template_that_loses_images_or_words_stops_the_training_before_it_begins(line):
    _, params, rows = line
    checkpoint = checkpoint_of(params.model, ROOT)
    processor = load_processor(checkpoint)
    require_placeholders(processor, checkpoint.family, rows)
    processor.chat_template = "{% for message in messages %}{{ message.role }}{% endfor %}"
    with pytest.raises(StageInputError, match="pinspect's chat template has 0 image placeholders for 2 images"):
        require_placeholders(processor, checkpoint.family, rows)
    processor.chat_template = "<|image_pad|><|image_pad|>"
    with pytest.raises(StageInputError, match="pinspect's chat template leaves out 'You are a visual inspector"):
        require_placeholders(processor, checkpoint.family, rows[:1])


def test_a_prompt_does_not_depend_on_the_date(saved):
    """Llama's own template writes today's date."""
    checkpoint = saved("Mllama")
    assert "strftime_now" in (checkpoint.folder / "chat_template.jinja").read_text()
    processor = load_processor(checkpoint)
    text = prompt_text(processor, prompts.one_image("RAW"), 1)
    assert text.startswith("<|begin_of_text|><|start_header_id|>user") and text.endswith("<|end_header_id|>\n\n")


def test_code_that_a_checkpoint_brings_runs_only_when_trusted_and_pinned(line):
    _, params, _ = line
    with pytest.raises(ParamsError, match=r"model.trust_remote_code: phi-3.5-vision runs code from its checkpoint"):
        checkpoint_of(with_model(params, family="phi-3.5-vision").model)
    trusting = with_model(params, family="phi-3.5-vision", trust_remote_code=True)
    with pytest.raises(ParamsError, match=r"model.revision: trusted code must be pinned by its commit"):
        checkpoint_of(trusting.model)
    pinned = checkpoint_of(with_model(trusting, revision="0123456789abcdef" * 2 + "01234567").model)
    assert pinned.trust_remote_code and str(pinned).startswith("microsoft/Phi-3.5-vision-instruct@0123456789")


def test_checkpoints_are_folders_or_hub_ids(line, tmp_path):
    model = line[1].model
    assert checkpoint_of(model, ROOT).folder == ROOT / "models/base"
    assert checkpoint_of(model, tmp_path).folder == tmp_path / "models/base", "even where there is none"
    (tmp_path / "models").mkdir()
    chosen = model.model_copy(update={"family": "qwen2-vl-7b", "checkpoint": "models/qwen"})
    assert checkpoint_of(chosen, tmp_path).folder == tmp_path / "models/qwen"
    hub = checkpoint_of(model.model_copy(update={"family": "qwen2-vl-7b", "revision": "main"}), tmp_path)
    assert (hub.source, hub.folder, hub.revision) == ("Qwen/Qwen2-VL-7B-Instruct", None, "main")
    assert hub.at(tmp_path).folder == tmp_path


def test_phi_s_prompt_numbers_its_images():
    """Its processor comes with its checkpoint; its prompt, as its model card writes it, is ours."""
    messages = prompts.two_image("RAW", star="- star")
    text = render_jinja_template([messages], chat_template=FAMILIES["phi-3.5-vision"].template)[0][0]
    assert text.startswith(
        "<|user|>\n" + prompts.STAR_INSTRUCTION + "\n<|image_1|><|end|>\n<|assistant|>\n- star<|end|>"
    )
    assert text.count("<|user|>\nYou are") == 1
    assert text.endswith("\n<|image_2|>\n<|image_3|><|end|>\n")


def test_a_processor_without_batches_processes_row_by_row(line, saved, monkeypatch):
    """A checkpoint's own code, which its module name reveals, need not support batches."""
    root, _, rows = line
    processor = load_processor(saved("LLaVA-1.5"))
    together = RowEncoder(processor, root / "data/composited").batch(rows, answers=True)
    monkeypatch.setattr(type(processor), "__module__", "transformers_modules.processing_llava")
    one_by_one = RowEncoder(processor, root / "data/composited").batch(rows, answers=True)
    assert together.keys() == one_by_one.keys()
    assert all(torch.equal(tensor, one_by_one[name]) for name, tensor in together.items())
