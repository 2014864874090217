"""What earlier answers leave for later ones: the beginnings of prompts as the model read them, and of answers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from pinspect.core.rows import Row
from pinspect.model.draft import Lead
from pinspect.model.loading import Inspector
from pinspect.model.readers import TreeReader
from pinspect.model.rows import RowEncoder

KEPT_BYTES = 2**26
_NO_LEAD = Lead()


@dataclass
class Head:
    """The head of a prompt, all before its last picture, as the model has read it.

    Attributes:
        layers: Keys and values of each layer, (heads, tokens, head size) each.
        lead: How the last answer to a prompt with this head began.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    lead: Lead = _NO_LEAD

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)


class AnswerMemory:
    """Keeps the heads that were used last, up to 64 MB. Use it with one model, whose weights do not change.

    Attributes:
        lead: How the last answer began.
    """

    def __init__(self) -> None:
        self.lead = Lead()
        self._heads: OrderedDict[Any, Head] = OrderedDict()
        self._lock = threading.Lock()

    def heads(self, inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row]) -> list[Head]:
        """Return the head of every row; heads that are not kept are read in one batch."""
        with self._lock:
            return self._heads_of(inspector, encoder, rows)

    def _heads_of(self, inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row]) -> list[Head]:
        keys = [encoder.head(row) for row in rows]
        heads = {key: self._heads.pop(key) for key in set(keys) & self._heads.keys()}
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in heads}
        if missing:
            cache = TreeReader(inspector, encoder.heads(list(missing.values()))).cache
            for number, key in enumerate(missing):
                length = len(key[0])
                heads[key] = Head(
                    [
                        (layer.keys[number, :, -length:].clone(), layer.values[number, :, -length:].clone())
                        for layer in cache.layers
                    ]
                )
        self._heads |= heads
        kept = sum(head.size for head in self._heads.values())
        while kept > KEPT_BYTES:
            kept -= self._heads.popitem(last=False)[1].size
        return [heads[key] for key in keys]

    def leads(self, heads: Sequence[Head]) -> list[Lead]:
        """Return how the answer after each head will probably begin."""
        return [head.lead if head.lead.tokens else self.lead for head in heads]

    def remember(self, heads: Sequence[Head], leads: Sequence[Lead | None]) -> None:
        """Remember how answers began, also those of rows without a head."""
        for head, lead in zip(heads, leads, strict=bool(heads)):
            head.lead = head.lead.after(lead)
        self.lead = self.lead.after(leads[-1])


def cache_of(heads: Sequence[Head]) -> DynamicCache:
    """Return the cache of a batch whose rows have these heads, padded on the left to the longest."""
    longest = max(head.layers[0][0].shape[1] for head in heads)

    def stacked(layer: int, part: int) -> torch.Tensor:
        tensors = [head.layers[layer][part] for head in heads]
        return torch.stack([F.pad(tensor, (0, 0, longest - tensor.shape[1], 0)) for tensor in tensors])

    cache = DynamicCache()
    for layer in range(len(heads[0].layers)):
        cache.update(stacked(layer, 0), stacked(layer, 1), layer)
    return cache
