"""Exports the chat dataset with its pictures as Parquet, which `datasets`, TRL and Unsloth load as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pinspect.core.digests import dvc_directory_hash
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file
from pinspect.core.product_files import read_product
from pinspect.core.rows import SPLITS, Row, read_chat

_FACTS = ("id", "source", "split", "shape", "view", "kind", "shot", "capture", "sha256", "answer_kind", "answer")
_GROUP = 500  # rows in memory at once; within a group, each picture is stored once
_DICTIONARY_BYTES = 1 << 28

_STRING: dict[str, Any] = {"dtype": "string", "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "List"}


_MESSAGES = _list({"role": _STRING, "content": _list({"type": _STRING, "text": _STRING})})
_CHAT = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())])))])
)
_PICTURES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
# Trainers that see `messages` learn whole conversations, so each form has a configuration of its own.
_CONFIGURATIONS = {"default": ("prompt", "completion"), "messages": ("messages",)}


def export_dataset(root: Path, out: Path) -> dict[str, int]:
    """Write the chat dataset of a project as one Parquet file per split, with a card that `load_dataset` reads.

    Args:
        root: The project's folder.
        out: Folder to write; missing or empty.

    Returns:
        Split -> number of rows; splits without rows have no file.

    Raises:
        StageInputError: `out` is not empty, or a row or a picture is missing.
    """
    if out.exists() and any(out.iterdir()):
        raise StageInputError(f"{out}: the folder is not empty; choose a new folder")
    chat, composited = root / "data/chat", root / "data/composited"
    rows = {split: read_chat(chat / f"{split}.jsonl") for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    counts = {split: len(rows[split]) for split in SPLITS if rows[split]}
    for split in counts:
        _write_split(rows[split], composited, out / f"{split}.parquet")
    write_file(out / "README.md", _card(counts, dvc_directory_hash(chat)))
    return counts


def _write_split(rows: Sequence[Row], composited: Path, path: Path) -> None:
    """Write the rows of one split with the bytes of their pictures."""
    fields = [*((name, pa.string()) for name in _FACTS), ("images", _PICTURES)]
    fields += [(name, _CHAT) for name in ("prompt", "completion", "messages")]
    features = dict.fromkeys(_FACTS, _STRING) | {"images": _list({"_type": "Image"})}
    features |= dict.fromkeys(("prompt", "completion", "messages"), _MESSAGES)
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    with pq.ParquetWriter(path, schema, compression="zstd", dictionary_pagesize_limit=_DICTIONARY_BYTES) as writer:
        for start in range(0, len(rows), _GROUP):
            writer.write_table(pa.Table.from_pylist(list(_entries(rows[start : start + _GROUP], composited)), schema))


def _entries(rows: Sequence[Row], composited: Path) -> Iterator[dict[str, Any]]:
    pictures: dict[str, bytes] = {}
    for row in rows:
        for name in row["images"]:
            if name not in pictures:
                pictures[name] = _picture(composited / name, row["id"])
        yield {
            **{name: row[name] for name in _FACTS},
            "images": [{"bytes": pictures[name], "path": name} for name in row["images"]],
            "prompt": row["messages"][:-1],
            "completion": row["messages"][-1:],
            "messages": row["messages"],
        }


def _picture(path: Path, row: str) -> bytes:
    try:
        return read_product(path)
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found, but row {row} shows it; run `dvc repro composite`") from None


def _card(counts: dict[str, int], digest: str) -> str:
    """Return the card of the dataset; its head defines the configurations."""
    configurations = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{split}.parquet"} for split in counts],
            "columns": [*_FACTS, "images", *columns],
            **({"default": True} if name == "default" else {}),
        }
        for name, columns in _CONFIGURATIONS.items()
    ]
    head = {"task_categories": ["image-text-to-text"], "tags": ["visual-inspection"], "configs": configurations}
    rows = "\n".join(f"| {split} | {count} |" for split, count in counts.items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# Chat dataset of an inspection line

Questions about pictures of wire-harness connectors and the expected answers, exported by pinspect. The pictures are in
the column `images`, in the order of the image parts of the conversation.

| split | rows |
| --- | --- |
{rows}

    load_dataset("DIR")                 # prompt and completion: trainers learn the answer only
    load_dataset("DIR", "messages")     # whole conversations

`data/chat` of the project had the DVC hash `{digest}`.
"""
