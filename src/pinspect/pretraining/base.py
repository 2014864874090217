"""The small default base: Qwen3-VL's architecture from a config, trained on pre-text alone.

    python -m pinspect.pretraining.base --out models/base --work build/base

Two lessons, each with throw-away heads that give every visual token something to learn:

1. see: the vision tower alone; every merged token names what happened to its pin, its own column and row, and the type
   of its picture;
2. compare: the language model, while the vision tower rests; at the inspected picture's tokens it tells what changed
   against the reference and where, it answers in the contract's five lines, in neutral words, and two heads of its
   last layer are shown where to look while it writes what changed and where. docs/LOG.md tells what failed without.

The work is saved as it goes; the same command picks up a stopped run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from pinspect.composites import drawing as composite
from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerContract, AnswerKind
from pinspect.core.files import atomic_path
from pinspect.core.layout import Address, Layout
from pinspect.core.params import load_params
from pinspect.model.batching import IGNORED, EncodedChat, collate, encode_chat, prepared_ahead
from pinspect.model.processor import build_processor, patchify, train_tokenizer
from pinspect.pretraining import pretext
from pinspect.pretraining.pretext import CELL_CLASSES, SetupPool

PATCH, MERGE = 32, 2
VOCABULARY = 512
MARGIN_CLASS = len(CELL_CLASSES)
STAR_CLASS = CELL_CLASSES.index("star")
IMAGE_TYPES = tuple(f"{shape}_{view}" for shape in pretext.SHAPES for view in VIEWS)
LESSONS = ("see", "compare")
VISUAL_LENGTH = 2.0  # of a visual token where the language model takes it over
GUIDED_HEADS = 2  # of the last layer
CHAT_KINDS = ("star", "two_image", "one_shot", "one_image", "stacked")
CHAT_SHARES = (0.07, 0.46, 0.16, 0.12, 0.19)
CHANGED_REFERENCES = 0.25  # of the second lesson's references: the odd pin is not always in the inspected picture
CHANGED_ADDRESS_WEIGHT = 12.0  # a changed pin's token is one of forty, and the only one whose address is asked


@dataclass(frozen=True)
class Curriculum:
    """Steps, batch sizes and learning rates of the lessons."""

    see_steps: int = 800
    see_images: int = 40
    see_rate: float = 1.5e-3
    muon_rate: float = 0.02
    compare_steps: int = 500
    compare_rate: float = 2e-3
    chats: int = 20
    warmup: int = 40
    seed: int = 5


def build_config(tokenizer) -> Qwen3VLConfig:
    """The default base's shape: about 3.3 M parameters, one 64 px visual token a pin."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
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


