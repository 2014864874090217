"""Train the small default base on pre-text, in three lessons, and save it.

    python -m pinspect.pretraining.train --out models/base --work build/base

Each lesson has throw-away heads that give every visual token a target:

1. see: the vision tower alone; every token predicts what happened to its pin, its own column and row, and the type of
   its picture;
2. compare: the language model, with a frozen vision tower; the tokens of the inspected picture predict what changed
   against the reference and where, the model answers in the contract's five lines with neutral words, and two attention
   heads of the last layer are trained to look at the changed pin while the answer names its mode and address.
   docs/LOG.md lists what failed without these targets;
3. join: both together, with the targets of the second lesson; some references have another shape, and some grids have
   other marks, so that an adapter need not learn to look past them.

After a kill, just run the same command again: it goes on from the last checkpoint, and makes the same base. The work
folder has one folder for each pre-text and one for each curriculum, so changed settings never continue an old run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pinspect.core.answers import VIEWS
from pinspect.core.files import atomic_path
from pinspect.core.params import Params, load_params
from pinspect.model.batching import prepared_ahead
from pinspect.pretraining import pretext
from pinspect.pretraining.base import new_base, save_base
from pinspect.pretraining.lessons import Lessons
from pinspect.pretraining.trainer import BaseTrainer, Figures, visual_tokens

LESSONS = ("see", "compare", "join")
THREADS = 2  # parts of a step that are computed at the same time; the sums of a matrix product depend on it, too
LOG_STEPS = 20
VALIDATION_SETUPS, VALIDATION_BATCHES, CARD_BATCHES = 16, 4, 20
VISUAL_LENGTH = 2.0  # mean norm of the visual tokens at the start of the second lesson
Loss = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, Figures]]


@dataclass(frozen=True)
class Curriculum:
    """Steps, batch sizes and learning rates of the lessons.

    Attributes:
        see_steps: Steps of the first lesson.
        see_images: Pictures per step of the first lesson.
        see_rate: Learning rate of AdamW in the first lesson.
        muon_rate: Learning rate of Muon in the first lesson.
        compare_steps: Steps of the second lesson.
        compare_rate: Learning rate of the second lesson.
        join_steps: Steps of the third lesson.
        join_rate: Learning rate of the third lesson.
        chats: Chats per step of the second and the third lesson.
        warmup: Steps of the linear warm-up in each lesson.
        checkpoint_steps: Steps between checkpoints.
        seed: Seed of weights and batches.
    """

    see_steps: int = 900
    see_images: int = 40
    see_rate: float = 1.5e-3
    muon_rate: float = 0.02
    compare_steps: int = 700
    compare_rate: float = 2e-3
    join_steps: int = 1200
    join_rate: float = 1e-3
    chats: int = 20
    warmup: int = 40
    checkpoint_steps: int = 100
    seed: int = 5

    def size_of(self, lesson: str) -> int:
        """Return the pictures or chats per step of a lesson."""
        return self.see_images if lesson == "see" else self.chats


def run_lesson(
    name: str,
    trainer: BaseTrainer,
    lessons: Lessons,
    curriculum: Curriculum,
    work: Path,
    validation: Lessons | None = None,
) -> None:
    """Train one lesson, from the checkpoint if `work` has one of this lesson.

    The curve goes to `work`/curve.jsonl and the state of the training to `work`/checkpoint.pt.

    Args:
        name: One of LESSONS.
        trainer: The model with its losses.
        lessons: Source of the batches.
        curriculum: Steps, batch sizes and learning rates.
        work: Folder for curve and checkpoint.
        validation: Source of the validation figures, which are measured at each checkpoint.
    """
    steps, size, start = getattr(curriculum, f"{name}_steps"), curriculum.size_of(name), 0
    optimizers = lesson_optimizers(name, trainer, curriculum)
    trainable = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    full_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    checkpoint = load_checkpoint(work)
    if checkpoint and checkpoint["lesson"] == name:
        start = checkpoint["step"]
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    sums: dict[str, list[float]] = {}
    start_time = time.monotonic()
    trainer.model.train()
    with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for step, batches in enumerate(
            prepared_ahead(lambda index: _draw(name, lessons, curriculum, start + index), steps - start), start=start
        ):
            share = rate_share(step, steps, curriculum.warmup)
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            for group, rate in zip(groups, full_rates, strict=True):
                group["lr"] = rate * share
            for figures in _add_gradients(batches, _loss_of(name, trainer), trainable, threads):
                for key, value in figures.items():
                    sums.setdefault(key, []).append(value)
            nn.utils.clip_grad_norm_(trainable, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if (step + 1) % LOG_STEPS == 0:
                line = {"lesson": name, "step": step + 1, "seconds": round(time.monotonic() - start_time, 1)}
                _log(work, line | _means(sums))
                sums = {}
            if (step + 1) % curriculum.checkpoint_steps == 0 or step + 1 == steps:
                if validation:
                    line = {"lesson": name, "step": step + 1, "split": "validation"}
                    _log(work, line | score_lesson(name, trainer, validation, VALIDATION_BATCHES, size))
                _save_checkpoint(work, name, step + 1, trainer, optimizers)


def _loss_of(lesson: str, trainer: BaseTrainer) -> Loss:
    return trainer.see if lesson == "see" else trainer.compare


def _draw(name: str, lessons: Lessons, curriculum: Curriculum, step: int) -> list[dict[str, torch.Tensor]]:
    """Return the parts of a step of a lesson."""
    rng, size = np.random.default_rng([curriculum.seed, LESSONS.index(name), step]), curriculum.size_of(name)
    if name == "see":
        return [lessons.see(rng, size // THREADS) for _ in range(THREADS)]
    return lessons.compare_in_parts(rng, size, 2 * THREADS, counterexamples=name == "join")


def _add_gradients(
    batches: Sequence[dict[str, torch.Tensor]],
    loss_of: Loss,
    trainable: Sequence[nn.Parameter],
    threads: ThreadPoolExecutor,
) -> list[Figures]:
    """Add the gradients of the mean loss over the parts of a step to the parameters; return the figures of each part.

    Each thread computes parts of its own: the matrices are too small to divide every product among threads.
    """

    def gradients(batch: dict[str, torch.Tensor]) -> tuple[Figures, Sequence[torch.Tensor | None]]:
        with torch.autocast("cpu", torch.bfloat16):
            loss, figures = loss_of(batch)
        return figures | {"loss": loss.item()}, torch.autograd.grad(loss / len(batches), trainable, allow_unused=True)

    all_figures = []
    for figures, part in threads.map(gradients, batches):
        all_figures.append(figures)
        for parameter, gradient in zip(trainable, part, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return all_figures


def load_checkpoint(work: Path) -> dict[str, Any] | None:
    """Return the state of an interrupted training in the folder `work`; None if there is none."""
    path = work / "checkpoint.pt"
    return torch.load(path, weights_only=True) if path.exists() else None


def resume(trainer: BaseTrainer, work: Path) -> str:
    """Load the weights and the curve of an interrupted training.

    Args:
        trainer: The model and its heads.
        work: The folder of the training.

    Returns:
        The lesson to go on with.
    """
    checkpoint = load_checkpoint(work)
    if checkpoint is None:
        return LESSONS[0]
    trainer.model.load_state_dict(checkpoint["model"])
    trainer.heads.load_state_dict(checkpoint["heads"])
    (work / "curve.jsonl").write_text(checkpoint["curve"])
    return checkpoint["lesson"]


def lesson_optimizers(lesson: str, trainer: BaseTrainer, curriculum: Curriculum) -> list[torch.optim.Optimizer]:
    """Create the optimizers of a lesson, and set `requires_grad` of the parameters that it trains.

    see: the vision tower, with Muon for its hidden matrices and AdamW for its other parameters. compare: the language
    model, with AdamW alone. Muon's constant step size let the residual stream grow until attention could no longer read
    the addresses in it (docs/LOG.md). join: both, with AdamW.

    Args:
        lesson: One of LESSONS.
        trainer: The model and its heads.
        curriculum: The learning rates.
    """
    model, heads = trainer.model, list(trainer.heads.parameters())
    vision: Any = model.model.visual
    model.requires_grad_(lesson != "see")
    vision.requires_grad_(lesson != "compare")
    if lesson == "see":
        named = [(name, p) for name, p in vision.named_parameters() if "deepstack" not in name]
        matrices = [p for name, p in named if p.ndim == 2 and "pos_embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "pos_embed" in name]
        return [
            torch.optim.Muon(matrices, lr=curriculum.muon_rate, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others + heads, lr=curriculum.see_rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = curriculum.compare_rate if lesson == "compare" else curriculum.join_rate
    return [torch.optim.AdamW(trainable + heads, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)]


@torch.no_grad()
def match_lengths(trainer: BaseTrainer, lessons: Lessons) -> None:
    """Scale the visual tokens to the norm of the language model's embeddings, about 1.

    The first lesson leaves tokens of norm 90, next to which the output of a layer would be negligible.

    Args:
        trainer: The model and its heads.
        lessons: Source of a batch to measure the norm.
    """
    visual: Any = trainer.model.model.visual
    tokens = visual_tokens(trainer.model, lessons.see(np.random.default_rng(0), 16))
    share = VISUAL_LENGTH / tokens.norm(dim=1).mean()
    for parameter in visual.merger.linear_fc2.parameters():
        parameter.mul_(share)
    heads = trainer.heads
    for head in (heads.seen, heads.mark, heads.image_type, heads.seen_address.column, heads.seen_address.row):
        head.weight.div_(share)


def rate_share(step: int, steps: int, warmup: int) -> float:
    """Return the share of the full learning rate: linear warm-up, constant, then a linear fall over the last 40 %."""
    rise = min(1.0, (step + 1) / warmup)
    fall = min(1.0, (steps - step) / (0.4 * steps))
    return rise * max(0.02, fall)


@torch.inference_mode()
def score_lesson(name: str, trainer: BaseTrainer, lessons: Lessons, batches: int, size: int) -> Figures:
    """Measure the figures of a lesson on batches that are the same at each call.

    Args:
        name: One of LESSONS.
        trainer: The model and its heads.
        lessons: Source of the batches.
        batches: Number of batches.
        size: Pictures or chats per batch.

    Returns:
        Mean figures. `exact`: share of answers in which every token is right after the right tokens before it.
        `see/...` and `cmp/...`: recalls of the throw-away heads, by what happened to the pin.
    """
    draw, loss_of = lessons.see if name == "see" else lessons.compare, _loss_of(name, trainer)
    trainer.model.eval()
    sums: dict[str, list[float]] = {}
    for index in range(batches):
        _, figures = loss_of(draw(np.random.default_rng([0, index]), size))
        for key, value in figures.items():
            sums.setdefault(key, []).append(value)
    trainer.model.train()
    return dict(sorted(_means(sums).items()))


def _log(work: Path, line: dict[str, Any]) -> None:
    with (work / "curve.jsonl").open("a") as curve:
        curve.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def _means(sums: dict[str, list[float]]) -> Figures:
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items()}


def _save_checkpoint(
    work: Path, lesson: str, step: int, trainer: BaseTrainer, optimizers: list[torch.optim.Optimizer]
) -> None:
    state = {
        "lesson": lesson,
        "step": step,
        "model": trainer.model.state_dict(),
        "heads": trainer.heads.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "curve": curve.read_text() if (curve := work / "curve.jsonl").exists() else "",
    }
    with atomic_path(work / "checkpoint.pt") as partial:
        torch.save(state, partial)


def pretrain(out: Path, work: Path, params: Params, curriculum: Curriculum, plan: pretext.PoolPlan) -> None:
    """Render the pre-text, train the base, save it.

    Args:
        out: Folder of the base.
        work: Folder of the pre-text and of the training's state.
        params: The parameters of the project.
        curriculum: Steps, batch sizes and learning rates.
        plan: Amount of pre-text.
    """
    torch.set_num_threads(THREADS)
    layout, cell = params.layout.layout(), params.composite.cell
    new_plan = replace(plan, setups=VALIDATION_SETUPS, seed=plan.seed + 1)
    drawn = _digest(plan, params.layout, params.dst, cell)
    start_time = time.monotonic()
    paths, new_paths = (
        pretext.build_pool(work / f"{name}-{drawn}", each, layout, params.dst, cell, THREADS)
        for name, each in (("pool", plan), ("validation", new_plan))
    )
    model, processor, known = new_base(layout, curriculum.seed)
    print(f"pre-text: {time.monotonic() - start_time:.0f} s; {sum(p.numel() for p in model.parameters()):,} parameters")
    lessons = Lessons(pretext.load_pool(paths), processor, layout, cell)
    # The validation figures come from set-ups that the lessons do not show.
    new_setups = pretext.load_pool(new_paths)
    validation = Lessons(new_setups, processor, layout, cell)
    trainer = BaseTrainer(model, layout, known)
    run = work / f"run-{_digest(drawn, curriculum)}"
    run.mkdir(parents=True, exist_ok=True)
    first = resume(trainer, run)
    for name in LESSONS[LESSONS.index(first) :]:
        checkpoint = load_checkpoint(run)
        if name == "compare" and checkpoint and checkpoint["lesson"] == "see":
            match_lengths(trainer, lessons)
        run_lesson(name, trainer, lessons, curriculum, run, validation)
    by_view = {
        view: score_lesson(
            "compare", trainer, Lessons(new_setups, processor, layout, cell, (view,)), CARD_BATCHES, curriculum.chats
        )
        for view in VIEWS
    }
    save_base(model, processor, known, out)
    card = {"curriculum": asdict(curriculum), "pre_text": asdict(plan), "fresh_set_ups": by_view}
    (out / "figures.json").write_text(json.dumps(card, indent=2) + "\n")


def _digest(*settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:12]


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("models/base"))
    parser.add_argument("--work", type=Path, default=Path("build/base"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    for name, value in asdict(Curriculum()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--setups", type=int, default=pretext.PoolPlan.setups)
    arguments = parser.parse_args()
    curriculum = Curriculum(**{name: getattr(arguments, name) for name in asdict(Curriculum())})
    plan = pretext.PoolPlan(setups=arguments.setups)
    pretrain(arguments.out, arguments.work, load_params(arguments.params), curriculum, plan)


if __name__ == "__main__":
    main()
