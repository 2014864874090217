"""Composites and labels -> the chat dataset.

    python stages/chat.py

Reads data/raw, data/dst and data/composited (their manifests); writes data/chat/{train,validation,test}.jsonl.
"""

import sys
from pathlib import Path

from pinspect.data import chat
from pinspect.errors import PinspectError
from pinspect.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    dataset = chat.build_chat(
        chat.read_manifest(root / "data/raw/manifest.csv", chat.RAW_COLUMNS),
        chat.read_manifest(root / "data/dst/manifest.csv", chat.DST_COLUMNS),
        chat.read_manifest(root / "data/composited/manifest.csv", chat.COMPOSITED_COLUMNS),
        params.contract(),
        params.chat,
    )
    for rows in dataset.rows.values():
        chat.require_images(rows, root / "data/composited")
    chat.write_chat(dataset, root / "data/chat")
    print(chat.count_rows(dataset, params.contract()).to_string())
    print(f"{len(dataset.set_aside)} inspected captures have no rows: the dst stage set them aside")


if __name__ == "__main__":
    try:
        main()
    except PinspectError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