class _AddressHeads(nn.Module):
    """Column and row of every visual token."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.column = nn.Linear(width, layout.columns + 1)
        self.row = nn.Linear(width, len(layout.rows) + 1)


class ThrowAwayHeads(nn.Module):
    """Linear heads on every visual token; they teach, and are not part of the base."""

    def __init__(self, width: int, layout: Layout) -> None:
        super().__init__()
        self.image_type = nn.Linear(width, len(IMAGE_TYPES))
        self.seen = nn.Linear(width, len(CELL_CLASSES) + 1)
        self.compared = nn.Linear(width, len(CELL_CLASSES) + 1)
        self.seen_address = _AddressHeads(width, layout)
        self.compared_address = _AddressHeads(width, layout)


def cell_targets(cells: np.ndarray, layout: Layout) -> torch.Tensor:
    """Class of every merged token of a single composite, margins included.

    cells: integers (n, pins). Returns int64 (n, tokens) in reading order; the margins are MARGIN_CLASS.
    """
    tokens = np.full((len(cells), len(layout.rows) + 1, layout.columns + 1), MARGIN_CLASS)
    tokens[:, 1:, 1:] = cells.reshape(len(cells), len(layout.rows), layout.columns)
    return torch.from_numpy(tokens.reshape(len(cells), -1)).long()


class Lessons:
    """Draws batches of pre-text from the rendered pool."""

    def __init__(self, pool: list[SetupPool], processor, layout: Layout, cell: int) -> None:
        self.pool, self.processor, self.layout, self.cell = pool, processor, layout, cell
        self.image_tokens = (len(layout.rows) + 1) * (layout.columns + 1)
        self._chats: dict[tuple, EncodedChat] = {}
        self._none = np.zeros(layout.pins, np.int8)

    def see(self, rng: np.random.Generator, images: int) -> dict:
        """Pictures and the class of each of their cells; about every tenth is a star image, some are stacked."""
        drawn = _Pictures()
        while len(drawn.cells) < images:
            group, view = self._group(rng), str(rng.choice(VIEWS))
            draw = rng.random()
            if draw < 0.1:
                self._star(rng, group, view, drawn)
            elif draw < 0.2:
                self._stack(group, view, rng.integers(len(group.cells)), rng, drawn)
            else:
                self._inspected(group, view, rng.integers(len(group.cells)), drawn)
        return drawn.batch(self.layout)

    def compare(self, rng: np.random.Generator, chats: int) -> dict:
        """Chats of every prompt kind, and for each image the class of its cells."""
        drawn, encoded, last, told = _Pictures(), [], [], []
        for _ in range(chats):
            group, view = self._group(rng), str(rng.choice(VIEWS))
            kind = str(rng.choice(CHAT_KINDS, p=CHAT_SHARES))
            draw = {"star": self._star_chat, "one_image": self._one_image_chat, "stacked": self._stacked_chat}
            encoded.append(draw.get(kind, self._two_image_chat)(rng, group, view, kind, drawn))
            last.append(len(drawn.cells) - 1)
            told.append(_only_pin(drawn.cells[-1]))
        tokenizer = self.processor.tokenizer
        batch = collate(encoded, tokenizer.pad_token_id, self.processor.image_token_id, answers=True)
        return batch | drawn.batch(self.layout) | {"last": torch.tensor(last), "looks": self._looks(batch, told)}

    def _looks(self, batch: dict, told: list[int | None]) -> torch.Tensor:
        """Where an answer is written and what it should look at: int64 (looks, 3) of chat, position, image token.

        The positions are those after which the mode, the column and the row follow, in answers that name one pin; the
        image token is that pin's, in the last image.
        """
        tokenizer = self.processor.tokenizer
        colon, arrow, mode = tokenizer.convert_tokens_to_ids([":", "->", "\u0120mode"])
        looks = []
        for chat, (ids, labels, pin) in enumerate(zip(batch["input_ids"], batch["labels"], told, strict=True)):
            if pin is None:
                continue
            ahead = labels != IGNORED
            asked = ahead & ((ids == colon) | ((ids == arrow) & (ids.roll(1) == mode)))
            start = int(batch["mm_token_type_ids"][chat].nonzero()[-self.image_tokens])
            row, column = divmod(pin, self.layout.columns)
            token = start + (row + 1) * (self.layout.columns + 1) + column + 1
            looks += [(chat, int(position), token) for position in asked.nonzero()[:, 0]]
        return torch.tensor(looks, dtype=torch.long).view(-1, 3)

    def _group(self, rng: np.random.Generator) -> SetupPool:
        return self.pool[rng.integers(len(self.pool))]

    def _star(self, rng, group: SetupPool, view: str, drawn: _Pictures) -> Address:
        """Draw a star image; returns the star's address."""
        picture = pretext.decode(group.references[view][rng.integers(len(group.references[view]))])
        pin = int(rng.integers(self.layout.pins))
        address = self.layout.addresses[pin]
        starred = self._none.copy()
        starred[pin] = STAR_CLASS
        starred_picture = composite.draw_star(picture, address, self.layout, self.cell)
        drawn.add(starred_picture, starred, f"{group.shape}_{view}")
        return address

    def _reference(self, rng, group: SetupPool, view: str, drawn: _Pictures, changed_share: float = 0.0) -> None:
        """Draw a reference. `changed_share` of them have changed pins themselves, which no answer tells of: an answer
        is about the inspected picture alone."""
        if changed_share and rng.random() < changed_share:
            self._inspected(group, view, rng.integers(len(group.cells)), drawn)
            return
        picture = pretext.decode(group.references[view][rng.integers(len(group.references[view]))])
        drawn.add(picture, self._none, f"{group.shape}_{view}")

    def _inspected(self, group: SetupPool, view: str, index: int, drawn: _Pictures) -> None:
        drawn.add(pretext.decode(group.inspected[view][index]), group.cells[index], f"{group.shape}_{view}")

    def _stack(self, group: SetupPool, view: str, index: int, rng, drawn: _Pictures, changed_share=0.0) -> None:
        self._reference(rng, group, view, drawn, changed_share)
        self._inspected(group, view, index, drawn)
        drawn.stack()

    def _star_chat(self, rng, group, view, kind, drawn) -> EncodedChat:
        address = self._star(rng, group, view, drawn)
        answer = pretext.neutral_star(self.layout, group.shape, view, address)
        return self._encode((kind, view, answer), lambda: prompts.two_image(view, None, answer)[:2], [1])

    def _two_image_chat(self, rng, group, view, kind, drawn) -> EncodedChat:
        star = None
        if kind == "one_shot":
            address = self._star(rng, group, view, drawn)
            star = pretext.neutral_star(self.layout, group.shape, view, address)
        index = rng.integers(len(group.cells))
        self._reference(rng, group, view, drawn, CHANGED_REFERENCES)
        self._inspected(group, view, index, drawn)
        spoken = self._spoken(group, view, index, AnswerKind.COMPARISON)
        images = [1] * (2 if star is None else 3)
        return self._encode((kind, view, star, spoken), lambda: prompts.two_image(view, spoken, star), images)

    def _one_image_chat(self, rng, group, view, kind, drawn) -> EncodedChat:
        index = rng.integers(len(group.cells))
        self._inspected(group, view, index, drawn)
        spoken = self._spoken(group, view, index, AnswerKind.DISCRIMINATION)
        return self._encode((kind, view, spoken), lambda: prompts.one_image(view, spoken), [1])

    def _stacked_chat(self, rng, group, view, kind, drawn) -> EncodedChat:
        worked = None
        single = np.flatnonzero((group.cells > 0).sum(1) == 1)
        if len(single) and rng.random() < 1 / 3:
            index = rng.choice(single)
            self._stack(group, view, index, rng, drawn)
            worked = self._spoken(group, view, index, AnswerKind.COMPARISON)
        index = rng.integers(len(group.cells))
        self._stack(group, view, index, rng, drawn, CHANGED_REFERENCES)
        spoken = self._spoken(group, view, index, AnswerKind.COMPARISON)
        images = [2] if worked is None else [2, 2]
        return self._encode((kind, view, worked, spoken), lambda: prompts.stacked(view, spoken, worked), images)

    def _spoken(self, group: SetupPool, view: str, index: int, kind: AnswerKind) -> str | None:
        # Where several pins changed no single answer is right: the throw-away heads learn from the picture alone.
        return pretext.neutral_answer(self.layout, group.shape, view, group.cells[index], kind)

    def _encode(self, key: tuple, messages, images: list[int]) -> EncodedChat:
        """The encoded chat of `messages`; images: how many pictures each of its images is stacked of."""
        if key not in self._chats:
            neutral = pretext.neutral_messages(messages())
            self._chats[key] = encode_chat(self.processor, neutral, [self.image_tokens * many for many in images])
        return self._chats[key]


