"""The exported chat dataset trains on its answers alone, with TRL's and with Unsloth's collator."""

import os

import pytest
from datasets import Image, load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from pinspect.core.rows import read_chat
from pinspect.model.processor import END
from tests.support.sample import ROOT

BASE = ROOT / "models/base"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(BASE)


def trl(processor):
    return DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)


def unsloth(processor):
    os.environ["UNSLOTH_IS_PRESENT"] = "1"  # `import unsloth` sets it, and patches the libraries of other tests
    from unsloth_zoo.vision_utils import UnslothVisionDataCollator

    model = AutoModelForImageTextToText.from_pretrained(BASE)
    return UnslothVisionDataCollator(model, processor, resize="max")


def test_one_line_loads_the_dataset_with_its_pictures(chat_project):
    dataset = load_dataset(str(chat_project / "dataset"))
    for split in ("train", "validation", "test"):
        rows = read_chat(chat_project / f"data/chat/{split}.jsonl")
        assert dataset[split]["answer"] == [row["answer"] for row in rows]
        assert [[image.size for image in images] for images in dataset[split]["images"]] == [
            [(640, 256)] * len(row["images"]) for row in rows
        ]
    assert dataset["train"].features["images"].feature == Image()
    messages = load_dataset(str(chat_project / "dataset"), "messages", split="test")[0]["messages"]
    row = dataset["test"][0]
    assert messages == row["prompt"] + row["completion"]
    assert "messages" not in row, "TRL would train on the whole conversation"


@pytest.mark.parametrize("collator", [trl, unsloth])
def test_only_the_answer_carries_labels(collator, processor, chat_project):
    rows = list(load_dataset(str(chat_project / "dataset"), split="train"))
    answers = [row["answer"] for row in rows]
    pictures = sum(len(row["images"]) for row in rows)
    batch = collator(processor)(rows)
    assert len(batch["image_grid_thw"]) == pictures
    for ids, labels, answer in zip(batch["input_ids"], batch["labels"], answers, strict=True):
        learned = labels != -100
        assert processor.decode(ids[learned]).removesuffix("\n") == f"{answer}{END}"
        assert (labels[learned] == ids[learned]).all()
        assert processor.image_token_id in ids[~learned]
