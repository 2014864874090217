"""Write the chat dataset row by row, so that a million captures need no more memory than a thousand."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.errors import StageInputError
from pinspect.core.files import atomic_path
from pinspect.core.product_files import has_product
from pinspect.core.rows import SPLITS, Row

_REMEMBERED = 1 << 12  # composites that need not be looked for again: those of references, and of one capture


@contextmanager
def chat_files(folder: Path) -> Generator[Callable[[Row], object]]:
    """Yield a function that adds a row to `<split>.jsonl`; each file is replaced atomically, training rows last.

    Args:
        folder: The folder of the chat dataset; after an exception it is as it was.
    """
    encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each row
    with ExitStack() as stack:  # closes in reverse order
        paths = {split: stack.enter_context(atomic_path(folder / f"{split}.jsonl")) for split in SPLITS}
        with ExitStack() as opened:
            files = {split: opened.enter_context(path.open("wb")) for split, path in paths.items()}
            yield lambda row: files[row["split"]].write(f"{encode(row)}\n".encode())


@dataclass
class ChatSummary:
    """What is known of the rows after they have passed by.

    Attributes:
        counts: Number of rows by split, view, shot and defect mode, in the order of their first rows.
        largest: The first of the rows with most images, of each split.
    """

    counts: dict[str, Counter[tuple[str, str, str]]] = field(
        default_factory=lambda: {split: Counter() for split in SPLITS}
    )
    largest: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row, mode: str) -> None:
        """Count a row whose answer has a defect mode."""
        split = row["split"]
        self.counts[split][row["view"], row["shot"], mode] += 1
        if split not in self.largest or len(row["images"]) > len(self.largest[split]["images"]):
            self.largest[split] = row

    def table(self, contract: AnswerContract) -> pd.DataFrame:
        """Return one line for each split, view and shot, one column for each defect mode, and their sum as `rows`."""
        rows = [(split, *key, count) for split in SPLITS for key, count in self.counts[split].items()]
        counted = pd.DataFrame(rows, columns=["split", "view", "shot", "mode", "count"])
        counts = counted.groupby(["split", "view", "shot", "mode"], sort=False)["count"].sum().unstack(fill_value=0)
        counts = counts.reindex(columns=["passed", *contract.defect_modes], fill_value=0)
        return counts.assign(rows=counts.sum(axis=1))


def write_rows(
    rows: Iterable[Row],
    folder: Path,
    composited: Path,
    contract: AnswerContract,
    check: Callable[[list[Row]], list[str]] = lambda rows: [],
) -> tuple[ChatSummary, list[str]]:
    """Write the rows as `chat_files` does, after checking that their images are there.

    Args:
        rows: The rows; in each split in the order of its file.
        folder: The folder of the chat dataset; after an exception it is as it was.
        composited: The folder of the composites that the rows show.
        contract: The answer contract.
        check: Is called with the row of most images of each split before the files are complete.

    Returns:
        A summary of the rows, and what `check` returned.

    Raises:
        StageInputError: An image of a row is missing.
        Exception: Any exception of `check`.
    """
    is_there = functools.lru_cache(_REMEMBERED)(lambda image: has_product(composited / image))
    mode_of = functools.cache(lambda answer, kind: contract.parse(answer, AnswerKind(kind)).defect_mode or "")
    summary = ChatSummary()
    missing: dict[str, str] = {}
    with chat_files(folder) as write:
        for row in rows:
            write(row)
            summary.add(row, mode_of(row["answer"], row["answer_kind"]))
            missing |= {image: row["id"] for image in row["images"] if not is_there(image)}
        if missing:
            image = min(missing)
            raise StageInputError(
                f"{composited / image}: not found, but row {missing[image]} shows it "
                f"({len(missing)} images are missing in all); run `dvc repro -f composite`"
            )
        remarks = check([summary.largest[split] for split in SPLITS if split in summary.largest])
    return summary, remarks
