"""The chat dataset -> the LoRA adapter.

    python -m stages.train

    accelerate launch --num_processes 4 -m stages.train && dvc commit train      # on four GPUs

Reads the base model, data/chat and data/composited. Writes models/adapter. After a stop or a kill, the next run resumes
from the last checkpoint in build/train.
"""

from pathlib import Path

from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.model.backends import open_backend
from pinspect.model.families import checkpoint_of


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    base = checkpoint_of(params.model, root)
    backend = open_backend(params.model.backend)  # Unsloth must be imported before transformers
    from pinspect.model.adapter import train_adapter
    from pinspect.model.learner import assemble
    from pinspect.model.loading import load_processor
    from pinspect.model.rows import require_placeholders

    data, out, work = root / "data", root / "models/adapter", root / "build/train"
    require_placeholders(load_processor(base), base.family, read_chat(data / "chat/train.jsonl"))
    facts = train_adapter(params, base, data / "chat", data / "composited", out, work, backend)
    if assemble().is_main_process:
        print(
            f"{facts.steps} steps in {facts.seconds:.0f} s by {facts.backend}; {facts.trainable:,} parameters trained "
            f"({facts.trainable / facts.parameters:.1%})"
        )


if __name__ == "__main__":
    run(main)
