"""Take captures from the inbox, a folder for new captures, into the project's captures.

A capture with a problem is reported and stays in the inbox until someone corrects it. A capture leaves the inbox only
after its image and its label were read back from the project; the next run completes a run that was killed in between.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pinspect.captures.adding import AddReport, add_locked
from pinspect.captures.change import locked
from pinspect.captures.labels import (
    LABELS,
    Capture,
    capture_of_row,
    content_hash,
    images_folder,
    read_captures,
    read_table,
)
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
    images = images_folder(inbox)
    waiting = [row for _, row in read_table(inbox / LABELS) if row["file"] and not (images / row["file"]).exists()]
    if not waiting:
        return set()
    present = {capture.file: capture.label for capture in read_captures(folder, contract).captures}
    return {row["file"] for row in waiting if present.get(row["file"]) == capture_of_row(row, contract, "").label}


def _forget_rows(inbox: Path, names: Collection[str]) -> None:
    """Remove the rows of `names` from the inbox's labels; all other lines stay as they are, new ones too."""
    labels = inbox / LABELS
    while names and labels.is_file():
        content = labels.read_bytes()
        lines = content.splitlines(keepends=True)
        kept = [line for name, line in zip(_names(lines), lines, strict=True) if name not in names]
        if kept == lines:
            return
        if labels.read_bytes() == content:  # nobody has added a row meanwhile
            write_file(labels, b"".join(kept))
            return


def _names(lines: Sequence[bytes]) -> list[str]:
    """Return the file of each line of a labels.csv; empty for the header and for lines without a file."""
    rows = [next(csv.reader([line.decode("utf-8-sig", errors="replace")]), []) for line in lines]
    header = [name.strip() for name in rows[0]] if rows else []
    column = header.index("file") if "file" in header else len(header)
    return ["", *(row[column].strip() if len(row) > column else "" for row in rows[1:])][: len(lines)]
