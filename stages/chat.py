"""Composites and labels -> the chat dataset.

    python stages/chat.py

Reads data/raw, data/dst and data/composited (their manifests); writes data/chat/{train,validation,test}.jsonl, whose
prompts the chosen model family must be able to show.
"""

from pathlib import Path

from pinspect.chat.dataset import ChatDataset, build_chat, count_rows, write_chat
from pinspect.core import environment
from pinspect.core.errors import ModelError, run
from pinspect.core.params import load_params
from pinspect.model.families import Checkpoint, checkpoint_of, require_images_fit


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    data = root / "data"
    dataset = build_chat(data / "raw", data / "dst", data / "composited", params.contract(), params.chat)
    remarks = require_prompts_fit(checkpoint_of(params.model, root), dataset)
    write_chat(dataset, data / "chat")
    print(count_rows(dataset, params.contract()).to_string())
    print(f"{len(dataset.set_aside)} inspected captures have no rows, since the dst stage set them aside")
    for file, reason in dataset.set_aside.items():
        print(f"  data/raw/{file}: {reason}")
    print(*remarks, sep="\n", end="\n" if remarks else "")


def require_prompts_fit(checkpoint: Checkpoint, dataset: ChatDataset) -> list[str]:
    """Images must be few enough for the family, and its chat template must hold one placeholder for each.

    Returns remarks for people. Raises StageInputError.
    """
    rows = [row for split in dataset.rows.values() for row in split]
    remarks = require_images_fit(checkpoint.family, rows)
    later = "its chat template is checked when training starts"
    if checkpoint.folder is not None and not checkpoint.folder.is_dir():
        return [*remarks, f"{checkpoint} is not here: {later}"]
    from pinspect.model.loading import load_processor
    from pinspect.model.rows import require_placeholders

    try:
        processor = load_processor(checkpoint)
    except ModelError as error:
        return [*remarks, f"{error}; {later}"]
    require_placeholders(processor, checkpoint.family, rows)
    return remarks


if __name__ == "__main__":
    environment.apply()
    run(main)
