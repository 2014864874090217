"""The inbox: a folder into which captures are dropped, and out of which they are taken as they come in.

What is wrong with a capture is told, and the capture stays where it is until someone mends it. A capture leaves the
inbox only when it lies among the project's captures; a run that is killed between the two is made good by the next.
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
    """Move the good captures of `inbox` into `folder` (see `add_captures`), and those out that `folder` has already.

    The report's `refused` tells what is wrong with those that stay, a line each. An inbox that is empty, or not there,
    is nothing wrong. Raises CaptureError when a labels.csv is no such table, or `folder` itself has a problem.
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
    """Take images out of `folder` that a killed process had moved in and not yet labelled: their source has them still.

    `add_captures` works in `.adding-*`; one in which nothing has happened for a while belongs to no living process.
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
    """The files that a labels.csv is about."""
    return set(_names(labels.read_bytes().splitlines(keepends=True))) - {""} if labels.is_file() else set()


def _forget_rows(inbox: Path, there: Path, taken: Collection[str]) -> None:
    """Take the rows of captures that came in out of the inbox's labels; all other lines stay as they are.

    Those are the `taken` ones, and those whose image is gone from the inbox and lies `there`: a kill came between.
    """
    labels, images = inbox / LABELS, images_folder(inbox)
    if not labels.is_file():
        return
    lines = labels.read_bytes().splitlines(keepends=True)
    names = _names(lines)
    gone = {name for name in names if name and not (images / name).exists() and (there / name).is_file()}
    kept = [line for name, line in zip(names, lines, strict=True) if name not in gone and name not in taken]
    if kept != lines:
        write_file(labels, b"".join(kept))


def _names(lines: Sequence[bytes]) -> list[str]:
    """The file that each line of a labels.csv is about; empty for the header and for what is no row."""
    rows = [next(csv.reader([line.decode("utf-8-sig", errors="replace")]), []) for line in lines]
    header = [name.strip() for name in rows[0]] if rows else []
    column = header.index("file") if "file" in header else len(header)
    return ["", *(row[column].strip() if len(row) > column else "" for row in rows[1:])][: len(lines)]
