"""Reads a folder of labeled captures that a version is scored on; they never become captures of the project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pinspect.captures.labels import (
    Capture,
    conflicting_labels,
    content_hash,
    contradicted_names,
    distinct,
    images_folder,
    read_captures,
)
from pinspect.captures.splits import TRAIN, SplitRule, read_splits
from pinspect.captures.table import LABELS
from pinspect.core.answers import AnswerContract
from pinspect.core.digests import digest_of_test_set
from pinspect.core.errors import CaptureError, StageInputError
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.core.params import RawParams


@dataclass(frozen=True)
class LabeledFolder:
    """The captures of a folder, each content once, all with a usable label.

    Attributes:
        folder: The folder.
        captures: The captures. A reference is a passed capture like any other.
        sha256: Name of a capture -> hash of its content.
        remarks: Remarks for the user, one line each.
    """

    folder: Path
    captures: tuple[Capture, ...]
    sha256: Mapping[str, str]
    remarks: tuple[str, ...]

    @property
    def images(self) -> Path:
        """The folder of the images."""
        return images_folder(self.folder)

    @property
    def digest(self) -> str:
        """The hash of the photographs and their labels; names and order do not matter."""
        labels = pd.DataFrame(
            {
                "file": self.sha256[capture.file],
                "expected_judgement": capture.judgement,
                "expected_defect_mode": capture.defect_mode,
                "expected_defect_position": capture.defect_position,
            }
            for capture in self.captures
        )
        return digest_of_test_set(labels)

    def trained_on(self, root: Path, params: RawParams) -> tuple[str, ...]:
        """Return the names of the captures that the project in `root` trains on.

        Raises:
            StageInputError: The project has no record of its splits.
            CaptureError: The record is damaged.
        """
        record = root / "data/splits.csv"
        if not record.is_file():
            raise StageInputError(f"{record}: not found, so training captures are unknown; git checkout {record}")
        splits = dict(read_splits(record, SplitRule.of(params)))
        return tuple(capture.file for capture in self.captures if splits.get(self.sha256[capture.file]) == TRAIN)


def read_labeled_folder(folder: Path, contract: AnswerContract, *, shape: str = "") -> LabeledFolder:
    """Read the labels of a folder and check them.

    Args:
        folder: A folder of images, with or without `images/` and `labels.csv`.
        contract: The line's layout, shapes and defect modes.
        shape: Shape to assume where neither the row nor the name has one.

    Raises:
        CaptureError: There is no capture, or labels cannot be used; the message has one line for each problem.
    """
    if not folder.is_dir():
        raise CaptureError(f"{folder}: no such folder; name a folder of images, with or without a {LABELS}")
    labels = read_captures(folder, contract, shape=shape)
    images = images_folder(folder)
    contents = [(capture, content_hash(images / capture.file)) for capture in labels.captures]
    problems = [*labels.problems, *conflicting_labels(contents)]
    if not contents and not problems:
        problems = [f"{folder}: no captures found; expected images ({', '.join(sorted(IMAGE_SUFFIXES))})"]
    if problems:
        raise CaptureError("\n".join(problems))
    kept, remarks = distinct(contents)
    captures = tuple(capture for capture, _ in kept)
    remarks += contradicted_names(captures, contract)
    return LabeledFolder(folder, captures, {capture.file: sha256 for capture, sha256 in kept}, tuple(remarks))
