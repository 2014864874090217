"""Training of the LoRA adapter, which learns from a line's labeled captures what the line calls a defect."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from tqdm import tqdm
from transformers import BitsAndBytesConfig

from pinspect.core.answers import AnswerContract
from pinspect.core.digests import dvc_directory_hash
from pinspect.core.files import atomic_path
from pinspect.core.params import Params, TrainParams
from pinspect.core.question import CAMERA, SOURCES, VIRTUAL, camera_else_virtual
from pinspect.core.rows import Row, read_chat
from pinspect.model.augmentation import Augmenter
from pinspect.model.backends import Backend, open_backend
from pinspect.model.batching import prepared_ahead
from pinspect.model.card import write_adapter_card
from pinspect.model.checkpoint_files import base_digest
from pinspect.model.families import Checkpoint
from pinspect.model.learner import Learner, training_processes
from pinspect.model.rows import RowEncoder
from pinspect.model.start import start_digest, take_weights

CURVE_COLUMNS = ("step", "loss", "validation_loss", "validation_exact_match", "learning_rate")
_VALIDATION_ROWS = 96
Report = Callable[[int, Mapping[str, float | None]], None]  # takes the number of a step and the values of the curve


@dataclass(frozen=True)
class TrainedAdapter:
    """Facts of a finished training.

    Attributes:
        rows: Number of training rows.
        steps: Number of optimizer steps.
        kept_step: The step whose weights are kept.
        stopped_early: Whether the validation answers ended the training before its last planned step.
        tokens: Tokens of prompts and answers in all steps, without padding.
        lora_modules: The layers with a LoRA pair: name, with `*` for its numbers -> how many layers have this name.
        trainable: Number of trainable parameters.
        parameters: Number of all parameters.
        validation_loss: Validation loss at `kept_step` in nats per answer token; None without validation rows.
        validation_exact_match: Exact match of validation answers at `kept_step`, 0..1; None if not measured.
        seconds: Training time, over all interrupted runs of this training.
        backend: `transformers` or `unsloth`.
        processes: Number of processes.
        device: Name of the GPU, or the CPU with its number of threads.
        step_times: When each step ended, in seconds since 1970.
    """

    rows: int
    steps: int
    kept_step: int
    stopped_early: bool
    tokens: int
    lora_modules: dict[str, int]
    trainable: int
    parameters: int
    validation_loss: float | None
    validation_exact_match: float | None
    seconds: float
    backend: str
    processes: int
    device: str
    step_times: tuple[float, ...]

    def run_facts(self) -> dict[str, object]:
        """Return the facts that differ between two trainings on the same data: time and machine."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": round(self.tokens / max(self.seconds, 0.1), 1),
            "backend": self.backend,
            "processes": self.processes,
            "device": self.device,
            "torch": torch.__version__,
            "step_times": self.step_times,
        }


