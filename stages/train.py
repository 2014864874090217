"""The chat dataset -> the LoRA adapter.

    python -m stages.train

    accelerate launch --num_processes 4 -m stages.train && dvc commit train      # on four GPUs

Reads the base model, models/start (if train.start names a version), data/chat and data/composited. Writes
models/adapter, and facts about the run (time, device, commit) to build/runs/train.json. After a stop or a kill, the
next run resumes from the last checkpoint in build/train. With MLFLOW_TRACKING_URI, the curve is logged while it grows.
"""

from contextlib import nullcontext
from pathlib import Path

from pinspect.core.digests import git_commit, weights_sha256
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.core.runs import write_run_facts
from pinspect.core.stage import run_stage
from pinspect.core.start import start_folder
from pinspect.model.backends import open_backend
from pinspect.model.families import checkpoint_of


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    base = checkpoint_of(params.model, root)
    backend = open_backend(params.model.backend)  # imports Unsloth, which must come before the next imports
    import torch

    from pinspect.model.adapter import train_adapter
    from pinspect.model.learner import training_processes
    from pinspect.model.live_log import live_log
    from pinspect.model.loading import load_processor
    from pinspect.model.rows import require_placeholders

    torch.set_num_threads(params.model.threads)
    data, out, work = root / "data", root / "models/adapter", root / "build/train"
    require_placeholders(load_processor(base), base.family, read_chat(data / "chat/train.jsonl"))
    start = start_folder(root, params.train.start)
    folders = (data / "chat", data / "composited", out, work)
    is_main = training_processes().is_main_process
    with live_log(f"{root.resolve().name}, {base.family.name}") if is_main else nullcontext() as log:
        facts = train_adapter(params, base, *folders, backend, start=start, report=log)
    if is_main:
        origin = {"git_commit": git_commit(root), "weights_sha256": weights_sha256(out)}
        write_run_facts(root, "train", facts.run_facts() | origin)
        print(
            f"{facts.steps} steps in {facts.seconds:.0f} s with {facts.backend}; {facts.trainable:,} trainable "
            f"parameters ({facts.trainable / facts.parameters:.1%}) in {sum(facts.lora_modules.values())} LoRA modules"
        )


if __name__ == "__main__":
    run_stage("train", main)
