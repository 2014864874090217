"""Read the chat dataset in batches, so that the answer checks hold few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pinspect.core.rows import SPLITS, Row, iterate_chat

ROWS_AT_ONCE = 50_000

NumberedRow = tuple[str, int, Row]  # the split of its file, the line, and the row


def batches(chat: Path, size: int) -> Iterator[list[NumberedRow]]:
    """Yield the rows of all splits in batches; rows of one id share a batch, which so shows ids that occur twice.

    Args:
        chat: The folder of the chat dataset.
        size: Number of rows of a batch. A dataset of at most as many rows is one batch, in the order of its files.

    Raises:
        StageInputError: A file is missing or is not JSON.
    """
    first = list(islice(_rows(chat), size + 1))
    if len(first) <= size:
        yield first
        return
    del first
    marks = np.fromiter(map(_mark, _rows(chat)), np.uint32)
    marks.sort()
    repeated = set(marks[1:][marks[1:] == marks[:-1]].tolist())  # with few pairs of other ids that share a mark
    rows = (row for row in _rows(chat) if _mark(row) not in repeated)
    while batch := list(islice(rows, size)):
        yield batch
    if repeated:
        yield [row for row in _rows(chat) if _mark(row) in repeated]


def _mark(row: NumberedRow) -> int:
    """Return 32 bits of a hash of a row's id."""
    return hash(str(row[2].get("id"))) & 0xFFFFFFFF


def _rows(chat: Path) -> Iterator[NumberedRow]:
    return chain.from_iterable(
        ((split, number, row) for number, row in enumerate(iterate_chat(chat / f"{split}.jsonl"), start=1))
        for split in SPLITS
    )
