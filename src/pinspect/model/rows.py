"""Rows of the chat dataset as model inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from pinspect.errors import StageInputError
from pinspect.model.batching import EncodedChat, collate, encode_chat
from pinspect.model.processor import patchify


class RowEncoder:
    """Encodes rows for one processor; texts are tokenized once, images are read when a batch needs them."""

    def __init__(self, processor, images_dir: str | Path) -> None:
        self.processor, self.images_dir = processor, Path(images_dir)
        self._chats: dict[str, EncodedChat] = {}
        self._image_tokens: dict[tuple[int, int], int] = {}

    @cached_property
    def _token_pixels(self) -> int:
        image_processor = self.processor.image_processor
        return image_processor.patch_size * image_processor.merge_size

    def chat(self, row: dict) -> EncodedChat:
        """The encoded chat of `row`."""
        tokens = [self._tokens(self.images_dir / name) for name in row["images"]]
        key = json.dumps([row["messages"], tokens])
        if key not in self._chats:
            self._chats[key] = encode_chat(self.processor, row["messages"], tokens)
        return self._chats[key]

    def batch(self, rows: Sequence[dict], *, answers: bool) -> dict[str, torch.Tensor]:
        """Model inputs for `rows`: padded ids and masks, pixel values and grids; labels where `answers` is set."""
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

    def _tokens(self, path: Path) -> int:
        # Composites of one kind share one size: opening a file for its size alone reads no pixels.
        with Image.open(path) as image:
            size = image.size
        if size not in self._image_tokens:
            grid = self.processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"][0]
            self._image_tokens[size] = int(grid.prod()) // self.processor.image_processor.merge_size**2
        return self._image_tokens[size]


def read_composite(path: Path) -> np.ndarray:
    """A composite as RGB uint8 (H, W, 3). Raises StageInputError where it is missing."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro composite` first") from None
