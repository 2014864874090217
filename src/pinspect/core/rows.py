"""The rows of the chat dataset: one JSON object per line of `data/chat/<split>.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pinspect.core.errors import StageInputError

SPLITS = ("train", "validation", "test")

Row = dict[str, Any]


def read_chat(path: Path) -> list[Row]:
    """Read the rows of one chat file; see `iterate_chat`."""
    return list(iterate_chat(path))


def iterate_chat(path: Path) -> Iterator[Row]:
    """Yield the rows of one chat file, one at a time.

    Args:
        path: A file such as `data/chat/test.jsonl`.

    Yields:
        The rows in the order of the file.

    Raises:
        StageInputError: The file is missing, or one of its lines is not a JSON object. The message names the file and
            the line.
    """
    try:
        file = path.open(encoding="utf-8", newline="\n")  # U+2028 in a name is no end of a row
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro chat`") from None
    with file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise StageInputError(f"{path}:{number}: not JSON ({error}); run `dvc repro -f chat`") from None
            if not isinstance(row, dict):
                problem = f"expected a JSON object, found {line.strip()!r}"
                raise StageInputError(f"{path}:{number}: {problem}; run `dvc repro -f chat`")
            yield cast(Row, row)
