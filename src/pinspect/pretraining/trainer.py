"""The losses of the lessons, with throw-away heads that give every visual token a target."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from pinspect.core.layout import Layout
from pinspect.model.batching import IGNORED
from pinspect.model.loading import patches_as_products
from pinspect.pretraining.lessons import IMAGE_TYPES, MARGIN_CLASS
from pinspect.pretraining.pretext import CELL_CLASSES

GUIDED_HEADS = 2  # attention heads of the last layer that are trained to look at the changed pin
CHANGED_ADDRESS_WEIGHT = 12.0  # a changed pin is one of forty tokens, and the only one whose address an answer needs
_DECIDED_TOKENS = 8  # tokens of an answer that the form does not determine
Figures = dict[str, float]


class ThrowAwayHeads(nn.Module):
    """Linear heads on every visual token; they serve the training and are not part of the base."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.image_type = nn.Linear(width, len(IMAGE_TYPES))
        self.seen = nn.Linear(width, len(CELL_CLASSES) + 1)
        self.mark = nn.Linear(width, layout.columns + len(layout.rows))
        self.compared = nn.Linear(width, len(CELL_CLASSES) + 1)
        self.seen_address = _AddressHeads(width, layout)
        self.compared_address = _AddressHeads(width, layout)


class _AddressHeads(nn.Module):
    """Column and row of every visual token."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.column = nn.Linear(width, layout.columns + 1)
        self.row = nn.Linear(width, len(layout.rows) + 1)


class BaseTrainer:
    """The model, its throw-away heads and the losses of the lessons.

    Args:
        model: The base.
        layout: The pins.
        known: bool (vocabulary,), which tokens occur in the pre-text. The other tokens are excluded from the softmax,
            which would only push them away from every other embedding.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, layout: Layout, known: torch.Tensor) -> None:
        self.model, self.layout = model, layout
        text_config: Any = model.config.text_config
        self.heads = ThrowAwayHeads(text_config.hidden_size, layout)
        self.unknown = ~known
        self.weights = torch.ones(len(CELL_CLASSES) + 1)
        self.weights[0] = 0.3
        self.weights[MARGIN_CLASS] = 0.05
        self.columns = torch.arange(layout.columns + 1).repeat(len(layout.rows) + 1)
        self.rows = torch.arange(len(layout.rows) + 1).repeat_interleave(layout.columns + 1)
        patches_as_products(model)
        # Eager attention returns its weights, which the look loss needs, and its backward pass is faster in bfloat16.
        model.set_attn_implementation("eager")
        self._captured = threading.local()  # several threads may compute losses at the same time
        layers: Any = model.model.language_model.layers
        model.model.visual.register_forward_hook(self._keep("seen", lambda out: _joined(out.pooler_output)))
        layers[-2].register_forward_hook(self._keep("compared", lambda out: out))
        layers[-1].self_attn.register_forward_hook(self._keep("attention", lambda out: out[1]))

    def see(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Figures]:
        """Return the loss of the first lesson and its figures.

        Args:
            batch: See `Lessons.see`.
        """
        return self._seen_loss(visual_tokens(self.model, batch), batch)

    def compare(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Figures]:
        """Return the loss of the second lesson and its figures: answers, comparison at the inspected tokens, looks.

        Args:
            batch: See `Lessons.compare`.
        """
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
        hidden = self.model.model(**{name: batch[name] for name in names}, use_cache=False).last_hidden_state
        captured = vars(self._captured)
        seen, figures = self._seen_loss(captured["seen"], batch)
        at_images = captured["compared"][batch["mm_token_type_ids"].bool()].view(*batch["seen"].shape, -1)
        tokens, targets = at_images[batch["last"]].flatten(0, 1), batch["seen"][batch["last"]]
        address = self._address_loss(self.heads.compared_address, tokens, targets)
        logits, targets = self.heads.compared(tokens), targets.flatten()
        compared = F.cross_entropy(logits, targets, weight=self.weights)
        look = _look_loss(captured["attention"], batch["looks"])
        answer, exact = self._answer_loss(hidden, batch["labels"])
        figures |= {
            "compared": compared.item(),
            "looked": look.item(),
            "answer": answer.item(),
            "exact": exact,
            "compared_address": address.item(),
        }
        total = answer + compared + 0.3 * look + 0.5 * seen + 0.5 * address
        return total, figures | _recall(logits, targets, "cmp")

    def _keep(self, name: str, part: Callable[[Any], Any]) -> Callable[..., None]:
        """Return a forward hook that stores a part of a module's output for the thread that computes it."""
        return lambda _module, _inputs, output: setattr(self._captured, name, part(output))

    def _seen_loss(self, tokens: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Figures]:
        targets, types = batch["seen"], batch["types"]
        logits = self.heads.seen(tokens)
        flat = targets.flatten()
        seen = F.cross_entropy(logits, flat, weight=self.weights)
        address = self._address_loss(self.heads.seen_address, tokens, targets)
        # Every pin's token predicts the image type, which the first line of an answer names. Margins show no pin.
        pins = flat != MARGIN_CLASS
        typed = F.cross_entropy(self.heads.image_type(tokens[pins]), types.repeat_interleave(targets.shape[1])[pins])
        # The tokens of the margin predict their marks: columns in the first row, then rows in the first column.
        cells = tokens.view(len(targets), len(self.layout.rows) + 1, self.layout.columns + 1, -1)
        margin = torch.cat([cells[:, 0, 1:], cells[:, 1:, 0]], dim=1)
        mark = F.cross_entropy(self.heads.mark(margin).flatten(0, 1), batch["marks"].flatten())
        figures = {"seen": seen.item(), "address": address.item(), "image_type": typed.item(), "mark": mark.item()}
        return seen + 0.3 * address + 0.3 * typed + 0.3 * mark, figures | _recall(logits, flat, "see")

    def _address_loss(self, heads: _AddressHeads, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of predicting column and row of every token; changed pins have the largest weight."""
        flat = targets.flatten()
        weight = torch.where((flat > 0) & (flat < MARGIN_CLASS), CHANGED_ADDRESS_WEIGHT, 1.0)
        n = len(targets)
        losses = F.cross_entropy(heads.column(tokens).float(), self.columns.repeat(n), reduction="none")
        losses = losses + F.cross_entropy(heads.row(tokens).float(), self.rows.repeat(n), reduction="none")
        return (losses * weight).sum() / weight.sum()

    def _answer_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the loss of the answers, and the share of answers in which every token is right."""
        shifted = labels[:, 1:]
        in_answer = shifted != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][in_answer]).float().masked_fill(self.unknown, float("-inf"))
        losses = F.cross_entropy(logits, shifted[in_answer], reduction="sum")
        errors = torch.zeros(len(labels)).index_add_(
            0, in_answer.nonzero()[:, 0], (logits.argmax(-1) != shifted[in_answer]).float()
        )
        answered = in_answer.any(1)
        loss = losses / (_DECIDED_TOKENS * answered.sum().clamp(min=1))
        return loss, (errors[answered] == 0).float().mean().item()


def visual_tokens(model: Qwen3VLForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the visual tokens of a batch of pictures.

    Args:
        model: The base.
        batch: `pixel_values` and `image_grid_thw`.

    Returns:
        (pictures * tokens, width).
    """
    output = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"], return_dict=True)
    return _joined(output.pooler_output)


def _look_loss(attention: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """Return the mean -log attention (chats, heads, from, to) of the guided heads to the changed pin."""
    chat, position, token = looks.T
    weights = attention[chat, :GUIDED_HEADS, position, token].float()
    return -torch.log(weights + 1e-6).mean() if len(looks) else attention.sum() * 0


def _joined(tokens: Any) -> torch.Tensor:
    return torch.cat(tokens) if isinstance(tokens, list | tuple) else tokens


def _recall(logits: torch.Tensor, targets: torch.Tensor, name: str) -> Figures:
    hits = logits.argmax(-1) == targets
    return {
        f"{name}/{label}": hits[targets == index].float().mean().item()
        for index, label in enumerate(CELL_CLASSES)
        if (targets == index).any()
    }
