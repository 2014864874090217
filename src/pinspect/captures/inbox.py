"""Take captures from the inbox, a folder for new captures, into the project's captures.

A capture with a problem is reported and stays in the inbox until someone corrects it. A capture leaves the inbox only
after its image and its label were read back from the project; the next run completes a run that was killed in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pinspect.captures.adding import AddReport, add_locked
from pinspect.captures.change import locked
from pinspect.captures.labels import (
    Capture,
    capture_of_row,
    content_hash,
    images_folder,
    name_key,
    read_captures,
)
from pinspect.captures.table import LABELS, Table, read_table
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file
from pinspect.core.images import IMAGE_SUFFIXES


def take_captures(inbox: Path, folder: Path, contract: AnswerContract, *, max_pixels: int) -> AddReport:
    """Move the valid captures of the inbox into the captures' folder, and remove the ones that it has already.

    Args:
        inbox: The inbox; it may be empty or missing.
        folder: The captures' folder.
        contract: The line's layout, shapes and defect modes.
        max_pixels: Refuse images with more pixels.

    Returns:
        The report of `add_captures`; `refused` has the problems of the captures that stay in the inbox.

    Raises:
        CaptureError: A `labels.csv` is not a table of labels, the captures' folder has a problem, or an added capture
            could not be read back; the inbox then still has it.
    """
    if not inbox.is_dir():
        return AddReport((), ())
    with locked(folder):
        _forget_rows(inbox, _moved(inbox, folder, contract))
        images = images_folder(inbox)
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in images.glob("[!.]*")):
            return AddReport((), ())
        labels = {capture.file: capture for capture in read_captures(inbox, contract).captures}
        report = add_locked(inbox, folder, contract, max_pixels=max_pixels, leave_bad=True)
        _read_back(report.added, labels, images, folder, contract)
        taken = {*report.added, *report.skipped}
        for name in taken:
            (images / name).unlink()
        _forget_rows(inbox, taken)
        return report


def _read_back(
    names: Sequence[str], labels: Mapping[str, Capture], images: Path, folder: Path, contract: AnswerContract
) -> None:
    """Raise CaptureError unless `folder` has the image and the label of each name."""
    present = {capture.file: capture for capture in read_captures(folder, contract).captures}
    target = images_folder(folder)
    for name in names:
        if present.get(name) != labels[name] or content_hash(target / name) != content_hash(images / name):
            raise CaptureError(
                f"{target / name}: not as it was in the inbox; the inbox still has it: check the disk, try again"
            )


def _moved(inbox: Path, folder: Path, contract: AnswerContract) -> set[str]:
    """Return the names of rows without an image whose label `folder` has: a killed run has moved their images."""
    images = {name_key(path.name) for path in images_folder(inbox).glob("*")}
    waiting = [row for _, row in read_table(inbox / LABELS) if row["file"] and name_key(row["file"]) not in images]
    if not waiting:
        return set()
    present = {name_key(capture.file): capture.label for capture in read_captures(folder, contract).captures}
    labels = {row["file"]: capture_of_row(row, contract, "").label for row in waiting}
    return {name for name, label in labels.items() if present.get(name_key(name)) == label}


def _forget_rows(inbox: Path, names: Collection[str]) -> None:
    """Remove the rows of `names` from the inbox's labels; all other lines stay as they are, new ones too."""
    labels = inbox / LABELS
    keys = {name_key(name) for name in names}
    while keys and labels.is_file():
        content = labels.read_bytes()
        table = Table.parse(labels, content)
        kept = "".join(line for name, line in table.lines() if name_key(name) not in keys).encode(table.encoding)
        if kept == content:
            return
        if labels.read_bytes() == content:  # nobody has added a row meanwhile
            write_file(labels, kept)
            return
