"""The rows of the chat dataset: one JSON object per line of `data/chat/<split>.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pinspect.core.errors import StageInputError

SPLITS = ("train", "validation", "test")

Row = dict[str, Any]


def read_chat(path: Path) -> list[Row]:
    """Read the rows of one chat file.

    Args:
        path: A file such as `data/chat/test.jsonl`.

    Returns:
        The rows in the order of the file.

    Raises:
        StageInputError: The file is missing, or one of its lines is not a JSON object. The message names the file and
            the line.
    """
    try:
        with path.open(encoding="utf-8", newline="\n") as file:  # U+2028 in a name is no end of a row
            lines = list(file)
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro chat`") from None
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise StageInputError(f"{path}:{number}: not JSON ({error}); run `dvc repro -f chat`") from None
        if not isinstance(row, dict):
            problem = f"expected a JSON object, found {line.strip()!r}"
            raise StageInputError(f"{path}:{number}: {problem}; run `dvc repro -f chat`")
        rows.append(cast(Row, row))
    return rows
