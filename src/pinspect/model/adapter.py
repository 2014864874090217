"""The LoRA adapter: what learns from a line's labelled captures which changes the line calls a defect."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from tqdm import tqdm

from pinspect.core.answers import AnswerContract
from pinspect.core.files import atomic_path
from pinspect.core.params import Params, TrainParams
from pinspect.core.question import CAMERA, SOURCES, VIRTUAL, camera_else_virtual
from pinspect.core.rows import read_chat
from pinspect.model.augmentation import Augmenter
from pinspect.model.backends import Backend, open_backend
from pinspect.model.batching import prepared_ahead
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import Checkpoint
from pinspect.model.learner import Learner, assemble
from pinspect.model.rows import RowEncoder

CURVE_COLUMNS = ("step", "loss", "validation_loss", "validation_exact_match", "learning_rate", "seconds")
CHECKS = 12  # times in a training that validation rows are asked and a checkpoint is written
_VALIDATION_ROWS = 96


@dataclass(frozen=True)
class TrainedAdapter:
    """Facts of a finished training. seconds and tokens (prompts and answers, no padding) are of all its processes;
    stopped_early: whether the validation answers ended it before its last step; kept_step: whose weights are kept."""

    steps: int
    kept_step: int
    stopped_early: bool
    seconds: float
    tokens: int
    trainable: int
    parameters: int
    validation_loss: float | None
    validation_exact_match: float | None
    backend: str
    processes: int
    device: str


@dataclass
class _Progress:
    """Where a training stands: the next step, its curve, and the weights that answered validation rows best."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curve: list[list] = field(default_factory=list)
    best: float = -1.0
    best_step: int = 0
    best_weights: dict[str, torch.Tensor] | None = None
    checks_without_gain: int = 0

    def keep_best(self, model: nn.Module, exact_match: float) -> None:
        """Take the present weights where they answer as many validation rows rightly as any before."""
        self.checks_without_gain = 0 if exact_match > self.best else self.checks_without_gain + 1
        if exact_match >= self.best:
            weights = get_peft_model_state_dict(model)
            self.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
            self.best, self.best_step = exact_match, self.step


