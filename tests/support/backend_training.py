"""Trains short adapters with one backend in a process of its own, because Unsloth patches the libraries of the other.

    python -m tests.support.backend_training BACKEND ROOT

ROOT has `data`, and in `bases` a checkpoint for each family but the default one. Writes to ROOT/BACKEND for each
training of `TRAININGS` its adapter, and NAME.json with the facts and the answers of all adapters of this training in
ROOT. `errors.json` has the messages about bases that cannot be loaded.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pinspect.core import environment
from pinspect.core.errors import ModelError
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
    "wide": Training("qwen2-vl-2b", {"quantization": "none"}),
    "wide, checkpointed": Training("qwen2-vl-2b", {"quantization": "none", "gradient_checkpointing": True}),
    "wide, 4 bits": Training("qwen2-vl-2b", {"quantization": "4bit"}),
    "llava": Training("llava-1.5-7b", {"quantization": "none"}),
    "llava, impatient": Training("llava-1.5-7b", {"quantization": "none", "patience": 1, "learning_rate": 1e-9}),
}


def parameters(training: Training) -> Params:
    """Return the parameters of the project, changed for a training."""
    params = load_params(CHECKOUT / "params.yaml")
    none = CounterexampleShares(**dict.fromkeys(CounterexampleShares.model_fields, 0.0))
    short = {
        **{"maximum_steps": 5, "epochs": 5.0, "batch_size": 3, "rank": 4, "warmup_share": 0.0, "learning_rate": 0.003},
        **{"vision": True, "mirror": False, "light_jitter": 0.0, "simple_questions": 0.0},
        "counterexamples": CounterexampleParams(RAW=none, DST=none),
    }
    return params.model_copy(update={"train": params.train.model_copy(update=short | training.changes)})


def checkpoint(training: Training, root: Path) -> Checkpoint:
    """Return the base of a training."""
    family = FAMILIES[training.family]
    folder = CHECKOUT / PROJECT_BASE if family.model_id == PROJECT_BASE else root / "bases" / family.name
    return Checkpoint(family, str(folder), folder, precision="float32")


def answers(training: Training, root: Path, adapter: Path | None, base: Checkpoint | None = None) -> dict[str, Any]:
    """Load an adapter, or a base alone; return its answers, their P(defective), and its loss on validation rows."""
    import torch

    from pinspect.model.generation import answer_rows
    from pinspect.model.loading import load_inspector
    from pinspect.model.rows import RowEncoder

    params, rows = parameters(training), read_chat(root / "data/chat/validation.jsonl")
    inspector = load_inspector(base or checkpoint(training, root), adapter)
    pictures = root / "data/composited"
    batch = RowEncoder(inspector.processor, pictures).batch(rows, answers=True)
    with torch.inference_mode():
        logits = inspector.base_model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    given = answer_rows(inspector, rows, pictures, params.contract(), batch_size=3)
    return {
        "loss": loss.item(),
        "texts": [answer.text for answer in given],
        "p_defective": [answer.p_defective for answer in given],
    }


def trainable(model: Any) -> dict[str, Any]:
    """Return shape, dtype and sum of each trainable parameter by its name."""
    return {
        name: [list(parameter.shape), str(parameter.dtype), parameter.double().sum().item()]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def train(backend: Backend, training: Training, root: Path, out: Path) -> dict[str, Any]:
    """Train an adapter; return its facts, and before the first step its trainable parameters and its layers' code."""
    from peft.tuners.lora import LoraLayer

    from pinspect.model.adapter import train_adapter

    start: dict[str, Any] = {}

    def to_train(model: Any) -> None:
        if not start:
            start["trainable"] = trainable(model)
            layers = {type(module) for module in model.modules() if isinstance(module, LoraLayer)}
            start["code"] = sorted(Path(str(inspect.getsourcefile(layer.forward))).name for layer in layers)
        type(backend).to_train(backend, model)

    backend.to_train = to_train
    base, data = checkpoint(training, root), root / "data"
    facts = train_adapter(
        parameters(training), base, data / "chat", data / "composited", out, out.parent / "work", backend
    )
    return start | {"facts": asdict(facts)}


def errors(backend: Backend, root: Path) -> Iterator[str]:
    """Yield the message about a base that is not on this machine, and about a base that lacks a tensor."""
    from safetensors.torch import load_file, save_file

    wide = checkpoint(TRAININGS["wide"], root)
    damaged = root / backend.name / "damaged"
    shutil.copytree(wide.source, damaged)
    tensors = load_file(damaged / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.1" in name))
    save_file(tensors, damaged / "model.safetensors")
    for base in (Checkpoint(wide.family, wide.family.model_id, None), wide.at(damaged)):
        try:
            backend.load(base, parameters(TRAININGS["wide"]).train)
        except ModelError as error:
            yield str(error).replace(str(damaged), "DAMAGED")


def keep_trainable() -> None:
    """Keep 4-bit weights as they were loaded.

    On a CPU with AVX512-BF16, bitsandbytes packs them for the first answer in a form that cannot be trained any more.
    """
    importlib.import_module("bitsandbytes.nn.modules").has_avx512bf16 = lambda: False


def open_on_cpu(name: str) -> Backend:
    """Open a backend; where there is no GPU, Unsloth and bitsandbytes compute without one."""
    import torch

    if torch.cuda.is_available():
        return open_backend(name)
    keep_trainable()
    # Unsloth prints what GPU it found.
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(name="none", total_memory=0, major=0, minor=0)
    backend = open_backend(name)
    if name == "unsloth":
        # Unsloth looks for the kernels of a GPU; those for a CPU do.
        importlib.import_module("unsloth.models.loader").ALLOW_BITSANDBYTES = True
    return backend


def main(name: str, root: Path) -> None:
    backend = open_on_cpu(name)
    import torch

    torch.set_num_threads(1)
    for title, training in TRAININGS.items():
        out = root / backend.name / title
        result = train(backend, training, root, out)
        result["answers"] = {of.parent.name: answers(training, root, of) for of in root.glob(f"*/{title}")}
        out.with_name(f"{title}.json").write_text(json.dumps(result))
    (root / backend.name / "errors.json").write_text(json.dumps(list(errors(backend, root))))


if __name__ == "__main__":
    environment.apply()
    main(sys.argv[1], Path(sys.argv[2]))
