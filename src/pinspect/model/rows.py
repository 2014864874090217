"""Rows of the chat dataset as model inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import PaliGemmaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pinspect.core.errors import StageInputError
from pinspect.core.prompts import without_answer
from pinspect.model.batching import EncodedChat, collate, encode_chat, expected_ids, prompt_text, with_answers
from pinspect.model.families import Family
from pinspect.model.processor import ImageTextProcessor, patchify


class RowEncoder:
    """Encodes rows for one processor; texts are tokenized once, images are read when a batch needs them.

    For Qwen's processors (the default model's among them), whose image tokens follow from an image's size, batches are
    put together here. Every other family's own processor makes them.
    """

    def __init__(self, processor, images_dir: str | Path) -> None:
        self.processor, self.images_dir = processor, Path(images_dir)
        self._chats: dict[str, EncodedChat] = {}
        self._image_tokens: dict[tuple[int, int], int] = {}

    @cached_property
    def _counts_tokens(self) -> bool:
        return isinstance(self.processor, ImageTextProcessor)

    @cached_property
    def _token_pixels(self) -> int:
        image_processor = self.processor.image_processor
        return image_processor.patch_size * image_processor.merge_size

    def chat(self, row: dict) -> EncodedChat:
        """The encoded chat of `row`."""
        sizes = [_size(self.images_dir / name) for name in row["images"]]
        key = json.dumps([row["messages"], sizes])
        if key not in self._chats:
            encode = self._encode if self._counts_tokens else self._encode_by_processor
            try:
                self._chats[key] = encode(row["messages"], sizes)
            except ValueError as error:
                raise StageInputError(f"row {row['id']}: {error}; run `dvc repro chat` for this model.family") from None
        return self._chats[key]

    def batch(self, rows: Sequence[dict], *, answers: bool) -> dict[str, torch.Tensor]:
        """Model inputs for `rows`: padded ids and masks, pixel values and what else the family's model takes; labels
        where `answers` is set."""
        if not self._counts_tokens:
            return self._batch_by_processor(rows, answers)
        images = [image for row in rows for image in self.images(row)]
        pixels = self._pixels(images)
        ids = collate(
            [self.chat(row) for row in rows],
            self.processor.tokenizer.pad_token_id,
            self.processor.image_token_id,
            answers=answers,
        )
        return ids | dict(pixels)

    def images(self, row: dict) -> list[np.ndarray]:
        """The images of `row`, uint8 (H, W, 3) each, as its `augmentation`, if it has one, shows them."""
        images = [read_composite(self.images_dir / name) for name in row["images"]]
        chosen = row.get("augmentation")
        return [chosen.image(image, number) for number, image in enumerate(images)] if chosen else images

    def _pixels(self, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """What the image processor makes of `images`; for composites that need no resizing by a batched short cut."""
        image_processor = self.processor.image_processor
        sizes = {image.shape for image in images}
        whole = len(sizes) == 1 and not any(side % self._token_pixels for side in images[0].shape[:2])
        if (
            not (whole and isinstance(image_processor, Qwen2VLImageProcessorPil))
            or image_processor.temporal_patch_size > 1
        ):
            return dict(image_processor(images, return_tensors="pt"))
        patch, (height, width, _) = image_processor.patch_size, images[0].shape
        return {
            "pixel_values": patchify(
                torch.from_numpy(np.stack(images)),
                patch,
                image_processor.merge_size,
                image_processor.image_mean[0],
                image_processor.image_std[0],
            ),
            "image_grid_thw": torch.tensor([[1, height // patch, width // patch]]).repeat(len(images), 1),
        }

    def _encode(self, messages: Sequence[dict], sizes: Sequence[tuple[int, int]]) -> EncodedChat:
        return encode_chat(self.processor, messages, [self._tokens(size) for size in sizes])

    def _tokens(self, size: tuple[int, int]) -> int:
        if size not in self._image_tokens:
            grid = self.processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]
            self._image_tokens[size] = int(grid.prod()) // self.processor.image_processor.merge_size**2
        return self._image_tokens[size]

    def _encode_by_processor(self, messages: Sequence[dict], sizes: Sequence[tuple[int, int]]) -> EncodedChat:
        images = [Image.new("RGB", size) for size in sizes]
        made = self._processed([prompt_text(self.processor, messages, len(images))], [images])
        prompt = made["input_ids"][0].tolist()
        return EncodedChat(prompt + expected_ids(self.processor.tokenizer, messages), len(prompt))

    def _batch_by_processor(self, rows: Sequence[dict], answers: bool) -> dict[str, torch.Tensor]:
        texts = [prompt_text(self.processor, row["messages"], len(row["images"])) for row in rows]
        images = [[Image.fromarray(image) for image in self.images(row)] for row in rows]
        prompts = self._processed(texts, images)
        if not answers:
            return prompts
        tokenizer = self.processor.tokenizer
        expected = [expected_ids(tokenizer, row["messages"]) for row in rows]
        # PaliGemma reads its prompt in both directions, and writes what is of type 1 in one.
        answer_type = int(isinstance(self.processor, PaliGemmaProcessor))
        return with_answers(prompts, expected, tokenizer.pad_token_id, answer_type)

    def _processed(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
        """What the family's processor makes of prompts and their images; prompts are padded at the left."""
        if type(self.processor).__module__.startswith("transformers_modules"):
            return self._processed_one_by_one(texts, images)
        begin = self.processor.tokenizer.bos_token
        made = self.processor(
            text=texts,
            images=images,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            # Some chat templates write the token that begins a text, others leave it to the tokenizer.
            add_special_tokens=not (begin and texts[0].startswith(begin)),
        )
        return {name: tensor for name, tensor in made.items() if name != "labels"}

    def _processed_one_by_one(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
        """The same by the code of a checkpoint, which promises nothing about batches."""
        made = [
            self.processor(text=text, images=shown, return_tensors="pt")
            for text, shown in zip(texts, images, strict=True)
        ]
        chats = [EncodedChat(one["input_ids"][0].tolist(), one["input_ids"].shape[1]) for one in made]
        pad_id = self.processor.tokenizer.pad_token_id
        padded = collate(chats, pad_id, pad_id, answers=False)
        ids = {name: padded[name] for name in ("input_ids", "attention_mask")}
        return ids | {name: torch.cat([one[name] for one in made]) for name in made[0] if name not in ids}


def require_placeholders(processor, family: Family, rows: Sequence[dict]) -> None:
    """Raise StageInputError unless the family's chat template shows all texts and images of each kind of row.

    One row of each view, kind and shot is rendered: what differs within those are addresses and file names.
    """
    forms = {(row["view"], row["kind"], row["shot"]): row for row in rows}
    for row in forms.values():
        try:
            text = prompt_text(processor, row["messages"], len(row["images"]))
        except ValueError as error:
            raise StageInputError(f"data/chat: row {row['id']}: {family.name}'s chat template has {error}") from None
        parts = [part for message in without_answer(row["messages"]) for part in message["content"]]
        lost = [part["text"] for part in parts if part["type"] == "text" and part["text"].strip() not in text]
        if lost:
            raise StageInputError(
                f"data/chat: row {row['id']}: {family.name}'s chat template leaves out {lost[0][:60]!r}; take a "
                "checkpoint that was tuned for instructions"
            )


def _size(path: Path) -> tuple[int, int]:
    """Width and height in px of an image file, of which no pixel is read."""
    with Image.open(path) as image:
        return image.size


def read_composite(path: Path) -> np.ndarray:
    """A composite as RGB uint8 (H, W, 3). Raises StageInputError where it is missing."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro composite` first") from None
