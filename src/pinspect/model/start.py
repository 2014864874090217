"""The adapter that a training starts from, in place of untrained LoRA pairs: `train.start` in params.yaml.

models/start holds the adapter of a registered version, as `pinspect start` has copied it, with start.json: the
reference by which it was chosen. An adapter of another line is a start, too: its LoRA pairs are taken layer by layer,
its embeddings word by word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from pinspect.core.digests import file_sha256
from pinspect.core.errors import ModelError
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import Checkpoint

START = Path("models/start")
ORIGIN = "start.json"
_WEIGHTS, _CONFIG, _TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"
FILES = (_WEIGHTS, _CONFIG, _TRAINING)
_WORDS = "trainable_tokens_delta"


def start_folder(root: Path, reference: str) -> Path | None:
    """Return the folder of the adapter that training starts from; None to start from the base.

    Args:
        root: The project's folder.
        reference: `train.start`: the alias or number of a registered version, or empty.

    Raises:
        ModelError: models/start holds no adapter that was chosen by this reference.
    """
    if not reference:
        return None
    try:
        origin = json.loads((root / START / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = {}
    if origin.get("reference") != reference:
        raise ModelError(
            f"{root / START}: found {origin.get('reference') or 'no adapter'}, train.start in params.yaml is "
            f"{reference}; run pinspect start"
        )
    return root / START


def start_digest(start: Path | None) -> str:
    """Return the SHA-256 of the weights in a start folder, "" without one."""
    return file_sha256(start / _WEIGHTS) if start else ""


def take_weights(model: Any, base: Checkpoint, start: Path) -> int:
    """Copy the weights of an adapter into an adapted model.

    Args:
        model: A PeftModel with untrained LoRA pairs.
        base: Its base.
        start: The folder of the adapter.

    Returns:
        The number of copied tensors. Words that the adapter does not know keep the embeddings of the base.

    Raises:
        ModelError: The adapter cannot be read, was trained on another base, or has LoRA pairs of another size.
    """
    try:
        weights = load_file(start / _WEIGHTS)
        config, training = (json.loads((start / name).read_text(encoding="utf-8")) for name in (_CONFIG, _TRAINING))
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
    return len(copied)


def _with_known_words(
    own: torch.Tensor, own_words: list[int], others: torch.Tensor, other_words: list[int]
) -> torch.Tensor:
    """Return embeddings (words, hidden) with those of another adapter for the words that both have."""
    places = {word: place for place, word in enumerate(other_words)}
    mixed = own.detach().clone()
    for place, word in enumerate(own_words):
        if word in places:
            mixed[place] = others[places[word]]
    return mixed
