"""The chat dataset -> the LoRA adapter.

    python stages/train.py

Reads models/base, data/chat and data/composited; writes models/adapter. A run that was stopped resumes from its last
checkpoint in build/train.
"""

from pathlib import Path

from pinspect import quiet  # noqa: F401  before the libraries that read its settings
from pinspect.errors import run
from pinspect.model.adapter import train_adapter
from pinspect.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    facts = train_adapter(
        params.train,
        params.layout.layout(),
        root / "data/chat",
        root / "data/composited",
        root / "models/adapter",
        root / "build/train",
    )
    share = facts.trainable / facts.parameters
    print(f"{facts.steps} steps in {facts.seconds:.0f} s; {facts.trainable:,} parameters trained ({share:.1%})")


if __name__ == "__main__":
    run(main)
