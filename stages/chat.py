"""Composites and labels -> the chat dataset.

    python stages/chat.py

Reads data/raw, data/dst and data/composited (their manifests); writes data/chat/{train,validation,test}.jsonl.
"""

from pathlib import Path

from pinspect.data.chat import build_chat, count_rows, write_chat
from pinspect.errors import run
from pinspect.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    data = root / "data"
    dataset = build_chat(data / "raw", data / "dst", data / "composited", params.contract(), params.chat)
    write_chat(dataset, data / "chat")
    print(count_rows(dataset, params.contract()).to_string())
    print(f"{len(dataset.set_aside)} inspected captures have no rows, since the dst stage set them aside")
    for file, reason in dataset.set_aside.items():
        print(f"  data/raw/{file}: {reason}")


if __name__ == "__main__":
    run(main)