@dataclass
class _Progress:
    """State of a training: the next step, its curve, and the weights that answered most validation rows correctly."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curve: list[list[Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    best: float = -1.0
    best_step: int = 0
    best_weights: dict[str, torch.Tensor] | None = None
    checks_without_gain: int = 0

    def add_point(self, values: list[Any], report: Report | None) -> None:
        """Add the values of `CURVE_COLUMNS` after a step, and report them."""
        self.curve.append(values)
        self.times.append(round(time.time(), 1))
        if report:
            report(self.step, dict(zip(CURVE_COLUMNS, values, strict=True)))

    def keep_best(self, model: Any, exact_match: float) -> None:
        """Keep the current weights unless earlier weights answered more validation rows correctly."""
        self.checks_without_gain = 0 if exact_match > self.best else self.checks_without_gain + 1
        if exact_match >= self.best:
            self.best_weights = {name: tensor.detach().clone() for name, tensor in _weights(model).items()}
            self.best, self.best_step = exact_match, self.step


def train_adapter(
    params: Params,
    base: Checkpoint,
    chat_dir: Path,
    images_dir: Path,
    out: Path,
    work: Path,
    backend: Backend | None = None,
    *,
    start: Path | None = None,
    report: Report | None = None,
) -> TrainedAdapter:
    """Train an adapter and save it in peft's format, with its learning curve.

    The loss is the cross entropy of the tokens of the expected answers only. A killed training resumes from its last
    checkpoint if data, base and parameters are the same, and ends with the same bytes.

    Args:
        params: The parameters of the project.
        base: The base model.
        chat_dir: Folder with train.jsonl and validation.jsonl.
        images_dir: Folder that the image names of the rows are relative to.
        out: Folder of the adapter. Its content depends on data, base, parameters and machine, not on the time.
        work: Folder of the checkpoints.
        backend: The library that computes the training; None for the one that `model.backend` names.
        start: Folder of an adapter to start from (`pinspect.core.start`); None to start from the base.
        report: Called after each step with its number and the values of the learning curve.

    Raises:
        ModelError: The loss is not finite, or base or backend cannot be used.
    """
    train = params.train
    rows = {split: read_chat(chat_dir / f"{split}.jsonl") for split in ("train", "validation")}
    validation = camera_else_virtual(rows["validation"])
    validation = validation[:: max(1, len(validation) // _VALIDATION_ROWS)]
    backend = backend or open_backend(params.model.backend)
    processes = training_processes()
    model, processor = backend.load(base, train)
    encoder = RowEncoder(processor, images_dir)
    torch.manual_seed(train.seed)
    model = backend.adapt(model, train, answer_words(rows["train"], encoder) if train.words else ())
    if start:
        take_weights(model, base, start)
    backend.to_train(model)
    learner = Learner(backend, model, encoder, train, processes)
    plan = plan_batches(rows["train"], encoder, params.contract(), train)
    checkpoint = _TrainingCheckpoint(work, params, base, backend, chat_dir, start_digest(start))
    progress = checkpoint.restore(model, learner)
    start_time = time.monotonic() - progress.seconds
    first = progress.step
    bar = tqdm(total=len(plan), initial=first, desc="train", unit="step", disable=not processes.is_main_process)
    for inputs in prepared_ahead(lambda index: learner.inputs(plan[first + index]), len(plan) - first):
        rate = train.learning_rate * _rate_share(progress.step, len(plan), train.warmup_share)
        loss = learner.step(inputs, progress.step, rate)
        progress.step += 1
        last = progress.step == len(plan)
        check = last or progress.step % max(1, len(plan) // train.validations) == 0
        validation_loss = learner.loss(validation) if check else None
        exact_match = None
        if check and train.patience and validation:
            exact_match = learner.exact_match(validation, params.contract(), params.evaluate.batch_size)
            progress.keep_best(model, exact_match)
        progress.seconds, progress.tokens = time.monotonic() - start_time, learner.tokens
        progress.add_point([progress.step, loss, validation_loss, exact_match, rate], report)
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if train.patience and progress.checks_without_gain >= train.patience:
            break
        if check and not last and processes.is_main_process:
            checkpoint.save(progress, model, learner)
    bar.close()
    if progress.best_weights is not None:
        set_peft_model_state_dict(model, progress.best_weights)
    facts = _facts(progress, len(rows["train"]), len(plan), backend, learner)
    if processes.is_main_process:
        _save(model, train, base, start_digest(start), progress.curve, facts, out)
        write_adapter_card(out, dvc_directory_hash(chat_dir), None if base.folder else base.source)
        checkpoint.discard()
    processes.wait_for_everyone()
    return facts


def answer_words(rows: Sequence[Row], encoder: RowEncoder) -> list[int]:
    """Return the token ids of the expected answers, whose embeddings the adapter may change.

    A base without embeddings for `passed` or `bend` has to learn these words. Without trainable embeddings the adapter
    would change the whole model to produce them.

    Args:
        rows: Training rows.
        encoder: Rows -> token ids.
    """
    chats = [encoder.chat(row) for row in rows]
    return sorted({token for chat in chats for token in chat.input_ids[chat.prompt_length :]})


def plan_batches(
    rows: Sequence[Row], encoder: RowEncoder, contract: AnswerContract, params: TrainParams
) -> list[list[Row]]:
    """Plan all batches of a training, with the augmentation of each row.

    If there are camera and virtual rows, `camera_share` of each epoch's rows are camera rows, repeated as often as
    needed. Rows of similar length share a batch, which saves padding.

    Args:
        rows: Training rows.
        encoder: Rows -> token ids.
        contract: The answer contract.
        params: The training parameters, among them the seed.

    Returns:
        The rows of each batch, in the order of the training.
    """
    rng, augment = np.random.default_rng(params.seed), Augmenter(rows, contract, params)
    pools = {source: [row for row in rows if row["source"] == source] for source in SOURCES}
    batches: list[list[Row]] = []
    steps = min(params.maximum_steps, math.ceil(params.epochs * len(rows) / params.batch_size))
    while len(batches) < steps:
        drawn = _draw_epoch(pools, len(rows), params.camera_share, rng)
        drawn = [augment(row, rng) for row in drawn]
        drawn.sort(key=lambda row: len(encoder.chat(row).input_ids))
        whole = len(drawn) // params.batch_size * params.batch_size or len(drawn)
        epoch = [drawn[start : start + params.batch_size] for start in range(0, whole, params.batch_size)]
        batches += [epoch[index] for index in rng.permutation(len(epoch))]
    return batches[:steps]


def _draw_epoch(pools: dict[str, list[Row]], count: int, camera_share: float, rng: np.random.Generator) -> list[Row]:
    if not all(pools.values()):
        drawn = [row for pool in pools.values() for row in pool]
    else:
        camera = round(count * camera_share)
        drawn = []
        for pool, size in ((pools[CAMERA], camera), (pools[VIRTUAL], count - camera)):
            order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-size // len(pool)))])[:size]
            drawn += [pool[index] for index in order]
    # The order of rows with equal length decides which of them share a batch: shuffle before the stable sort by length.
    return [drawn[index] for index in rng.permutation(len(drawn))]


def _rate_share(step: int, steps: int, warmup_share: float) -> float:
    """Return the share of the full learning rate: linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def lora_modules(model: Any) -> dict[str, int]:
    """Count the layers with a LoRA pair by their name, numbers replaced by `*`, such as `visual.blocks.*.attn.qkv`."""
    names = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    short = [re.sub(r"^(base_model\.)?(model\.)*", "", re.sub(r"(?<=\.)\d+(?=\.)", "*", name)) for name in names]
    return {name: short.count(name) for name in dict.fromkeys(short)}


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights of the adapter alone; peft would otherwise look up the base on the hub."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def _facts(progress: _Progress, rows: int, planned: int, backend: Backend, learner: Learner) -> TrainedAdapter:
    kept = progress.best_step or progress.step
    point = dict(zip(CURVE_COLUMNS, progress.curve[kept - 1], strict=True))
    cuda = learner.device.type == "cuda"
    return TrainedAdapter(
        rows=rows,
        steps=progress.step,
        kept_step=kept,
        stopped_early=progress.step < planned,
        tokens=progress.tokens,
        lora_modules=lora_modules(learner.model),
        trainable=sum(parameter.numel() for parameter in learner.trainable),
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        validation_loss=point["validation_loss"],
        validation_exact_match=point["validation_exact_match"],
        seconds=round(progress.seconds, 1),
        backend=backend.name,
        processes=learner.processes.num_processes,
        device=torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        step_times=tuple(progress.times),
    )