def _only_pin(cells: np.ndarray) -> int | None:
    """The one pin that is not as it should be; None where there is none or more than one."""
    changed = np.flatnonzero(cells)
    return int(changed[0]) if len(changed) == 1 else None


class _Pictures:
    """The pictures of a batch. Two that are stacked have the patches of one picture after the other: in patches a stack
    differs from its halves by its grid alone."""

    def __init__(self) -> None:
        self.cells: list[np.ndarray] = []
        self._pictures: list[np.ndarray] = []
        self._types: list[int] = []
        self._heights: list[int] = []  # of each image, in pictures

    def add(self, picture: np.ndarray, cells: np.ndarray, image_type: str) -> None:
        """One more picture (uint8 (H, W, 3)), what happened to each of its pins, and of what type it is."""
        self._pictures.append(picture)
        self._types.append(IMAGE_TYPES.index(image_type))
        self.cells.append(cells)
        self._heights.append(1)

    def stack(self) -> None:
        """Make one image of the last two pictures, the earlier one above."""
        self._heights[-2:] = [2]

    def batch(self, layout: Layout) -> dict[str, torch.Tensor]:
        """`pixel_values` and `image_grid_thw` as Qwen3-VL wants them, `seen`, the class of every merged token: int64
        (pictures, tokens), and `types`: int64 (pictures,)."""
        images = torch.from_numpy(np.stack(self._pictures))
        rows, columns = images.shape[1] // PATCH, images.shape[2] // PATCH
        return {
            "pixel_values": patchify(images, PATCH, MERGE),
            "image_grid_thw": torch.tensor([[1, rows * height, columns] for height in self._heights]),
            "seen": cell_targets(np.stack(self.cells), layout),
            "types": torch.tensor(self._types),
        }