def train_adapter(
    params: Params,
    base: Checkpoint,
    chat_dir: Path,
    images_dir: Path,
    out: Path,
    work: Path,
    backend: Backend | None = None,
) -> TrainedAdapter:
    """Train an adapter on `chat_dir`/train.jsonl and save it to `out` as peft saves it, with its learning curve.

    The loss is the cross entropy of the expected answer's tokens alone. A run that was stopped resumes from its last
    checkpoint in `work`, as long as data, base and parameters are the same. Without `backend` the one that
    `model.backend` asks for. Raises ModelError when the loss is no number, or model or back end cannot be used.
    """
    asked = params.train
    rows = {split: read_chat(chat_dir / f"{split}.jsonl") for split in ("train", "validation")}
    validation = camera_else_virtual(rows["validation"])
    shown = validation[:: max(1, len(validation) // _VALIDATION_ROWS)]
    backend = backend or open_backend(params.model.backend)
    team = assemble()
    model, processor = backend.load(base, asked)
    encoder = RowEncoder(processor, images_dir)
    torch.manual_seed(asked.seed)
    model = backend.adapt(model, asked, answer_words(rows["train"], encoder) if asked.words else ())
    backend.to_train(model)
    learner = Learner(backend, model, encoder, asked, team)
    plan = plan_batches(rows["train"], encoder, params.contract(), asked)
    saved = _SavedProgress(work, params, base, backend, chat_dir)
    progress = saved.restore(model, learner)
    began = time.monotonic() - progress.seconds
    first = progress.step
    bar = tqdm(total=len(plan), initial=first, desc="train", unit="step", disable=not team.is_main_process)
    for inputs in prepared_ahead(lambda index: learner.inputs(plan[first + index]), len(plan) - first):
        rate = asked.learning_rate * _rate_share(progress.step, len(plan), asked.warmup_share)
        loss = learner.step(inputs, progress.step, rate)
        progress.step += 1
        last = progress.step == len(plan)
        due = last or progress.step % max(1, len(plan) // CHECKS) == 0
        validation_loss = learner.loss(shown) if due else None
        exact_match = None
        if due and asked.patience and shown:
            exact_match = learner.exact_match(shown, params.contract(), params.evaluate.batch_size)
            progress.keep_best(model, exact_match)
        progress.seconds, progress.tokens = time.monotonic() - began, learner.tokens
        progress.curve.append([progress.step, loss, validation_loss, exact_match, rate, progress.seconds])
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if asked.patience and progress.checks_without_gain >= asked.patience:
            break
        if due and not last and team.is_main_process:
            saved.save(progress, model, learner)
    bar.close()
    if progress.best_weights is not None:
        set_peft_model_state_dict(model, progress.best_weights)
    facts = _facts(progress, len(plan), backend, learner)
    if team.is_main_process:
        _save(model, asked, base, progress.curve, facts, out)
        saved.discard()
    team.wait_for_everyone()
    return facts


def _facts(progress: _Progress, planned: int, backend: Backend, learner: Learner) -> TrainedAdapter:
    kept = progress.best_step or progress.step
    row = dict(zip(CURVE_COLUMNS, progress.curve[kept - 1], strict=True))
    cuda = learner.team.device.type == "cuda"
    return TrainedAdapter(
        steps=progress.step,
        kept_step=kept,
        stopped_early=progress.step < planned,
        seconds=round(progress.seconds, 1),
        tokens=progress.tokens,
        trainable=sum(parameter.numel() for parameter in learner.trainable),
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        validation_loss=row["validation_loss"],
        validation_exact_match=row["validation_exact_match"],
        backend=backend.name,
        processes=learner.team.num_processes,
        device=torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
    )


def answer_words(rows: Sequence[dict], encoder: RowEncoder) -> list[int]:
    """Token ids of the expected answers: the words whose embeddings the adapter may move.

    A base that has never met `passed` or `bend` has no place for them; without this the adapter bends the whole model
    until it writes them.
    """
    chats = [encoder.chat(row) for row in rows]
    return sorted({token for chat in chats for token in chat.input_ids[chat.prompt_length :]})


def plan_batches(
    rows: Sequence[dict], encoder: RowEncoder, contract: AnswerContract, params: TrainParams
) -> list[list[dict]]:
    """All batches of the training in their order, each row augmented, drawn from `params.seed`.

    `camera_share` of each epoch's rows are camera captures, repeated as often as that takes, where there are any; rows
    of like length share a batch, so that little is padded.
    """
    rng, shown_as = np.random.default_rng(params.seed), Augmenter(rows, contract, params)
    pools = {source: [row for row in rows if row["source"] == source] for source in SOURCES}
    batches: list[list[dict]] = []
    steps = min(params.maximum_steps, math.ceil(params.epochs * len(rows) / params.batch_size))
    while len(batches) < steps:
        drawn = _draw_epoch(pools, len(rows), params.camera_share, rng)
        drawn = [shown_as(row, rng) for row in drawn]
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
        for pool, wanted in ((pools[CAMERA], camera), (pools[VIRTUAL], count - camera)):
            order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-wanted // len(pool)))])[:wanted]
            drawn += [pool[index] for index in order]
    # The order among rows of one length decides which share a batch: shuffle before the stable sort by length.
    return [drawn[index] for index in rng.permutation(len(drawn))]


def _rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the full learning rate: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _save(
    model: nn.Module, params: TrainParams, base: Checkpoint, curve: list[list], facts: TrainedAdapter, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's model card template, empty but for a path of this machine
    config = json.loads((out / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])  # a set otherwise: another order at every run
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    with (out / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CURVE_COLUMNS)
        for step, loss, validation, exact_match, rate, seconds in curve:
            checked = ["" if value is None else f"{value:.6f}" for value in (validation, exact_match)]
            writer.writerow([step, f"{loss:.6f}", *checked, f"{rate:.3e}", f"{seconds:.1f}"])
    summary = {
        "family": base.family.name,
        "base": base.source,
        "revision": base.revision,
        "base_sha256": base_digest(base),
        "backend": facts.backend,
        "processes": facts.processes,
        "device": facts.device,
        "steps": facts.steps,
        "kept_step": facts.kept_step,
        "stopped_early": facts.stopped_early,
        "seconds": facts.seconds,
        "tokens_per_second": round(facts.tokens / max(facts.seconds, 0.1), 1),
        "trainable_parameters": facts.trainable,
        "trainable_share": round(facts.trainable / facts.parameters, 6),
        "adapter_bytes": (out / "adapter_model.safetensors").stat().st_size,
        "validation_loss": facts.validation_loss,
        "validation_exact_match": facts.validation_exact_match,
        "params": params.model_dump(),
    }
    (out / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


class _SavedProgress:
    """The state of a training under way, in a file named after all that it depends on."""

    def __init__(self, work: Path, params: Params, base: Checkpoint, backend: Backend, chat_dir: Path) -> None:
        digest = hashlib.sha256(f"{params.train.model_dump_json()} {params.contract()} {backend.name}".encode())
        for split in ("train", "validation"):
            digest.update((chat_dir / f"{split}.jsonl").read_bytes())
        digest.update(base_digest(base).encode())
        self.path = work / f"checkpoint-{digest.hexdigest()[:16]}.pt"

    def restore(self, model: nn.Module, learner: Learner) -> _Progress:
        """Bring model and optimizer to the newest saved state, and tell it; the beginning where there is none."""
        if not self.path.exists():
            return _Progress()
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, state["adapter"])
        learner.optimizer.load_state_dict(state["optimizer"])
        progress = _Progress(**state["progress"])
        learner.tokens = progress.tokens
        return progress

    def save(self, progress: _Progress, model: nn.Module, learner: Learner) -> None:
        """Write the state; the rename makes a present file a complete one."""
        state = {
            "adapter": get_peft_model_state_dict(model),
            "optimizer": learner.optimizer.state_dict(),
            "progress": vars(progress),
        }
        with atomic_path(self.path) as partial:
            torch.save(state, partial)

    def discard(self) -> None:
        """Remove the state of a finished training."""
        self.path.unlink(missing_ok=True)
