"""Take captures from the inbox, a folder for new captures, into the project's captures.

A capture with a problem is reported and stays in the inbox until someone corrects it. A capture leaves the inbox only
after it was added to the project; the next run completes a run that was killed in between.
"""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from pinspect.captures.labels import LABELS, AddReport, add_captures, images_folder
from pinspect.core.answers import AnswerContract
from pinspect.core.files import write_file
from pinspect.core.images import IMAGE_SUFFIXES

SECONDS_OF_ADDING = 60


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
        CaptureError: A `labels.csv` is not a table of labels, or the captures' folder has a problem.
    """
    _undo_cut_off(folder)
    _forget_rows(inbox, images_folder(folder), taken=())
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in images_folder(inbox).glob("[!.]*")):
        return AddReport((), ())
    report = add_captures(inbox, folder, contract, max_pixels=max_pixels, leave_bad=True)
    taken = {*report.added, *report.skipped}
    for name in taken:
        (images_folder(inbox) / name).unlink()
    _forget_rows(inbox, images_folder(folder), taken)
    return report


def _undo_cut_off(folder: Path) -> None:
    """Remove images without a label that a killed process has moved into `folder`; the source still has them.

    `add_captures` works in `.adding-*`. An old folder of this name belongs to a process that was killed.
    """
    for place in folder.glob(".adding-*"):
        if time.time() - place.stat().st_mtime < SECONDS_OF_ADDING:
            continue
        labelled, intended = _files(folder / LABELS), _files(place / LABELS)
        for name in intended - labelled:
            if not (place / name).exists():
                (images_folder(folder) / name).unlink(missing_ok=True)
        shutil.rmtree(place)


def _files(labels: Path) -> set[str]:
    """Return the files that a labels.csv has rows for."""
    return set(_names(labels.read_bytes().splitlines(keepends=True))) - {""} if labels.is_file() else set()


def _forget_rows(inbox: Path, target: Path, taken: Collection[str]) -> None:
    """Remove the rows of added captures from the inbox's labels; all other lines stay unchanged.

    Added captures are the `taken` ones, and after a kill those whose image is in `target` instead of in the inbox.
    """
    labels, images = inbox / LABELS, images_folder(inbox)
    if not labels.is_file():
        return
    lines = labels.read_bytes().splitlines(keepends=True)
    names = _names(lines)
    gone = {name for name in names if name and not (images / name).exists() and (target / name).is_file()}
    kept = [line for name, line in zip(names, lines, strict=True) if name not in gone and name not in taken]
    if kept != lines:
        write_file(labels, b"".join(kept))


def _names(lines: Sequence[bytes]) -> list[str]:
    """Return the file of each line of a labels.csv; empty for the header and for lines without a file."""
    rows = [next(csv.reader([line.decode("utf-8-sig", errors="replace")]), []) for line in lines]
    header = [name.strip() for name in rows[0]] if rows else []
    column = header.index("file") if "file" in header else len(header)
    return ["", *(row[column].strip() if len(row) > column else "" for row in rows[1:])][: len(lines)]