class BaseTrainer:
    """The model, its throw-away heads and the losses of the lessons."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, layout: Layout, known: torch.Tensor) -> None:
        self.model, self.layout = model, layout
        self.heads = ThrowAwayHeads(model.config.text_config.hidden_size, layout)
        # Words that no pre-text uses stay out of the softmax: they would only be pushed away from everything.
        self.unknown = ~known
        self.weights = torch.ones(len(CELL_CLASSES) + 1)
        self.weights[0] = 0.3
        self.weights[MARGIN_CLASS] = 0.05
        columns = torch.arange(layout.columns + 1).repeat(len(layout.rows) + 1)
        rows = torch.arange(len(layout.rows) + 1).repeat_interleave(layout.columns + 1)
        self.columns, self.rows = columns, rows
        # Only plain attention tells its weights, which the hint of where to look needs.
        model.model.language_model.set_attn_implementation("eager")

    def see(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the first lesson."""
        return self._seen_loss(visual_tokens(self.model, batch), batch["seen"], batch["types"])

    def _seen_loss(
        self, tokens: torch.Tensor, targets: torch.Tensor, types: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        logits = self.heads.seen(tokens)
        flat = targets.flatten()
        seen = F.cross_entropy(logits, flat, weight=self.weights)
        address = self._address_loss(self.heads.seen_address, tokens, targets)
        # A margin shows no pin; a token that shows one has to tell what the answer's first line asks.
        pins = flat != MARGIN_CLASS
        typed = F.cross_entropy(self.heads.image_type(tokens[pins]), types.repeat_interleave(targets.shape[1])[pins])
        figures = {"seen": seen.item(), "address": address.item(), "image_type": typed.item()}
        return seen + 0.3 * address + 0.3 * typed, figures | _recall(logits, flat, "see")

    def _address_loss(self, heads: _AddressHeads, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Every token names its column and its row; those that an answer may have to name count most."""
        flat = targets.flatten()
        weight = torch.where((flat > 0) & (flat < MARGIN_CLASS), CHANGED_ADDRESS_WEIGHT, 1.0)
        n = len(targets)
        losses = F.cross_entropy(heads.column(tokens).float(), self.columns.repeat(n), reduction="none")
        losses = losses + F.cross_entropy(heads.row(tokens).float(), self.rows.repeat(n), reduction="none")
        return (losses * weight).sum() / weight.sum()

    def compare(self, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of the second lesson: answers, comparison at the inspected tokens, and the first lesson's."""
        captured = {}
        layers = self.model.model.language_model.layers
        hooks = [
            self.model.model.visual.register_forward_hook(_keep(captured, "seen", lambda out: out.pooler_output)),
            layers[-1].register_forward_pre_hook(lambda _module, inputs: captured.__setitem__("compared", inputs[0])),
            layers[-1].self_attn.register_forward_hook(_keep(captured, "attention", lambda out: out[1])),
        ]
        hidden = self.model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            mm_token_type_ids=batch["mm_token_type_ids"],
            pixel_values=batch["pixel_values"],
            image_grid_thw=batch["image_grid_thw"],
            use_cache=False,
        ).last_hidden_state
        for hook in hooks:
            hook.remove()
        seen, figures = self._seen_loss(_joined(captured["seen"]), batch["seen"], batch["types"])
        at_images = captured["compared"][batch["mm_token_type_ids"].bool()].view(*batch["seen"].shape, -1)
        tokens, targets = at_images[batch["last"]].flatten(0, 1), batch["seen"][batch["last"]]
        address = self._address_loss(self.heads.compared_address, tokens, targets)
        logits, targets = self.heads.compared(tokens), targets.flatten()
        compared = F.cross_entropy(logits, targets, weight=self.weights)
        looked = _look_loss(captured["attention"], batch["looks"])
        answers, right = self._answer_loss(hidden, batch["labels"])
        figures |= {"compared": compared.item(), "looked": looked.item(), "answer": answers.item(), "exact": right}
        figures["told_address"] = address.item()
        total = answers + compared + 0.3 * looked + 0.5 * seen + 0.5 * address
        return total, figures | _recall(logits, targets, "cmp")

    def _answer_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, float]:
        shifted = labels[:, 1:]
        asked = shifted != IGNORED
        logits = self.model.lm_head(hidden[:, :-1][asked]).float().masked_fill(self.unknown, float("-inf"))
        losses = F.cross_entropy(logits, shifted[asked], reduction="sum")
        wrong = torch.zeros(len(labels)).index_add_(
            0, asked.nonzero()[:, 0], (logits.argmax(-1) != shifted[asked]).float()
        )
        told = asked.any(1)
        # An answer holds about eight tokens that are not a matter of form.
        return losses / (8 * told.sum().clamp(min=1)), (wrong[told] == 0).float().mean().item()


