"""Evidence maps: where the model looks while it writes the address of a defect.

The map of an answer is the attention of one layer of the language model to the visual tokens of the inspected picture,
averaged over the heads and over the two positions that generate the digit of the column and the letter of the row.
Validation rows decide which layer (`choose_layer`). Nothing is smoothed: one tile of the map is one visual token.

Attention shows where information was taken from, not what was concluded from it. A map that lies on the defective pin
shows that the address was read there; it does not prove why the pin was called defective. The shipped base was taught
where to look (two heads of its last layer, `make base`), so maps of the base alone show what the adapter adds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pinspect.core.answers import Answer, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError, ModelError
from pinspect.core.layout import Address, Layout
from pinspect.core.prompts import PromptKind, without_answer
from pinspect.core.rows import Row
from pinspect.examination.results import EVIDENCE_COLUMNS, EvidenceMap
from pinspect.model.batching import IGNORED
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

BATCH = 8  # eager attention keeps tokens x tokens weights per head, so batches are small


def choose_layer(inspector: Inspector, rows: Sequence[Row], images: str | Path, contract: AnswerContract) -> int:
    """Choose the layer whose maps agree best with the defective pins of `rows`.

    Args:
        inspector: The loaded model.
        rows: Zero-shot rows of the validation split, whose labels stand in for answers.
        images: Folder of the rows' pictures.
        contract: The answer contract.

    Returns:
        Number of the layer, counted from 0: the last of equally good layers, and the last layer of all if no row is
        defective.

    Raises:
        ModelError: As in `attention_maps`.
    """
    layers = _layer_count(inspector)
    answers = {str(row["id"]): str(row["answer"]) for row in rows}
    by_row = _maps(inspector, rows, answers, images, contract, range(layers))
    agreements = [
        [agreement for maps in by_row.values() if (agreement := maps[layer].agreement) is not None]
        for layer in range(layers)
    ]
    if not agreements[0]:
        return layers - 1
    return max(range(layers), key=lambda layer: (float(np.mean(agreements[layer])), layer))


def attention_maps(
    inspector: Inspector,
    rows: Sequence[Row],
    answers: Mapping[str, str],
    images: str | Path,
    contract: AnswerContract,
    *,
    layer: int,
    adapted: bool = True,
) -> dict[str, EvidenceMap]:
    """Map the attention of every row whose answer names an address.

    Args:
        inspector: The loaded model.
        rows: Rows of the chat dataset.
        answers: Row id -> the model's answer. The model reads the answer again and does not generate it again.
        images: Folder of the rows' pictures.
        contract: The answer contract.
        layer: Number of the layer, counted from 0.
        adapted: False switches the adapter off, which shows where the base alone looks for the same words.

    Returns:
        Row id -> map.

    Raises:
        ModelError: The attention of the model's family cannot be read, or the grid of its visual tokens is not known.
    """
    with contextlib.nullcontext() if adapted else inspector.model.disable_adapter():
        by_row = _maps(inspector, rows, answers, images, contract, [layer])
    return {row_id: maps[layer] for row_id, maps in by_row.items()}


def evidence_table(maps: Mapping[str, EvidenceMap], rows: Sequence[Row], contract: AnswerContract) -> pd.DataFrame:
    """Return one line per map, columns `EVIDENCE_COLUMNS`; agreement and hit are empty where no pin is defective.

    Args:
        maps: Row id -> map.
        rows: Rows of the chat dataset, in the order of the lines.
        contract: The answer contract.
    """
    lines = []
    for row in rows:
        evidence = maps.get(str(row["id"]))
        if evidence is not None:
            mode = _label(row, contract).defect_mode
            places = (str(evidence.defect or ""), str(evidence.named), str(evidence.brightest))
            lines.append((row["id"], row["file"], mode, *places, evidence.agreement, evidence.hit, evidence.looked))
    return pd.DataFrame(lines, columns=list(EVIDENCE_COLUMNS))


def _maps(
    inspector: Inspector,
    rows: Sequence[Row],
    answers: Mapping[str, str],
    images: str | Path,
    contract: AnswerContract,
    layers: Sequence[int],
) -> dict[str, dict[int, EvidenceMap]]:
    """Return the maps of `layers` for every row whose answer names an address: row id -> layer -> map."""
    encoder = RowEncoder(inspector.processor, images)
    located = []
    for row in rows:
        named = _named(answers.get(str(row["id"]), ""), row, contract)
        if named is not None:
            located.append((row, named, _with_answer(row, answers[str(row["id"])])))
    located.sort(key=lambda item: len(encoder.chat(item[2]).input_ids))
    maps = {}
    with _eager_attention(inspector):
        for start in range(0, len(located), BATCH):
            batch = located[start : start + BATCH]
            attention = _attention(
                inspector, encoder, [row for _, _, row in batch], [named for _, named, _ in batch], layers
            )
            for (row, named, _), by_layer in zip(batch, attention, strict=True):
                maps[str(row["id"])] = {
                    layer: _map(weights, looked, row, named, contract) for layer, (weights, looked) in by_layer.items()
                }
    return maps


def _map(weights: np.ndarray, looked: float, row: Row, named: Address, contract: AnswerContract) -> EvidenceMap:
    layout, defect = contract.layout, _label(row, contract).defect_position
    shares = cell_shares(weights, layout, composites=2 if row["kind"] == PromptKind.STACKED else 1)
    pins = shares[1:, 1:].ravel()
    brightest = layout.addresses[int(pins.argmax())]
    agreement = None if defect is None else float(pins[layout.index(defect)])
    hit = None if defect is None else brightest == defect
    return EvidenceMap(weights, looked, brightest, named, defect, agreement, hit)


def cell_shares(weights: np.ndarray, layout: Layout, composites: int = 1) -> np.ndarray:
    """Return the share of the lowest composite's attention in each of its cells, margins included.

    Args:
        weights: (token rows, token columns) over a picture of `composites` single composites, one above the other.
        layout: Layout of the pins.
        composites: Number of single composites in the picture.

    Returns:
        float64 (rows + 1, columns + 1), sum 1. A token that lies across cells is divided among the cells by area.
    """
    down = _overlap(weights.shape[0], composites * (len(layout.rows) + 1))
    across = _overlap(weights.shape[1], layout.columns + 1)
    shares = (down @ weights.astype(np.float64) @ across.T)[-(len(layout.rows) + 1) :]
    return shares / shares.sum()


def _overlap(tokens: int, cells: int) -> np.ndarray:
    """Return the share of each of `tokens` equal parts of a length in each of `cells` equal parts: (cells, tokens)."""
    ends = np.arange(tokens + 1) / tokens * cells
    edges = np.arange(cells)[:, None]
    inside = np.minimum(ends[1:], edges + 1) - np.maximum(ends[:-1], edges)
    return np.clip(inside, 0, None) * tokens / cells


@torch.inference_mode()
def _attention(
    inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row], named: Sequence[Address], layers: Sequence[int]
) -> Iterator[dict[int, tuple[np.ndarray, float]]]:
    """Yield for each row: layer -> weights on the last picture (sum 1), share of all attention on that picture."""
    batch = encoder.batch(rows, answers=True)
    if "image_grid_thw" not in batch:
        raise _unreadable(inspector)
    answered = batch.pop("labels") != IGNORED
    image_token, merge = inspector.processor.image_token_id, inspector.processor.image_processor.merge_size
    last = np.cumsum([len(row["images"]) for row in rows]) - 1
    grids = (batch["image_grid_thw"][last, 1:] // merge).tolist()
    with _watched(inspector, layers) as watched:
        inspector.model(**{name: tensor.to(inspector.device) for name, tensor in batch.items()}, use_cache=False)
    if set(watched) != set(layers):
        raise _unreadable(inspector)
    for index, (row, address, grid) in enumerate(zip(rows, named, grids, strict=True)):
        positions = _positions(inspector.processor.tokenizer, row, address, int(answered[index].nonzero()[0]))
        tokens = (batch["input_ids"][index] == image_token).nonzero()[:, 0][-grid[0] * grid[1] :]
        by_layer = {}
        for layer, weights in watched.items():
            on_picture = weights[index][:, positions].float().mean((0, 1))[tokens].cpu().numpy()
            looked = float(on_picture.sum())
            by_layer[layer] = ((on_picture / looked).reshape(grid).astype(np.float32), looked)
        yield by_layer


def _positions(tokenizer, row: Row, address: Address, answer_start: int) -> list[int]:
    """Return the positions that generate the first digit of the column and the letter of the row.

    A position generates the token after it.
    """
    text = _answer_text(row)
    start = text.rindex(str(address))
    characters = (start + len("X:"), start + len(str(address)) - 1)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        answer_start - 1 + next(number for number, (low, high) in enumerate(spans) if low <= character < high)
        for character in characters
    ]


@contextlib.contextmanager
def _eager_attention(inspector: Inspector) -> Iterator[None]:
    """Let the language model compute its attention in a way that exposes the weights."""
    decoder = _decoder(inspector)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


@contextlib.contextmanager
def _watched(inspector: Inspector, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Yield a mapping that the next pass fills: layer -> attention weights (chats, heads, from, to)."""
    watched: dict[int, torch.Tensor] = {}

    def keep(layer: int):
        def hook(_module, _inputs, output) -> None:
            if isinstance(output, tuple) and len(output) > 1 and output[1] is not None:
                watched[layer] = output[1]

        return hook

    hooks = [_decoder(inspector).layers[layer].self_attn.register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()


def _decoder(inspector: Inspector) -> Any:
    """Return the language model inside. Raise ModelError where its layers cannot be hooked."""
    model = inspector.model
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = whole.get_decoder() if hasattr(whole, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if layers is None or not all(hasattr(layer, "self_attn") for layer in layers):
        raise _unreadable(inspector)
    return decoder


def _layer_count(inspector: Inspector) -> int:
    return len(_decoder(inspector).layers)


def _unreadable(inspector: Inspector) -> ModelError:
    return ModelError(
        f"{inspector.model.config.model_type}: no evidence maps, because they need readable attention and visual "
        "tokens on a known grid, as the Qwen families have"
    )


def _with_answer(row: Row, answer: str) -> dict[str, object]:
    """Return `row` with the model's answer as its last turn."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {**row, "messages": [*without_answer(row["messages"]), turn]}


def _answer_text(row: Row) -> str:
    return row["messages"][-1]["content"][0]["text"]


def _label(row: Row, contract: AnswerContract) -> Answer:
    return contract.parse(str(row["answer"]), AnswerKind(row["answer_kind"]))


def _named(answer: str, row: Row, contract: AnswerContract) -> Address | None:
    try:
        return contract.parse(answer, AnswerKind(row["answer_kind"])).defect_position
    except AnswerFormatError:
        return None
