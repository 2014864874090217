"""Compare training tokens per second of pinspect and of a plain Hugging Face Trainer, on the same model and rows.

    python benchmarks/training.py [--root DIR] [--steps N] [--rounds N]

Both train the same LoRA adapter on the project's base and the same rows of its chat dataset, on this machine, in turns.
The plain Trainer computes in float32, draws batches at random and pads them to their longest row, prepares images with
the processor, and computes the logits of every token. Padding does not count as tokens. The first step of each turn is
not timed, because libraries warm up. Writes benchmarks/results/training_speed.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pinspect.core import environment

# isort: split
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, Trainer, TrainerCallback, TrainingArguments

from pinspect.core.params import Params, load_params
from pinspect.core.rows import read_chat
from pinspect.model.adapter import answer_words, plan_batches
from pinspect.model.backends import adapted_modules, computes_bfloat16, open_backend
from pinspect.model.batching import prepared_ahead
from pinspect.model.families import checkpoint_of
from pinspect.model.learner import Learner, training_processes
from pinspect.model.loading import checkpoint_folder, inspecting_device, load_processor
from pinspect.model.rows import RowEncoder, read_composite

RESULTS = Path(__file__).parent / "results"


class _StepTimes(TrainerCallback):
    """Records the end of each step of the plain Trainer."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_, **__) -> None:
        self.ends.append(time.perf_counter())


class _PlainCollator:
    """Processes and pads texts and images as fine-tuning scripts do; counts the tokens of each batch."""

    def __init__(self, processor, images_dir: Path) -> None:
        self.processor, self.images_dir, self.tokens = processor, images_dir, []

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        texts = [self.processor.apply_chat_template(row["messages"], tokenize=False) for row in rows]
        images = [Image.fromarray(read_composite(self.images_dir / name)) for row in rows for name in row["images"]]
        batch = dict(self.processor(text=texts, images=images, padding=True, return_tensors="pt"))
        self.tokens.append(int(batch["attention_mask"].sum()))
        return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def plain_turn(params: Params, root: Path, batches: Sequence[Sequence[dict]]) -> tuple[int, float]:
    """Return tokens and seconds of a plain Trainer over the rows of `batches`, without its first step."""
    train = params.train
    base = checkpoint_of(params.model, root)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint_folder(base), dtype=torch.float32)
    processor = load_processor(base)
    encoder = RowEncoder(processor, root / "data/composited")
    rows = [row for batch in batches for row in batch]
    random.Random(0).shuffle(rows)
    model = get_peft_model(
        model,
        LoraConfig(
            r=train.rank,
            lora_alpha=train.alpha,
            target_modules=adapted_modules(model, train),
            trainable_token_indices=answer_words(rows, encoder) if train.words else None,
            task_type="CAUSAL_LM",
        ),
    )
    times, collator = _StepTimes(), _PlainCollator(processor, root / "data/composited")
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            per_device_train_batch_size=train.batch_size,
            max_steps=len(batches),
            learning_rate=train.learning_rate,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=inspecting_device().type == "cpu",
        )
        Trainer(model, settings, data_collator=collator, train_dataset=rows, callbacks=[times]).train()
    return sum(collator.tokens[1 : len(times.ends)]), times.ends[-1] - times.ends[0]


def our_turn(
    params: Params, root: Path, batches: Sequence[Sequence[dict]], backend_name: str = "transformers"
) -> tuple[int, float]:
    """Return tokens and seconds of pinspect's own steps over `batches`, without the first step."""
    backend = open_backend(backend_name)
    model, processor = backend.load(checkpoint_of(params.model, root), params.train)
    encoder = RowEncoder(processor, root / "data/composited")
    words = answer_words([row for batch in batches for row in batch], encoder) if params.train.words else ()
    model = backend.adapt(model, params.train, words)
    backend.to_train(model)
    learner = Learner(backend, model, encoder, params.train, training_processes())
    ends, tokens = [], []
    for number, inputs in enumerate(prepared_ahead(lambda index: learner.inputs(batches[index]), len(batches))):
        learner.step(inputs, number, params.train.learning_rate)
        ends.append(time.perf_counter())
        tokens.append(learner.tokens)
    return tokens[-1] - tokens[0], ends[-1] - ends[0]


def planned(params: Params, root: Path, steps: int) -> list[list[dict]]:
    """Return the first batches of the project's training."""
    encoder = RowEncoder(load_processor(checkpoint_of(params.model, root)), root / "data/composited")
    few_steps = params.train.model_copy(update={"maximum_steps": steps})
    return plan_batches(read_chat(root / "data/chat/train.jsonl"), encoder, params.contract(), few_steps)


def measure(root: Path, steps: int, rounds: int) -> dict:
    """Measure tokens per second of both, the median of `rounds` turns each, and their ratio."""
    params = load_params(root / "params.yaml")
    batches = planned(params, root, steps)
    speeds: dict[str, list[float]] = {"pinspect": [], "plain": []}
    for _ in range(rounds):
        for name, turn in (("pinspect", our_turn), ("plain", plain_turn)):
            tokens, seconds = turn(params, root, batches)
            speeds[name].append(round(tokens / seconds, 1))
    middle = {name: sorted(turns)[len(turns) // 2] for name, turns in speeds.items()}
    device = inspecting_device()
    return {
        "tokens_per_second": middle,
        "turns": speeds,
        "ratio": round(middle["pinspect"] / middle["plain"], 2),
        "steps": len(batches),
        "batch_size": params.train.batch_size,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "bfloat16": computes_bfloat16(device),
        "torch": torch.__version__,
    }


def write_results(figures: dict) -> None:
    """Write the figures as JSON and as a table."""
    speed = figures["tokens_per_second"]
    lines = [
        "# Training speed",
        "",
        (
            f"`python benchmarks/training.py`: {figures['steps']} steps of {figures['batch_size']} rows, "
            f"{figures['device']}, {figures['threads']} threads, torch {figures['torch']}."
        ),
        "",
        "| way | tokens per second |",
        "| --- | --- |",
        f"| plain Hugging Face Trainer, float32, padded | {speed['plain']:,.0f} |",
        (
            f"| pinspect, {'bf16' if figures['bfloat16'] else 'float32'}, rows of similar length, logits of answers "
            f"only | {speed['pinspect']:,.0f} |"
        ),
        f"| ratio | {figures['ratio']:.2f} |",
    ]
    (RESULTS / "training_speed.json").write_text(json.dumps(figures, indent=2) + "\n")
    (RESULTS / "training_speed.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(), help="folder of a project, after `dvc repro check`")
    parser.add_argument("--steps", type=int, default=8, help="steps per turn; the first is not timed")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    arguments = parser.parse_args()
    figures = measure(arguments.root, arguments.steps, arguments.rounds)
    write_results(figures)
    print(json.dumps(figures["tokens_per_second"]), f"ratio {figures['ratio']}")


if __name__ == "__main__":
    environment.apply()
    main()
