"""Composites and labels -> the chat dataset.

    python -m stages.chat

Reads data/raw, data/dst and data/composited. Writes data/chat/{train,validation,test}.jsonl.
"""

import functools
from pathlib import Path

from pinspect.chat.dataset import ChatSource
from pinspect.chat.writing import write_rows
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage
from pinspect.model.families import family_named, require_images_fit


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    data = root / "data"
    contract = params.contract()
    source = ChatSource(data / "raw", data / "dst", data / "composited", contract, params.chat)
    check = functools.partial(require_images_fit, family_named(params.model.family))
    summary, remarks = write_rows(source.rows(), data / "chat", data / "composited", contract, check)
    print(summary.table(contract).to_string())
    print(f"{len(source.set_aside)} inspected captures have no rows, because the dst stage set them aside")
    for file, reason in source.set_aside.items():
        print(f"  data/raw/{file}: {reason}")
    for remark in remarks:
        print(remark)


if __name__ == "__main__":
    run_stage("chat", main)
