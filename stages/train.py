"""Train the LoRA adapter: `dvc repro train`, or `python stages/train.py`."""

from pathlib import Path

from pinspect.cli import stage
from pinspect.params import load_params


@stage
def main() -> None:
    from pinspect.model.adapter import train_adapter

    params = load_params()
    facts = train_adapter(
        params.train, Path("data/chat"), Path("data/composited"), Path("models/adapter"), Path("build/train")
    )
    share = facts.trainable / facts.parameters
    print(f"models/adapter: {facts.steps} steps in {facts.seconds:.0f} s, {facts.trainable:,} parameters ({share:.1%})")


if __name__ == "__main__":
    main()
