"""Captures as the stages after `raw` see them, and the references of each line, the best aligned one first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from pinspect.core.answers import DEFECTIVE, Answer, AnswerContract
from pinspect.core.errors import StageInputError
from pinspect.core.lines import Line, LineRule, lines_of

RAW_COLUMNS = (
    *("file", "sha256", "source", "capture", "shape", "judgement", "defect_mode", "defect_position", "role", "split"),
)
DST_COLUMNS = ("file", "alignment_score", "error")


@dataclass(frozen=True)
class RawCapture:
    """One capture of the raw manifest, with its label and its split.

    Attributes:
        file: The image, relative to the raw folder.
        sha256: The hash of the image's bytes, in hex.
        source: `camera` or `virtual`.
        capture: The file name under which the user added the image.
        shape: The pin shape, e.g. `CYLN`.
        judgement: `passed` or `defective`.
        defect_mode: `passed`, or one of the line's modes.
        defect_position: The address of the defective pin, or `passed`.
        role: `reference` or `inspected`.
        split: `train`, `validation` or `test`.
        line: The line of the capture; it can be compared with the references of this line.
    """

    file: str
    sha256: str
    source: str
    capture: str
    shape: str
    judgement: str
    defect_mode: str
    defect_position: str
    role: str
    split: str
    line: Line

    def answer(self, view: str, contract: AnswerContract) -> Answer:
        """Return the label as an answer of the contract, for the `view` of the capture (`RAW` or `DST`)."""
        if self.judgement != DEFECTIVE:
            return contract.passed(self.shape, view)
        return contract.defective(self.shape, view, self.defect_mode, contract.layout.address(self.defect_position))


def raw_captures(raw: pd.DataFrame, rule: LineRule | None = None) -> list[RawCapture]:
    """Return the captures of rows of the raw manifest (`RAW_COLUMNS` of it), in their order; see `lines_of`."""
    lines = lines_of(raw, rule)
    values = zip(*(raw[column] for column in RAW_COLUMNS), strict=True)
    return [RawCapture(*row, line=lines[row[0]]) for row in values]


def rank_references(captures: Iterable[RawCapture], dst: pd.DataFrame) -> dict[Line, list[RawCapture]]:
    """Rank the usable references of each line by their alignment score, the highest first.

    The alignment score is the correlation of a capture with the mean image of its unit space. References of equal
    scores are ordered by content hash. Evaluation and production show the first reference.

    Args:
        captures: The captures of the raw manifest.
        dst: The dst manifest, with `DST_COLUMNS`.

    Returns:
        The references of each line that has any.

    Raises:
        StageInputError: A reference lies outside the training split; a test capture must never be seen in training.
    """
    scores = dst[dst["error"] == ""].set_index("file")["alignment_score"].astype(float).to_dict()
    references: dict[Line, list[RawCapture]] = defaultdict(list)
    for capture in captures:
        if capture.role != "reference":
            continue
        if capture.split != "train":
            raise StageInputError(
                f"data/raw/manifest.csv: reference {capture.file} is in split {capture.split!r}, expected 'train'; "
                "run `dvc repro -f raw`"
            )
        if capture.file in scores:
            references[capture.line].append(capture)
    return {
        line: sorted(of_line, key=lambda capture: (-scores[capture.file], capture.sha256))
        for line, of_line in references.items()
    }
