"""The chat dataset -> the LoRA adapter.

    python stages/train.py

    accelerate launch --num_processes 4 stages/train.py && dvc commit train      # on four GPUs

Reads the base model, data/chat and data/composited; writes models/adapter. A run that was stopped resumes from its last
checkpoint in build/train.
"""

from pathlib import Path

from pinspect.core import environment
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.model.backends import open_backend
from pinspect.model.families import checkpoint_of


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    base = checkpoint_of(params.model, root)
    backend = open_backend(params.model.backend)  # Unsloth wants to be imported before what the next line imports
    from pinspect.model.adapter import train_adapter
    from pinspect.model.learner import assemble

    data, out, work = root / "data", root / "models/adapter", root / "build/train"
    facts = train_adapter(params, base, data / "chat", data / "composited", out, work, backend)
    if assemble().is_main_process:
        print(
            f"{facts.steps} steps in {facts.seconds:.0f} s by {facts.backend}; {facts.trainable:,} parameters trained "
            f"({facts.trainable / facts.parameters:.1%})"
        )


if __name__ == "__main__":
    environment.apply()
    run(main)
