"""Trains short adapters with one backend in a process of its own, because Unsloth patches the libraries of the other.

    python -m tests.support.backend_training BACKEND ROOT

ROOT has `data`, and in `bases` a checkpoint for each family but the default one. For each training of `TRAININGS` writes the
adapter to ROOT/BACKEND, and what its model is and answers to ROOT/BACKEND/NAME.json.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pinspect.core import environment
from pinspect.core.params import CounterexampleParams, CounterexampleShares, Params, load_params
from pinspect.core.rows import read_chat
from pinspect.model.backends import Backend, open_backend
from pinspect.model.families import FAMILIES, PROJECT_BASE, Checkpoint

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Training:
    """A training of five steps on the same three rows.

    Attributes:
        family: Name in `FAMILIES`.
        changes: Values of the section `train`.
    """

    family: str
    changes: dict[str, object] = field(default_factory=dict)


TRAININGS = {
    "default": Training("pinspect", {"patience": 5}),
    "default, impatient": Training("pinspect", {"patience": 1, "learning_rate": 1e-9}),
    "wide": Training("qwen2-vl-2b", {"quantization": "none"}),
    "wide, checkpointed": Training("qwen2-vl-2b", {"quantization": "none", "gradient_checkpointing": True}),
    "wide, 4 bits": Training("qwen2-vl-2b", {"quantization": "4bit"}),
    "llava": Training("llava-1.5-7b", {"quantization": "none"}),
}


def parameters(training: Training) -> Params:
    """Return the parameters of the project, changed for a training."""
    params = load_params(CHECKOUT / "params.yaml")
    none = CounterexampleShares(**dict.fromkeys(CounterexampleShares.model_fields, 0.0))
    short = {
        **{"maximum_steps": 5, "epochs": 5.0, "batch_size": 3, "rank": 4, "warmup_share": 0.0, "learning_rate": 0.01},
        **{"mirror": False, "light_jitter": 0.0, "simple_questions": 0.0, "precision": "float32"},
        "counterexamples": CounterexampleParams(RAW=none, DST=none),
    }
    return params.model_copy(update={"train": params.train.model_copy(update=short | training.changes)})


def checkpoint(training: Training, root: Path) -> Checkpoint:
    """Return the base of a training."""
    family = FAMILIES[training.family]
    folder = CHECKOUT / PROJECT_BASE if family.model_id == PROJECT_BASE else root / "bases" / family.name
    return Checkpoint(family, str(folder), folder)


def answers(training: Training, root: Path, adapter: Path) -> dict[str, Any]:
    """Load an adapter; return its answers, their P(defective), and its loss on the validation rows."""
    from pinspect.model.generation import answer_rows
    from pinspect.model.loading import load_inspector
    from pinspect.model.rows import RowEncoder

    params, rows = parameters(training), read_chat(root / "data/chat/validation.jsonl")
    inspector = load_inspector(checkpoint(training, root), adapter)
    pictures = root / "data/composited"
    batch = RowEncoder(inspector.processor, pictures).batch(rows, answers=True)
    backend = Backend()
    backend.dtype = inspector.base_model.dtype
    loss = backend.answer_loss(inspector.model, batch, int((batch["labels"][:, 1:] != -100).sum()))
    given = answer_rows(inspector, rows, pictures, params.contract(), batch_size=3)
    return {
        "loss": loss.item(),
        "texts": [answer.text for answer in given],
        "p_defective": [answer.p_defective for answer in given],
    }


def trainable(backend: Backend, training: Training, root: Path) -> dict[str, Any]:
    """Return name, shape, dtype and sum of all parameters that a backend would train."""
    import torch

    from pinspect.model.adapter import answer_words
    from pinspect.model.rows import RowEncoder

    train = parameters(training).train
    model, processor = backend.load(checkpoint(training, root), train)
    encoder = RowEncoder(processor, root / "data/composited")
    torch.manual_seed(train.seed)
    model = backend.adapt(model, train, answer_words(read_chat(root / "data/chat/train.jsonl"), encoder))
    return {
        name: [list(parameter.shape), str(parameter.dtype), parameter.double().sum().item()]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def without_a_gpu() -> None:
    """Answer what Unsloth and bitsandbytes ask about a GPU before they compute on a CPU."""
    import torch

    if torch.cuda.is_available():
        return
    nameless = SimpleNamespace(name="no GPU", total_memory=8 * 2**30, major=0, minor=0)
    torch.cuda.get_device_properties = lambda *_: nameless
    # With AVX512-BF16, bitsandbytes packs weights for answers in a form that a CPU cannot train on any more.
    if importlib.util.find_spec("bitsandbytes"):
        importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False


def main(name: str, root: Path) -> None:
    without_a_gpu()
    backend = open_backend(name)
    import torch

    from pinspect.model.adapter import train_adapter

    torch.set_num_threads(1)
    out = root / backend.name
    for title, training in TRAININGS.items():
        parts = trainable(backend, training, root)
        base, data = checkpoint(training, root), root / "data"
        facts = train_adapter(
            parameters(training), base, data / "chat", data / "composited", out / title, out / "work", backend
        )
        result = {"trainable": parts, "facts": asdict(facts), "answers": answers(training, root, out / title)}
        (out / f"{title}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    environment.apply()
    main(sys.argv[1], Path(sys.argv[2]))
