"""Composites and labels -> the chat dataset.

    python -m stages.chat

Reads data/raw, data/dst and data/composited. Writes data/chat/{train,validation,test}.jsonl.
"""

from pathlib import Path

from pinspect.chat.dataset import build_chat, count_rows, write_chat
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage
from pinspect.model.families import family_named, require_images_fit


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    data = root / "data"
    dataset = build_chat(data / "raw", data / "dst", data / "composited", params.contract(), params.chat)
    rows = [row for split in dataset.rows.values() for row in split]
    remarks = require_images_fit(family_named(params.model.family), rows)
    write_chat(dataset, data / "chat")
    print(count_rows(dataset, params.contract()).to_string())
    print(f"{len(dataset.set_aside)} inspected captures have no rows, because the dst stage set them aside")
    for file, reason in dataset.set_aside.items():
        print(f"  data/raw/{file}: {reason}")
    for remark in remarks:
        print(remark)


if __name__ == "__main__":
    run_stage("chat", main)