def _save(
    model: Any,
    params: TrainParams,
    base: Checkpoint,
    start: str,
    curve: Iterable[list[Any]],
    facts: TrainedAdapter,
    out: Path,
) -> None:
    """Write the adapter's folder; nothing in it depends on time, place or order of sets."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out, save_embedding_layers=False)
    config = json.loads((out / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # peft keeps a set, whose order differs between runs
    config["base_model_name_or_path"] = None if base.folder else base.source  # a path means nothing elsewhere
    config["revision"] = base.revision or None
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    with (out / "learning_curve.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CURVE_COLUMNS)
        for step, loss, *validation, rate in curve:
            checked = ["" if value is None else f"{value:.6f}" for value in validation]
            writer.writerow([step, f"{loss:.6f}", *checked, f"{rate:.3e}"])
    training = {
        "family": base.family.name,
        "base": base.source,
        "revision": base.revision,
        "base_sha256": base_digest(base),
        "start_sha256": start,
        "four_bits": _four_bits(model),
        "precision": base.precision,
        "rows": facts.rows,
        "steps": facts.steps,
        "kept_step": facts.kept_step,
        "stopped_early": facts.stopped_early,
        "tokens": facts.tokens,
        "lora_modules": facts.lora_modules,
        "trainable_parameters": facts.trainable,
        "trainable_share": round(facts.trainable / facts.parameters, 6),
        "adapter_bytes": (out / "adapter_model.safetensors").stat().st_size,
        "validation_loss": facts.validation_loss,
        "validation_exact_match": facts.validation_exact_match,
        "params": params.model_dump(),
    }
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n")


def _four_bits(model: Any) -> dict[str, Any] | None:
    """Return the form of the base's 4-bit weights, which answers need, too; None for whole weights."""
    form = getattr(getattr(model.get_base_model(), "hf_quantizer", None), "quantization_config", None)
    if not isinstance(form, BitsAndBytesConfig):
        return None
    return {name: value for name, value in form.to_diff_dict().items() if not name.startswith("_")}


class _TrainingCheckpoint:
    """The state of an unfinished training, in a file named after everything that it depends on."""

    def __init__(
        self, work: Path, params: Params, base: Checkpoint, backend: Backend, chat_dir: Path, start: str
    ) -> None:
        facts = f"{params.train.model_dump_json()} {base.precision} {params.contract()} {backend.name} {start}"
        digest = hashlib.sha256(facts.encode())
        for split in ("train", "validation"):
            digest.update((chat_dir / f"{split}.jsonl").read_bytes())
        digest.update(base_digest(base).encode())
        self.path = work / f"checkpoint-{digest.hexdigest()[:16]}.pt"

    def restore(self, model: Any, learner: Learner) -> _Progress:
        """Load the checkpoint into model and optimizer and return its progress; a new progress if there is none."""
        if not self.path.exists():
            return _Progress()
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        set_peft_model_state_dict(model, state["adapter"])
        learner.optimizer.load_state_dict(state["optimizer"])
        progress = _Progress(**state["progress"])
        learner.tokens = progress.tokens
        return progress

    def save(self, progress: _Progress, model: Any, learner: Learner) -> None:
        """Write the checkpoint."""
        state = {
            "adapter": _weights(model),
            "optimizer": learner.optimizer.state_dict(),
            "progress": vars(progress),
        }
        with atomic_path(self.path) as partial:
            torch.save(state, partial)

    def discard(self) -> None:
        """Remove the checkpoint of a finished training."""
        self.path.unlink(missing_ok=True)
