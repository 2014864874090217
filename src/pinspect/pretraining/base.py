"""The small default base: Qwen3-VL's architecture from a config, its tokenizer and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerContract, AnswerKind
from pinspect.core.layout import Layout
from pinspect.model.processor import (
    SPECIAL_TOKENS,
    ImageTextProcessor,
    build_processor,
    build_tokenizer,
    save_processor,
)
from pinspect.pretraining import pretext

PATCH, MERGE = 32, 2  # px per patch, patches per side of a visual token
ROLES = ("user", "assistant")  # the roles of the chat template
# Words that lines may use for their defect modes and shapes. Each has a token, which the adapter of a line learns; the
# pre-text contains none of them. Words that are not listed here are spelled in bytes.
LINE_WORDS = (
    *("X-plus", "X-minus", "Y-plus", "Y-minus", "plus", "minus", "left", "right", "up", "down"),
    *("bend", "bent", "retract", "retracted", "pullout", "pulled-out", "missing", "tilt", "tilted", "twisted"),
    *("short", "long", "broken", "cracked", "burr", "dirt", "scratch", "color", "wrong-color", "wrong-shape"),
    *("foreign", "damaged", "deformed", "NG", "CYLN", "SQUR", "RECT", "HEXA", "BLADE"),
)


def new_base(layout: Layout, seed: int) -> tuple[Qwen3VLForConditionalGeneration, ImageTextProcessor, torch.Tensor]:
    """Create an untrained base.

    Args:
        layout: The pins.
        seed: Seed of the random weights.

    Returns:
        The model, its processor, and which tokens occur in the pre-text: bool (vocabulary,).
    """
    texts, pretext_only = pretext_texts(layout)
    tokenizer = build_tokenizer(texts, (*pretext.CHANGES, *LINE_WORDS))
    processor = build_processor(tokenizer, PATCH, MERGE)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    known = torch.zeros(len(tokenizer), dtype=torch.bool)
    for text in pretext_only:
        known[torch.tensor(tokenizer(text).input_ids)] = True
    known[tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))] = True
    return model, processor, known


def save_base(
    model: Qwen3VLForConditionalGeneration, processor: ImageTextProcessor, known: torch.Tensor, out: Path
) -> None:
    """Write a base as float16 safetensors, with its processor.

    Embeddings of tokens that do not occur in the pre-text are scaled to the median length of the trained embeddings, so
    that an adapter can learn new words as easily as known ones.

    Args:
        model: The trained model.
        processor: Its processor.
        known: bool (vocabulary,), which tokens occur in the pre-text.
        out: Folder to write.
    """
    with torch.no_grad():
        embeddings: Any = model.get_input_embeddings().weight
        lengths = embeddings.norm(dim=1)
        embeddings[~known] *= (lengths[known].median() / lengths[~known].clamp(min=1e-6)).unsqueeze(1)
    model.half().save_pretrained(out)
    model.float()
    save_processor(processor, out)


def build_config(tokenizer: Any) -> Qwen3VLConfig:
    """Return the config of the default base: 3.6 million parameters, one visual token of 64 px per pin.

    Args:
        tokenizer: The tokenizer of the base.
    """
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_hidden_layers": 5,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,
            "out_hidden_size": 160,
            "num_position_embeddings": 24 * 24,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


def pretext_texts(layout: Layout) -> tuple[list[str], list[str]]:
    """Return the texts whose words the tokenizer knows, and the subset of them that is pre-text.

    The base is trained on the pre-text only. The tokenizer also covers the prompts and the answer contract.

    Args:
        layout: The pins.
    """
    pretext_only = [*ROLES, *(pretext.neutral(text) for text in prompts.texts())]
    for shape in pretext.SHAPES:
        for view in VIEWS:
            for change in range(len(pretext.CHANGES) + 1):
                for pin in range(layout.pins):
                    cells = np.zeros(layout.pins, np.int8)
                    cells[pin] = change
                    for kind in (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION):
                        answer = pretext.neutral_answer(layout, shape, view, cells, kind)
                        pretext_only += [answer] if answer else []
    contract = AnswerContract(layout, pretext.SHAPES, pretext.CHANGES)
    pretext_only.append(contract.render_grid(contract.grid()))
    shape, view = pretext.SHAPES[0], VIEWS[0]
    answers = [
        contract.passed(shape, view),
        contract.defective(shape, view, contract.defect_modes[0], layout.addresses[0]),
    ]
    return [*pretext_only, *prompts.texts(), *map(contract.render, answers)], pretext_only