def visual_tokens(model: Qwen3VLForConditionalGeneration, batch: dict) -> torch.Tensor:
    """What the vision tower gives for a batch of pictures: (pictures * tokens, width)."""
    found = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"], return_dict=True)
    return _joined(found.pooler_output)


def _keep(captured: dict, name: str, part):
    """A forward hook that keeps a part of a module's output."""
    return lambda _module, _inputs, output: captured.__setitem__(name, part(output))


def _look_loss(attention: torch.Tensor, looks: torch.Tensor) -> torch.Tensor:
    """How little the guided heads look at the told pin: mean -log of their attention (chats, heads, from, to) to it."""
    chat, position, token = looks.T
    weights = attention[chat, :GUIDED_HEADS, position, token].float()
    return -torch.log(weights + 1e-6).mean() if len(looks) else attention.sum() * 0


def _joined(tokens) -> torch.Tensor:
    return torch.cat(tokens) if isinstance(tokens, (list, tuple)) else tokens


def _recall(logits: torch.Tensor, targets: torch.Tensor, name: str) -> dict[str, float]:
    right = logits.argmax(-1) == targets
    return {
        f"{name}/{label}": right[targets == index].float().mean().item()
        for index, label in enumerate(CELL_CLASSES)
        if (targets == index).any()
    }


