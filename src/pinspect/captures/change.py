"""Change a folder of captures: one process at a time, and completely or not at all.

`pinspect add`, the inbox and corrections share one lock from reading `labels.csv` to replacing it. A change is prepared
in a folder `.adding-*`, with a plan of the images that it adds and removes; the rename of `labels.csv` decides it. An
image of the plan that has no row afterwards does not belong to the captures: the change was not decided and its source
still has the image, or the change has removed it. Whoever locks the folder next deletes what a killed process has left.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pinspect.captures.labels import (
    IMAGES,
    Capture,
    images_folder,
    is_image,
    name_key,
)
from pinspect.captures.table import COLUMNS, LABEL_COLUMNS, LABELS, read_table
from pinspect.core.errors import CaptureError
from pinspect.core.locks import only_process

_PLACE = ".adding-"
_PLAN = "plan.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a captures' folder against other writers, and complete or undo what a killed writer has left.

    Args:
        folder: The captures' folder; it may be missing. The lock `.<folder>.lock` lies beside it. Do not nest.

    Yields:
        Nothing, once this thread holds the lock.

    Raises:
        CaptureError: The lock cannot be made, or `labels.csv` is not a table of labels.
    """
    folder = folder.resolve()
    lock = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(only_process(lock, f"{folder}: waiting for another process that adds captures"))
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); correct its permissions"
            raise CaptureError(f"{folder.parent}: {reason}") from None
        for place in folder.glob(f"{_PLACE}*"):
            _settle(place, folder)
        yield


def heal(folder: Path) -> None:
    """Complete or undo what a killed writer has left in a captures' folder, if it exists."""
    if folder.is_dir():
        with locked(folder):
            pass


def store(captures: Sequence[Capture], images: Path, folder: Path, replaced: str = "") -> None:
    """Add captures to a locked folder; after an exception the folder is as it was.

    Args:
        captures: The captures; the folder has no image of their names, except `replaced`.
        images: The folder that holds their images.
        folder: The captures' folder, locked by the caller.
        replaced: Name of a capture to remove in the same step; none if empty.

    Raises:
        CaptureError: The folder cannot be written, or a person has changed `labels.csv` at this moment.
    """
    try:
        _store(captures, images, folder, replaced)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CaptureError(f"{folder}: cannot be written ({reason}); nothing was added") from error


def _store(captures: Sequence[Capture], images: Path, folder: Path, replaced: str) -> None:
    target = images_folder(folder)
    if not any(is_image(path.name) for path in target.glob("*")):
        target = folder / IMAGES
    target.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=_PLACE, dir=folder))
    try:
        before = _content(folder / LABELS)
        rows = [row for _, row in read_table(folder / LABELS) if not replaced or row["file"] != replaced]
        _write_labels(place / LABELS, [*rows, *(capture.row() for capture in captures)])
        new = [capture.file for capture in captures if capture.file != replaced]
        for name in new:
            shutil.copyfile(images / name, place / name)
        (place / _PLAN).write_text(json.dumps([*new, *([replaced] if replaced else [])]), encoding="utf-8")
        for name in new:
            (place / name).rename(target / name)
        if _content(folder / LABELS) != before:
            raise CaptureError(f"{folder / LABELS}: changed by another program just now; try again")
        (place / LABELS).replace(folder / LABELS)
    finally:
        _settle(place, folder)


def _settle(place: Path, folder: Path) -> None:
    """Delete the images of a plan that have no row, then the plan."""
    try:
        plan = json.loads((place / _PLAN).read_bytes())
    except (OSError, ValueError):  # no image is moved before the plan is complete
        plan = []
    labelled = {name_key(row["file"]) for _, row in read_table(folder / LABELS)} if plan else set()
    for name in plan:
        if name_key(name) not in labelled:
            (images_folder(folder) / name).unlink(missing_ok=True)
    shutil.rmtree(place)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _write_labels(path: Path, rows: Sequence[dict[str, str]]) -> None:
    columns = [column for column in COLUMNS if column in LABEL_COLUMNS or any(row.get(column) for row in rows)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
