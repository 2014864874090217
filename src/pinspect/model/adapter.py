"""The LoRA adapter: what learns from a line's labelled captures which changes the line calls a defect."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from tqdm import tqdm

from pinspect.data.chat import read_chat
from pinspect.errors import ModelError
from pinspect.layout import Layout
from pinspect.model.augmentation import augmented
from pinspect.model.batching import IGNORED, prepared_ahead
from pinspect.model.loading import directory_digest, load_base
from pinspect.model.rows import RowEncoder
from pinspect.params import TrainParams

CURVE_COLUMNS = ("step", "loss", "validation_loss", "learning_rate", "seconds")

# A new word's embedding starts anywhere: it has to go as far as it is long, about half a unit, in a few steps.
WORDS_RATE_FACTOR = 10.0

_VISION = ("visual", "vision_tower", "vision_model")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv", "attn.proj", "out_proj")
_MLP = ("gate_proj", "up_proj", "down_proj", "linear_fc1", "linear_fc2", "fc1", "fc2")


@dataclass(frozen=True)
class TrainedAdapter:
    """Facts of a finished training."""

    steps: int
    seconds: float
    trainable: int
    parameters: int
    validation_loss: float | None


def adapted_modules(model: nn.Module, params: TrainParams) -> list[str]:
    """Names of the linear layers that get a LoRA pair, by the four switches of `params.yaml`.

    vision and language choose the part of the model, attention and mlp the kind of layer. Raises ModelError when the
    model has no such layer.
    """
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        part = params.vision if any(word in name for word in _VISION) else params.language
        kind = (params.attention and name.endswith(_ATTENTION)) or (params.mlp and name.endswith(_MLP))
        if part and kind:
            names.append(name)
    if not names:
        raise ModelError(
            "no layer of this model answers to train.vision, .language, .attention and .mlp; switch more on"
        )
    return names


def train_adapter(
    params: TrainParams, layout: Layout, chat_dir: Path, images_dir: Path, out: Path, work: Path
) -> TrainedAdapter:
    """Train an adapter on `chat_dir`/train.jsonl and save it to `out` as peft saves it, with its learning curve.

    The loss is the cross entropy of the expected answer's tokens alone. A run that was stopped resumes from its last
    checkpoint in `work`, as long as data, base and parameters are the same. Raises ModelError when the loss is no
    number.
    """
    torch.manual_seed(params.seed)
    rows = {split: read_chat(chat_dir / f"{split}.jsonl") for split in ("train", "validation")}
    model, processor = load_base(params.base)
    encoder = RowEncoder(processor, images_dir)
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.alpha,
        lora_dropout=params.dropout,
        target_modules=adapted_modules(model, params),
        trainable_token_indices=answer_words(rows["train"], encoder) if params.words else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    plan = plan_batches(rows["train"], encoder, layout, params)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(_rate_groups(model), weight_decay=params.weight_decay, betas=(0.9, 0.98))
    checkpoint = _Checkpoint(work, params, chat_dir)
    start, curve, spent = checkpoint.restore(model, optimizer)
    began = time.monotonic() - spent
    bar = tqdm(total=len(plan), initial=start, desc="train", unit="step")
    batches = prepared_ahead(lambda index: encoder.batch(plan[start + index], answers=True), len(plan) - start)
    for step, batch in enumerate(batches, start=start):
        rate = params.learning_rate * _rate_share(step, len(plan), params.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = _answer_loss(model, _on(batch, device))
        if not math.isfinite(loss.item()):
            raise ModelError(f"the loss is {loss.item()} at step {step + 1}; lower train.learning_rate and train again")
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, params.maximum_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        last = step + 1 == len(plan)
        due = last or (step + 1) % max(1, len(plan) // 12) == 0
        validation = validation_loss(model, encoder, rows["validation"], params, device) if due else None
        curve.append((step + 1, loss.item(), validation, rate, time.monotonic() - began))
        if due and not last:
            checkpoint.save(step + 1, model, optimizer, curve)
    bar.close()
    facts = TrainedAdapter(
        steps=len(plan),
        seconds=round(time.monotonic() - began, 1),
        trainable=sum(parameter.numel() for parameter in trainable),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        validation_loss=curve[-1][2],
    )
    _save(model, params, curve, facts, out)
    checkpoint.discard()
    return facts


def answer_words(rows: Sequence[dict], encoder: RowEncoder) -> list[int]:
    """Token ids of the expected answers: the words whose embeddings the adapter may move.

    A base that has never met `passed` or `bend` has no place for them; without this the adapter bends the whole model
    until it writes them.
    """
    chats = [encoder.chat(row) for row in rows]
    return sorted({token for chat in chats for token in chat.input_ids[chat.prompt_length :]})


def plan_batches(rows: Sequence[dict], encoder: RowEncoder, layout: Layout, params: TrainParams) -> list[list[dict]]:
    """All batches of the training in their order, each row augmented, drawn from `params.seed`.

    `camera_share` of each epoch's rows are camera captures, repeated as often as that takes, where there are any; rows
    of like length share a batch, so that little is padded.
    """
    rng = np.random.default_rng(params.seed)
    pools = {source: [row for row in rows if row["source"] == source] for source in ("camera", "virtual")}
    batches: list[list[dict]] = []
    steps = min(params.maximum_steps, math.ceil(params.epochs * len(rows) / params.batch_size))
    while len(batches) < steps:
        drawn = _draw_epoch(pools, len(rows), params.camera_share, rng)
        drawn = [augmented(row, layout, rng, mirror=params.mirror, light_jitter=params.light_jitter) for row in drawn]
        drawn.sort(key=lambda row: len(encoder.chat(row).input_ids))
        whole = len(drawn) // params.batch_size * params.batch_size or len(drawn)
        epoch = [drawn[start : start + params.batch_size] for start in range(0, whole, params.batch_size)]
        batches += [epoch[index] for index in rng.permutation(len(epoch))]
    return batches[:steps]


def _draw_epoch(pools: dict[str, list[dict]], count: int, camera_share: float, rng: np.random.Generator) -> list[dict]:
    if not all(pools.values()):
        drawn = [row for pool in pools.values() for row in pool]
    else:
        camera = round(count * camera_share)
        drawn = []
        for pool, wanted in ((pools["camera"], camera), (pools["virtual"], count - camera)):
            order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-wanted // len(pool)))])[:wanted]
            drawn += [pool[index] for index in order]
    # The order among rows of one length decides which share a batch: shuffle before the stable sort by length.
    return [drawn[index] for index in rng.permutation(len(drawn))]


@torch.inference_mode()
def validation_loss(model, encoder: RowEncoder, rows: Sequence[dict], params: TrainParams, device) -> float | None:
    """Mean answer loss over (at most 96 of) the validation rows; None without any."""
    rows = rows[:: max(1, len(rows) // 96)]
    if not rows:
        return None
    model.eval()
    ordered = sorted(rows, key=lambda row: len(encoder.chat(row).input_ids))
    losses = [
        (_answer_loss(model, _on(encoder.batch(part, answers=True), device)).item(), len(part))
        for part in _parts(ordered, params.batch_size)
    ]
    model.train()
    return sum(loss * count for loss, count in losses) / len(rows)


def _answer_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = batch.pop("labels")[:, 1:]
    asked = labels != IGNORED
    with torch.autocast(batch["input_ids"].device.type, torch.bfloat16):
        # Logits of the answers alone: the vocabulary is the widest layer of a language model.
        hidden = model.get_base_model().model(**batch, use_cache=False).last_hidden_state[:, :-1][asked]
        logits = model.get_base_model().lm_head(hidden)
    return F.cross_entropy(logits.float(), labels[asked])


def _rate_groups(model: nn.Module) -> list[dict]:
    """Trainable parameters in groups, each with the factor by which its learning rate is the higher."""
    groups: dict[float, list[nn.Parameter]] = {1.0: [], WORDS_RATE_FACTOR: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[WORDS_RATE_FACTOR if "trainable_tokens" in name else 1.0].append(parameter)
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items() if parameters]


def _rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the full learning rate: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _on(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _parts(rows: Sequence[dict], size: int) -> Iterator[Sequence[dict]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _save(model: nn.Module, params: TrainParams, curve: list[tuple], facts: TrainedAdapter, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's model card template, empty but for a path of this machine
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set otherwise: another order at every run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    with (out / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CURVE_COLUMNS)
        for step, loss, validation, rate, seconds in curve:
            shown = "" if validation is None else f"{validation:.6f}"
            writer.writerow([step, f"{loss:.6f}", shown, f"{rate:.3e}", f"{seconds:.1f}"])
    summary = {
        "base": params.base,
        "base_sha256": directory_digest(params.base),
        "steps": facts.steps,
        "seconds": facts.seconds,
        "trainable_parameters": facts.trainable,
        "trainable_share": round(facts.trainable / facts.parameters, 6),
        "adapter_bytes": (out / "adapter_model.safetensors").stat().st_size,
        "validation_loss": facts.validation_loss,
        "params": params.model_dump(),
    }
    (out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


class _Checkpoint:
    """The state of a training under way, in a folder named after what it depends on."""

    def __init__(self, work: Path, params: TrainParams, chat_dir: Path) -> None:
        digest = hashlib.sha256(params.model_dump_json().encode())
        for split in ("train", "validation"):
            digest.update((chat_dir / f"{split}.jsonl").read_bytes())
        digest.update(directory_digest(params.base).encode())
        self.path = work / f"checkpoint-{digest.hexdigest()[:16]}.pt"

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[tuple], float]:
        """Load the newest state: the next step, the curve so far and the seconds spent."""
        if not self.path.exists():
            return 0, [], 0.0
        state = torch.load(self.path, weights_only=True)
        set_peft_model_state_dict(model, state["adapter"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        return state["step"], [tuple(row) for row in state["curve"]], state["curve"][-1][-1]

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, curve: list[tuple]) -> None:
        """Write the state; the rename makes a present file a complete one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        state = {
            "step": step,
            "adapter": get_peft_model_state_dict(model),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "curve": [list(row) for row in curve],
        }
        torch.save(state, partial)
        partial.rename(self.path)

    def discard(self) -> None:
        """Remove the state of a finished training."""
        self.path.unlink(missing_ok=True)