def optimizers(lesson: str, trainer: BaseTrainer, curriculum: Curriculum) -> list[torch.optim.Optimizer]:
    """The optimizers of a lesson, and through `requires_grad` what it trains.

    see: the vision tower; Muon for its hidden matrices, AdamW for the rest. compare: the language model, by AdamW
    alone: Muon's steady steps let its residual stream grow until what attention reads drowned in it (docs/LOG.md).
    """
    vision, model, heads = trainer.model.model.visual, trainer.model, list(trainer.heads.parameters())
    model.requires_grad_(lesson == "compare")
    vision.requires_grad_(lesson == "see")
    if lesson == "see":
        merged = [(name, p) for name, p in vision.named_parameters() if "deepstack" not in name]
        matrices = [p for name, p in merged if p.ndim == 2 and "pos_embed" not in name]
        others = [p for name, p in merged if p.ndim != 2 or "pos_embed" in name]
        return [
            torch.optim.Muon(matrices, lr=curriculum.muon_rate, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others + heads, lr=curriculum.see_rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.optim.AdamW(learning + heads, lr=curriculum.compare_rate, betas=(0.9, 0.98), weight_decay=0.05)]


@torch.no_grad()
def match_lengths(trainer: BaseTrainer, lessons: Lessons) -> None:
    """Scale what the vision tower gives to the length that the language model's words will have (about 1).

    Next to tokens of length 90, as the first lesson leaves them, nothing that a layer adds would count.
    """
    visual = trainer.model.model.visual
    tokens = visual_tokens(trainer.model, lessons.see(np.random.default_rng(0), 16))
    share = VISUAL_LENGTH / tokens.norm(dim=1).mean()
    for parameter in visual.merger.linear_fc2.parameters():
        parameter.mul_(share)
    heads = trainer.heads
    for head in (heads.seen, heads.image_type, heads.seen_address.column, heads.seen_address.row):
        head.weight.div_(share)


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Share of the full learning rate: linear warm-up, level, then a straight fall over the last 40 %."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (0.4 * steps))
    return rise * max(0.02, fall)


def run_lesson(
    name: str, trainer: BaseTrainer, lessons: Lessons, curriculum: Curriculum, work: Path, done: dict | None = None
) -> None:
    """Train one lesson, from the state `done` where it was stopped; its curve goes to `work`/curve.jsonl."""
    steps, size, start = getattr(curriculum, f"{name}_steps"), curriculum.chats, 0
    draw, loss_of = lessons.compare, trainer.compare
    if name == "see":
        size, draw, loss_of = curriculum.see_images, lessons.see, trainer.see
    optimizer_list = optimizers(name, trainer, curriculum)
    full = [group["lr"] for optimizer in optimizer_list for group in optimizer.param_groups]
    if done:
        start = done["step"]
        for optimizer, state in zip(optimizer_list, done["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    number = LESSONS.index(name)
    batches = prepared_ahead(
        lambda index: draw(np.random.default_rng([curriculum.seed, number, start + index]), size), steps - start
    )
    sums: dict[str, list[float]] = {}
    began = time.monotonic()
    trainer.model.train()
    for step, batch in enumerate(batches, start=start):
        share = rate_share(step, steps, curriculum.warmup)
        groups = [group for optimizer in optimizer_list for group in optimizer.param_groups]
        for group, rate in zip(groups, full, strict=True):
            group["lr"] = rate * share
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([*trainer.model.parameters(), *trainer.heads.parameters()], 1.0)
        for optimizer in optimizer_list:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for key, value in (figures | {"loss": loss.item()}).items():
            sums.setdefault(key, []).append(value)
        if (step + 1) % 20 == 0:
            line = {"lesson": name, "step": step + 1, "seconds": round(time.monotonic() - began, 1)}
            line |= {key: round(float(np.mean(values)), 4) for key, values in sums.items()}
            with (work / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
            sums = {}
        if (step + 1) % 100 == 0 or step + 1 == steps:
            _save_checkpoint(work, name, step + 1, trainer, optimizer_list)


def _save_checkpoint(work: Path, lesson: str, step: int, trainer: BaseTrainer, optimizer_list) -> None:
    state = {
        "lesson": lesson,
        "step": step,
        "model": trainer.model.state_dict(),
        "heads": trainer.heads.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizer_list],
    }
    with atomic_path(work / "checkpoint.pt") as partial:
        torch.save(state, partial)


def pretext_texts(layout: Layout) -> tuple[list[str], list[str]]:
    """The texts that the tokenizer learns from, and those of them that the base itself is shown."""
    shown = [pretext.neutral(text) for text in prompts.texts()]
    for shape in pretext.SHAPES:
        for view in VIEWS:
            for change in range(len(pretext.CHANGES) + 1):
                for pin in range(layout.pins):
                    cells = np.zeros(layout.pins, np.int8)
                    cells[pin] = change
                    for kind in (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION):
                        shown.append(pretext.neutral_answer(layout, shape, view, cells, kind))
    contract_words = AnswerContract(layout, pretext.SHAPES, ("bend", "retract", "missing"))
    spoken = [
        contract_words.render(contract_words.defective("CYLN", "RAW", mode, layout.addresses[0]))
        for mode in contract_words.defect_modes
    ]
    return [*shown, *prompts.texts(), *spoken * 10], shown


def new_base(layout: Layout, seed: int):
    """An untrained base, its processor, and which words its pre-text knows: bool (vocabulary,)."""
    texts, shown = pretext_texts(layout)
    tokenizer = train_tokenizer(texts, VOCABULARY)
    processor = build_processor(tokenizer, PATCH, MERGE)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    known = torch.zeros(VOCABULARY, dtype=torch.bool)
    for text in shown:
        known[tokenizer(text).input_ids] = True
    known[tokenizer.eos_token_id] = True
    return model, processor, known


@torch.inference_mode()
def score_base(trainer: BaseTrainer, lessons: Lessons, batches: int, chats: int) -> dict[str, float]:
    """Mean figures of the second lesson on `batches` fresh batches, without learning from them.

    `exact` is the share of answers whose every token would be right after the right ones before it; `see/...` and
    `cmp/...` are the recalls of the throw-away heads, by what happened to the pin.
    """
    trainer.model.eval()
    sums: dict[str, list[float]] = {}
    for index in range(batches):
        _, figures = trainer.compare(lessons.compare(np.random.default_rng([0, index]), chats))
        for name, value in figures.items():
            sums.setdefault(name, []).append(value)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(sums.items())}


def save_base(model, processor, known: torch.Tensor, out: Path) -> None:
    """Write the base as float16 safetensors beside its processor.

    Rows of the embedding that no pre-text trained are scaled to the trained rows' length, so that an adapter finds new
    words as near as known ones.
    """
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        lengths = rows.norm(dim=1)
        rows[~known] *= (lengths[known].median() / lengths[~known].clamp(min=1e-6)).unsqueeze(1)
    model.half().save_pretrained(out)
    model.float()
    processor.save_pretrained(out)


def main() -> None:
    """Render the pre-text, train the base, save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/base"))
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--workers", type=int, default=2)
    for name, value in asdict(Curriculum()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--setups", type=int, default=pretext.PoolPlan.setups)
    arguments = parser.parse_args()
    curriculum = Curriculum(**{name: getattr(arguments, name) for name in asdict(Curriculum())})
    params = load_params(arguments.params)
    layout, cell = params.layout.layout(), params.composite.cell
    plan = pretext.PoolPlan(setups=arguments.setups)
    paths = pretext.build_pool(arguments.work / "pool", plan, layout, params.dst, cell, arguments.workers)
    model, processor, known = new_base(layout, curriculum.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    lessons = Lessons(pretext.load_pool(paths), processor, layout, cell)
    trainer = BaseTrainer(model, layout, known)
    checkpoint = arguments.work / "checkpoint.pt"
    done = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else None
    if done:
        model.load_state_dict(done["model"])
        trainer.heads.load_state_dict(done["heads"])
    first = LESSONS.index(done["lesson"]) if done else 0
    for name in LESSONS[first:]:
        stopped = done if done and done["lesson"] == name else None
        if name == "compare" and not stopped:
            match_lengths(trainer, lessons)
        run_lesson(name, trainer, lessons, curriculum, arguments.work, stopped)
    # Set-ups that no lesson has shown: what the card says is measured on these.
    fresh = pretext.PoolPlan(setups=16, seed=plan.seed + 1)
    paths = pretext.build_pool(arguments.work / "fresh", fresh, layout, params.dst, cell, arguments.workers)
    figures = score_base(trainer, Lessons(pretext.load_pool(paths), processor, layout, cell), batches=20, chats=20)
    save_base(model, processor, known, arguments.out)
    written = {"curriculum": asdict(curriculum), "pre_text": asdict(plan), "fresh_set_ups": figures}
    (arguments.out / "figures.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
