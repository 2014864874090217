"""Evidence maps: where the model looks while it writes the address of a defect.

The map of an answer is the attention of one layer of the language model, averaged over its heads and over the two
positions that generate the column's digit and the row's letter, on the visual tokens of the picture to inspect. Which
layer is chosen on validation rows (`choose_layer`). Nothing is smoothed: one tile of the map is one visual token.

Attention tells where information was taken from, not what was made of it: a map that lies on the defective pin shows
that the address was read there, and does not by itself prove why the pin was called defective. The shipped base was
taught where to look (two heads of its last layer, `make base`): the maps of the base alone tell what the adapter adds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pinspect.core.answers import Answer, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError, ModelError
from pinspect.core.layout import Address, Layout
from pinspect.core.prompts import PromptKind, without_answer
from pinspect.evaluation.metrics import wilson
from pinspect.model.batching import IGNORED
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

BATCH = 8  # plain attention keeps its weights, tokens x tokens a head: small batches keep it small
COLUMNS = (
    *("id", "file", "defect_mode", "defect_position", "named_position", "brightest_position"),
    *("agreement", "hit", "looked"),
)

Row = Mapping[str, object]


@dataclass(frozen=True)
class EvidenceMap:
    """Where one answer looked.

    weights: float32 (token rows, token columns), what each visual token of the last picture of the prompt got, sum 1;
    it covers the picture, margins included, evenly from its top left. looked: which share of all attention fell on the
    picture. brightest: the pin whose cell got most. named: the address that the answer tells. defect: the pin that is
    defective, if one is. agreement: which share of the inspected composite's weight lies in the cell of `defect`, 0..1;
    hit: whether that is the brightest pin. Both are None where no pin is defective.
    """

    weights: np.ndarray
    looked: float
    brightest: Address
    named: Address
    defect: Address | None
    agreement: float | None
    hit: bool | None


def choose_layer(inspector: Inspector, rows: Sequence[Row], images: str | Path, contract: AnswerContract) -> int:
    """The layer whose maps agree best with the defective pins of `rows`, counted from 0; the last of equal ones.

    rows: zero-shot rows of the validation split, whose labels are taken for answers. Without a defective one among them
    the last layer is taken. Raises ModelError as `attention_maps` does.
    """
    layers = _layer_count(inspector)
    answers = {str(row["id"]): str(row["answer"]) for row in rows}
    found = _maps(inspector, rows, answers, images, contract, range(layers))
    agreed = [
        [maps[layer].agreement for maps in found.values() if maps[layer].agreement is not None]
        for layer in range(layers)
    ]
    if not agreed[0]:
        return layers - 1
    return max(range(layers), key=lambda layer: (np.mean(agreed[layer]), layer))


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
    """The map of every row whose answer names an address, by row id.

    answers: row id -> what the model answered; it is read once more, not generated again. images: the folder of the
    rows' pictures. adapted: False switches the adapter off, which shows what the base alone looks at for these words.
    Raises ModelError where the attention of the model's family cannot be read, or the grid of its visual tokens is
    not known.
    """
    with contextlib.nullcontext() if adapted else inspector.model.disable_adapter():
        found = _maps(inspector, rows, answers, images, contract, [layer])
    return {identity: maps[layer] for identity, maps in found.items()}


def evidence_table(maps: Mapping[str, EvidenceMap], rows: Sequence[Row], contract: AnswerContract) -> pd.DataFrame:
    """One line a map, columns `COLUMNS`; agreement and hit are empty where no pin is defective."""
    lines = []
    for row in rows:
        found = maps.get(str(row["id"]))
        if found is not None:
            mode = _label(row, contract).defect_mode
            places = (str(found.defect or ""), str(found.named), str(found.brightest))
            lines.append((row["id"], row["file"], mode, *places, found.agreement, found.hit, found.looked))
    return pd.DataFrame(lines, columns=list(COLUMNS))


def evidence_summary(
    table: pd.DataFrame, layout: Layout, confidence: float, unadapted: pd.DataFrame | None = None
) -> str:
    """The agreement of the maps with the defective pins, in words.

    Hits are the pointing game of Zhang et al. (Top-down neural attention by excitation backprop, IJCV 2018,
    doi:10.1007/s11263-017-1059-x): hits / (hits + misses), a hit being a maximum inside the object. The mean share
    inside the object is the energy-based pointing game of Wang et al. (Score-CAM, CVPR workshops 2020,
    doi:10.1109/CVPRW50498.2020.00020). table, unadapted: of `evidence_table`, with the adapter and without.
    """
    told = _agreement(table, layout, confidence)
    if unadapted is None or not len(table):
        return told
    return f"{told} The base alone, reading the same answers without the adapter: {_counted(unadapted, confidence)}."


def _maps(
    inspector: Inspector,
    rows: Sequence[Row],
    answers: Mapping[str, str],
    images: str | Path,
    contract: AnswerContract,
    layers: Sequence[int],
) -> dict[str, dict[int, EvidenceMap]]:
    """The maps of `layers` for every row whose answer names an address: row id -> layer -> map."""
    encoder = RowEncoder(inspector.processor, images)
    told = []
    for row in rows:
        named = _named(answers.get(str(row["id"]), ""), row, contract)
        if named is not None:
            told.append((row, named, _answered(row, answers[str(row["id"])])))
    told.sort(key=lambda one: len(encoder.chat(one[2]).input_ids))
    found = {}
    with _plain_attention(inspector):
        for start in range(0, len(told), BATCH):
            batch = told[start : start + BATCH]
            seen = _attention(
                inspector, encoder, [row for _, _, row in batch], [named for _, named, _ in batch], layers
            )
            for (row, named, _), by_layer in zip(batch, seen, strict=True):
                found[str(row["id"])] = {
                    layer: _map(weights, looked, row, named, contract) for layer, (weights, looked) in by_layer.items()
                }
    return found


def _map(weights: np.ndarray, looked: float, row: Row, named: Address, contract: AnswerContract) -> EvidenceMap:
    layout, defect = contract.layout, _label(row, contract).defect_position
    shares = cell_shares(weights, layout, composites=2 if row["kind"] == PromptKind.STACKED else 1)
    pins = shares[1:, 1:].ravel()
    brightest = layout.addresses[int(pins.argmax())]
    agreement = None if defect is None else float(pins[layout.index(defect)])
    hit = None if defect is None else brightest == defect
    return EvidenceMap(weights, looked, brightest, named, defect, agreement, hit)


def cell_shares(weights: np.ndarray, layout: Layout, composites: int = 1) -> np.ndarray:
    """Which share of the lowest composite's weight lies in each of its cells, margins included.

    weights: (token rows, token columns) over a picture of `composites` single composites, one above the other. Returns
    float64 (rows + 1, columns + 1), sum 1; a token that lies across cells is divided among them by area.
    """
    down = _overlap(weights.shape[0], composites * (len(layout.rows) + 1))
    across = _overlap(weights.shape[1], layout.columns + 1)
    shares = (down @ weights.astype(np.float64) @ across.T)[-(len(layout.rows) + 1) :]
    return shares / shares.sum()


def _overlap(tokens: int, cells: int) -> np.ndarray:
    """Which share of each of `tokens` equal parts of a length lies in each of `cells` equal parts: (cells, tokens)."""
    ends = np.arange(tokens + 1) / tokens * cells
    edges = np.arange(cells)[:, None]
    inside = np.minimum(ends[1:], edges + 1) - np.maximum(ends[:-1], edges)
    return np.clip(inside, 0, None) * tokens / cells


@torch.inference_mode()
def _attention(
    inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row], named: Sequence[Address], layers: Sequence[int]
) -> Iterator[dict[int, tuple[np.ndarray, float]]]:
    """For each of `rows`, which hold their answers: by layer, the weights on the last picture (sum 1) and the share of
    all attention that fell on it."""
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
        asked = _positions(inspector.processor.tokenizer, row, address, int(answered[index].nonzero()[0]))
        tokens = (batch["input_ids"][index] == image_token).nonzero()[:, 0][-grid[0] * grid[1] :]
        seen = {}
        for layer, weights in watched.items():
            on_picture = weights[index][:, asked].float().mean((0, 1))[tokens].cpu().numpy()
            looked = float(on_picture.sum())
            seen[layer] = ((on_picture / looked).reshape(grid).astype(np.float32), looked)
        yield seen


def _positions(tokenizer, row: Row, address: Address, answer_start: int) -> list[int]:
    """The positions in a chat that generate the first digit of the column and the letter of the row: those just before
    the tokens which hold them."""
    text = _answer_text(row)
    start = text.rindex(str(address))
    characters = (start + len("X:"), start + len(str(address)) - 1)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [
        answer_start - 1 + next(number for number, (low, high) in enumerate(spans) if low <= character < high)
        for character in characters
    ]


@contextlib.contextmanager
def _plain_attention(inspector: Inspector) -> Iterator[None]:
    """Within it the language model computes its attention so that the weights can be read."""
    decoder = _decoder(inspector)
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


@contextlib.contextmanager
def _watched(inspector: Inspector, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """What `layers` attend to in the next pass: layer -> (chats, heads, from, to)."""
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


def _decoder(inspector: Inspector) -> torch.nn.Module:
    """The language model inside; raises ModelError where its layers cannot be watched."""
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
        f"{inspector.model.config.model_type}: no evidence maps: they need attention that can be read and visual "
        "tokens on a known grid, as Qwen's families have"
    )


def _answered(row: Row, answer: str) -> dict[str, object]:
    """`row` with what the model answered as its last turn."""
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


def _agreement(table: pd.DataFrame, layout: Layout, confidence: float) -> str:
    told = table[table["agreement"].notna()]
    if told.empty:
        return "No answer to a defective capture names an address: there is nothing to compare with the defective pins."
    cells = (len(layout.rows) + 1) * (layout.columns + 1)
    return (
        f"While it writes the address, the model looks {_counted(table, confidence)}. By chance it would be 1 in "
        f"{layout.pins}, and 1 part in {cells}."
    )


def _counted(table: pd.DataFrame, confidence: float) -> str:
    told = table[table["agreement"].notna()]
    hits, n = int(told["hit"].astype(bool).sum()), len(told)
    low, high = wilson(hits, n, confidence)
    return (
        f"most at the defective pin for {hits} of {n} defective captures ({100 * low:.0f} to {100 * high:.0f} %), with "
        f"{100 * told['agreement'].mean():.0f} % of its attention to the picture inside that pin's cell on average"
    )
