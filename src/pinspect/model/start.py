"""Copies the weights of another adapter into a model whose training begins.

An adapter of another line is a start, too: its LoRA pairs are taken layer by layer, its embeddings word by word.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from pinspect.core.digests import file_sha256
from pinspect.core.errors import ModelError
from pinspect.core.start import CONFIG, TRAINING, WEIGHTS
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import Checkpoint

_WORDS = "trainable_tokens_delta"


def start_digest(start: Path | None) -> str:
    """Return the SHA-256 of the weights in a start folder, "" without one."""
    return file_sha256(start / WEIGHTS) if start else ""


def take_weights(model: Any, base: Checkpoint, start: Path) -> None:
    """Copy the weights of an adapter into an adapted model; words that it does not know keep the base's embeddings.

    Args:
        model: A PeftModel with untrained LoRA pairs.
        base: Its base.
        start: The folder of the adapter.

    Raises:
        ModelError: The adapter cannot be read, was trained on another base, or has LoRA pairs of another size.
    """
    try:
        weights = load_file(start / WEIGHTS)
        config, training = (json.loads((start / name).read_text(encoding="utf-8")) for name in (CONFIG, TRAINING))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{start}: the adapter cannot be read ({error}); run pinspect start") from None
    if training.get("base_sha256") != base_digest(base):
        raise ModelError(f"{start}: the adapter was trained on another base; set train.start to ''")
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    copied = {}
    for name, tensor in state.items():
        if name not in weights:
            continue
        if name.endswith(_WORDS):
            known = model.peft_config["default"].trainable_token_indices
            copied[name] = _with_known_words(tensor, known, weights[name], config["trainable_token_indices"])
        elif tensor.shape == weights[name].shape:
            copied[name] = weights[name]
        else:
            raise ModelError(
                f"{start}: LoRA pairs of another size ({name}: {tuple(weights[name].shape)}, train.rank makes "
                f"{tuple(tensor.shape)}); set train.rank and the switches of train as they were, or train.start to ''"
            )
    if not copied:
        raise ModelError(f"{start}: the adapter has no layer in common with this model; set train.start to ''")
    set_peft_model_state_dict(model, state | copied)


def _with_known_words(
    embeddings: torch.Tensor, words: Sequence[int], start_embeddings: torch.Tensor, start_words: Sequence[int]
) -> torch.Tensor:
    """Return embeddings (words, hidden) with those of the start for the words (token ids) that both have."""
    rows = {word: row for row, word in enumerate(start_words)}
    mixed = embeddings.detach().clone()
    for row, word in enumerate(words):
        if word in rows:
            mixed[row] = start_embeddings[rows[word]]
    return mixed
