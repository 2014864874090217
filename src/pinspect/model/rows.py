"""Rows of the chat dataset as model inputs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from transformers import PaliGemmaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pinspect.core.errors import StageInputError
from pinspect.core.product_files import read_product
from pinspect.core.prompts import Message, without_answer
from pinspect.core.rows import Row
from pinspect.model.batching import (
    TOKENIZING,
    EncodedChat,
    collate,
    encode_chat,
    expected_ids,
    prompt_text,
    with_answers,
)
from pinspect.model.families import Family
from pinspect.model.processor import ImageTextProcessor, patchify

_IDS: WeakKeyDictionary[Any, dict[str, list[int]]] = WeakKeyDictionary()  # of prompts and answers, by processor
Inputs = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]  # prompts, and pictures that are read after them


class RowEncoder:
    """Encodes rows for one processor; texts are tokenized once, images are read when a batch needs them.

    Qwen's processors (among them the default model's) derive the number of visual tokens from the image size, so their
    batches are built here. All other batches are built by the family's own processor.

    Attributes:
        processor: The processor of the model family.
        pictures: Folder that the image names of the rows are relative to, or the image files in memory by their names.
    """

    def __init__(self, processor: Any, pictures: str | Path | Mapping[str, bytes]) -> None:
        self.processor = processor
        self.pictures = Path(pictures) if isinstance(pictures, str) else pictures
        self._ids = _IDS.setdefault(processor, {})
        self._sizes: dict[str, tuple[int, int]] = {}
        self._digests: dict[str, bytes] = {}

    def chat(self, row: Row) -> EncodedChat:
        """Encode the chat of a row.

        Args:
            row: A row of the chat dataset.

        Raises:
            StageInputError: The chat has another number of image placeholders than images.
        """
        messages, sizes = row["messages"], [self._size(name) for name in row["images"]]
        prompt, answer = json.dumps([without_answer(messages), sizes]), json.dumps(messages[-1])
        if prompt not in self._ids:
            encode = self._encode if self._counts_tokens else self._encode_by_processor
            try:
                self._ids[prompt] = encode(without_answer(messages), sizes)
            except ValueError as error:
                raise StageInputError(f"row {row['id']}: {error}; run `dvc repro chat` for this model.family") from None
        if answer not in self._ids:
            with TOKENIZING:
                self._ids[answer] = expected_ids(self.processor.tokenizer, messages)
        return EncodedChat(self._ids[prompt] + self._ids[answer], len(self._ids[prompt]))

    def batch(self, rows: Sequence[Row], *, answers: bool) -> dict[str, torch.Tensor]:
        """Build the model inputs of a batch.

        Args:
            rows: Rows of the chat dataset.
            answers: Whether the batch contains the expected answers.

        Returns:
            Padded ids and masks, pixel values and further inputs of the family's model; with answers also `labels`.
        """
        if not self._counts_tokens:
            return self._batch_by_processor(rows, answers)
        images = [image for row in rows for image in self.images(row)]
        return self._padded([self.chat(row) for row in rows], answers=answers) | self._pixels(images)

    @property
    def shares_heads(self) -> bool:
        """Whether the head of a prompt, all before its last picture, can be read once for all rows that share it.

        It can with Qwen's processors, in whose prompts no token depends on a later one.
        """
        return self._counts_tokens

    def head(self, row: Row) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
        """Return what makes the head of a row's prompt: its token ids, and the digest of each of its pictures."""
        return tuple(self.chat(row).prompt[: self._head_length(row)]), tuple(map(self._digest, row["images"][:-1]))

    def heads(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Build the model inputs of the heads of prompts, padded on the left."""
        images = [image for row in rows for image in self.images(row, slice(0, -1))]
        return self._padded([self._part(row, slice(0, self._head_length(row))) for row in rows]) | (
            self._pixels(images) if images else {}
        )

    def tails(self, rows: Sequence[Row]) -> Inputs:
        """Build the model inputs of prompts whose heads have been read already.

        Returns:
            The prompts without pixels, heads and tails padded on the left by themselves; and the last pictures.
        """
        lengths = [self._head_length(row) for row in rows]
        parts = [
            self._padded([self._part(row, part) for row, part in zip(rows, slices, strict=True)])
            for slices in ([slice(0, n) for n in lengths], [slice(n, None) for n in lengths])
        ]
        ids = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
        grids = torch.stack([self._grid(self._size(name)) for row in rows for name in row["images"]])
        last_pictures = self._pixels([image for row in rows for image in self.images(row, slice(-1, None))])
        return ids | {"image_grid_thw": grids}, last_pictures

    def _padded(self, chats: Sequence[EncodedChat], *, answers: bool = False) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        return collate(chats, tokenizer.pad_token_id, self.processor.image_token_id, answers=answers)

    def _part(self, row: Row, part: slice) -> EncodedChat:
        ids = self.chat(row).prompt[part]
        return EncodedChat(ids, len(ids))

    def _head_length(self, row: Row) -> int:
        """Return the number of tokens before the first visual token of the last picture."""
        ids, last = self.chat(row).prompt, self._tokens(self._size(row["images"][-1]))
        end = len(ids) - ids[::-1].index(self.processor.image_token_id)
        return end - last

    def images(self, row: Row, part: slice = slice(None)) -> list[np.ndarray]:
        """Return the images of a row, with its `augmentation` applied if it has one.

        Args:
            row: A row of the chat dataset.
            part: Which of its images.

        Returns:
            uint8 (H, W, 3) each.
        """
        numbers = range(len(row["images"]))[part]
        images = [self._read(row["images"][number]) for number in numbers]
        if augmentation := row.get("augmentation"):
            return [augmentation.image(image, number) for number, image in zip(numbers, images, strict=True)]
        return images

    def _read(self, name: str) -> np.ndarray:
        if isinstance(self.pictures, Path):
            return read_composite(self.pictures / name)
        with Image.open(io.BytesIO(self.pictures[name])) as image:
            return np.asarray(image.convert("RGB"))

    def _content(self, name: str) -> bytes:
        return read_product(self.pictures / name) if isinstance(self.pictures, Path) else self.pictures[name]

    def _size(self, name: str) -> tuple[int, int]:
        """Return width and height of an image file in px, without reading its pixels."""
        if name not in self._sizes:
            with Image.open(io.BytesIO(self._content(name))) as image:
                self._sizes[name] = image.size
        return self._sizes[name]

    def _digest(self, name: str) -> bytes:
        if name not in self._digests:
            self._digests[name] = hashlib.sha256(self._content(name)).digest()
        return self._digests[name]

    @cached_property
    def _counts_tokens(self) -> bool:
        return isinstance(self.processor, ImageTextProcessor)

    @cached_property
    def _token_pixels(self) -> int:
        image_processor = self.processor.image_processor
        return image_processor.patch_size * image_processor.merge_size

    def _pixels(self, images: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the image processor's output; composites that need no resizing take a batched shortcut."""
        image_processor = self.processor.image_processor
        sizes = {image.shape for image in images}
        aligned = len(sizes) == 1 and not any(side % self._token_pixels for side in images[0].shape[:2])
        if (
            not (aligned and isinstance(image_processor, Qwen2VLImageProcessorPil))
            or image_processor.temporal_patch_size > 1
        ):
            return dict(image_processor(images, return_tensors="pt"))
        patch, (height, width, _) = image_processor.patch_size, images[0].shape
        return {
            "pixel_values": patchify(
                images,
                patch,
                image_processor.merge_size,
                image_processor.image_mean[0],
                image_processor.image_std[0],
            ),
            "image_grid_thw": torch.tensor([[1, height // patch, width // patch]]).repeat(len(images), 1),
        }

    def _encode(self, prompt: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> list[int]:
        return encode_chat(self.processor, prompt, [self._tokens(size) for size in sizes]).prompt

    def _tokens(self, size: tuple[int, int]) -> int:
        return int(self._grid(size).prod()) // self.processor.image_processor.merge_size**2

    def _grid(self, size: tuple[int, int]) -> torch.Tensor:
        return _patches(self.processor.image_processor, size)

    def _encode_by_processor(self, prompt: Sequence[Message], sizes: Sequence[tuple[int, int]]) -> list[int]:
        images = [Image.new("RGB", size) for size in sizes]
        with TOKENIZING:
            inputs = self._processed([prompt_text(self.processor, prompt, len(images))], [images])
        return inputs["input_ids"][0].tolist()

    def _batch_by_processor(self, rows: Sequence[Row], answers: bool) -> dict[str, torch.Tensor]:
        texts = [prompt_text(self.processor, row["messages"], len(row["images"])) for row in rows]
        images = [[Image.fromarray(image) for image in self.images(row)] for row in rows]
        tokenizer = self.processor.tokenizer
        with TOKENIZING:
            prompts = self._processed(texts, images)
            expected = [expected_ids(tokenizer, row["messages"]) for row in rows] if answers else []
        if not answers:
            return prompts
        # PaliGemma attends to prompt tokens in both directions; tokens of type 1 attend to earlier tokens only.
        answer_type = int(isinstance(self.processor, PaliGemmaProcessor))
        return with_answers(prompts, expected, tokenizer.pad_token_id, answer_type)

    def _processed(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
        """Return the family processor's output for prompts and their images; prompts are padded on the left."""
        if type(self.processor).__module__.startswith("transformers_modules"):
            return self._processed_one_by_one(texts, images)
        begin = self.processor.tokenizer.bos_token
        inputs = self.processor(
            text=texts,
            images=images,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            # Some chat templates write the token that begins a text, others leave it to the tokenizer.
            add_special_tokens=not (begin and texts[0].startswith(begin)),
        )
        return {name: tensor for name, tensor in inputs.items() if name != "labels"}

    def _processed_one_by_one(self, texts: list[str], images: list[list[Image.Image]]) -> dict[str, torch.Tensor]:
        """Process single prompts: a checkpoint's own code need not support batches."""
        inputs = [
            self.processor(text=text, images=row_images, return_tensors="pt")
            for text, row_images in zip(texts, images, strict=True)
        ]
        chats = [EncodedChat(row["input_ids"][0].tolist(), row["input_ids"].shape[1]) for row in inputs]
        pad_id = self.processor.tokenizer.pad_token_id
        padded = collate(chats, pad_id, pad_id, answers=False)
        ids = {name: padded[name] for name in ("input_ids", "attention_mask")}
        return ids | {name: torch.cat([row[name] for row in inputs]) for name in inputs[0] if name not in ids}


@lru_cache(maxsize=64)
def _patches(image_processor: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return the patches of an image of this size: int64 (frames, rows, columns)."""
    return image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]


def require_placeholders(processor: Any, family: Family, rows: Sequence[Row]) -> None:
    """Check that the family's chat template renders all texts and images of each kind of row.

    One row per view, kind and shot is rendered; other rows differ from it in addresses and file names only.

    Args:
        processor: The processor of the model family.
        family: The model family.
        rows: Rows of the chat dataset.

    Raises:
        StageInputError: The template drops a text or an image.
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
                f"data/chat: row {row['id']}: {family.name}'s chat template leaves out {lost[0][:60]!r}; use an "
                "instruction-tuned checkpoint"
            )


def read_composite(path: Path) -> np.ndarray:
    """Read a composite as RGB.

    Args:
        path: An image file.

    Returns:
        uint8 (H, W, 3).

    Raises:
        StageInputError: The file is missing.
    """
    try:
        with Image.open(io.BytesIO(read_product(path))) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro composite` first") from None
