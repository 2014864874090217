"""Add captures to the project's captures, after a check of every image and label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pinspect.captures.change import locked, store
from pinspect.captures.dvc_images import record_images
from pinspect.captures.labels import (
    IMAGES,
    Capture,
    conflicting_labels,
    content_hash,
    images_folder,
    name_key,
    read_captures,
)
from pinspect.captures.table import LABELS
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.images import IMAGE_SUFFIXES, read_image


@dataclass(frozen=True)
class AddReport:
    """The result of `add_captures`.

    Attributes:
        added: Names of the added captures.
        skipped: Names of the captures whose content is in the folder already.
        refused: The problems of the captures that were not added, one line each.
    """

    added: tuple[str, ...]
    skipped: tuple[str, ...]
    refused: tuple[str, ...] = ()


def add_captures(
    source: Path, folder: Path, contract: AnswerContract, *, max_pixels: int, shape: str = ""
) -> AddReport:
    """Copy the new captures of a folder into the captures' folder, after a check of every image and label.

    Captures whose content is in the folder already, with the same label, are skipped. New rows go to the end of
    `labels.csv`, so the order of its rows is the age of the captures. `labels.csv` is written last. Where DVC keeps the
    images, they are recorded with it.

    Args:
        source: The folder with new captures.
        folder: The captures' folder.
        contract: The line's layout, shapes and defect modes.
        max_pixels: Refuse images with more pixels.
        shape: Shape to assume where neither the row nor the name has one.

    Raises:
        CaptureError: There is a problem; the message has one line for each, and `folder` is unchanged. Or DVC cannot
            record the images; the captures are then in place.
    """
    if not source.is_dir():
        raise CaptureError(f"{source}: no such folder; name a folder of images, with or without a {LABELS}")
    if source.resolve() in (folder.resolve(), (folder / IMAGES).resolve()):
        raise CaptureError(f"{source}: these captures are in place already; name another folder")
    with locked(folder):
        report = add_locked(source, folder, contract, max_pixels=max_pixels, shape=shape)
    record_images(folder)
    return report


def add_locked(
    source: Path,
    folder: Path,
    contract: AnswerContract,
    *,
    max_pixels: int,
    shape: str = "",
    leave_bad: bool = False,
    replaced: str = "",
) -> AddReport:
    """Do what `add_captures` does in a folder that the caller has locked.

    Args:
        source: As in `add_captures`.
        folder: As in `add_captures`.
        contract: As in `add_captures`.
        max_pixels: As in `add_captures`.
        shape: As in `add_captures`.
        leave_bad: Leave out captures with a problem and report the problems, instead of raising CaptureError.
        replaced: Name of a capture that the new ones replace; none if empty.

    Raises:
        CaptureError: As in `add_captures`.
    """
    present, new = read_captures(folder, contract), read_captures(source, contract, shape=shape)
    problems = [*present.problems, *new.problems]
    if not new.captures and not new.problems:
        problems.append(f"{source}: no captures found; expected images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    others = [capture for capture in present.captures if capture.file != replaced]
    contents = [(capture, content_hash(images_folder(folder) / capture.file)) for capture in others]
    known = {content for _, content in contents}
    names = {name_key(path.name) for path in images_folder(folder).glob("*") if path.name != replaced}
    wanted, skipped = [], []
    for capture in new.captures:
        image = images_folder(source) / capture.file
        try:
            read_image(image, max_pixels)
        except ImageError as error:
            problems.append(str(error))
            continue
        content = content_hash(image)
        contents.append((capture, content))
        if content in known:
            skipped.append(capture)
        elif name_key(capture.file) in names:
            problems.append(f"{image}: {folder} has another capture of this name; rename this file")
        else:
            wanted.append(capture)
            known.add(content)
    problems += conflicting_labels(contents)
    if present.problems or (problems and not leave_bad):
        raise CaptureError("\n".join(problems))
    disputed = _disputed(contents)
    wanted = [capture for capture in wanted if capture not in disputed]
    skipped = [capture.file for capture in skipped if capture not in disputed]
    if wanted:
        store(wanted, images_folder(source), folder, replaced)
    return AddReport(tuple(capture.file for capture in wanted), tuple(skipped), tuple(problems))


def _disputed(contents: Sequence[tuple[Capture, str]]) -> set[Capture]:
    """Return the captures whose content has different labels."""
    labels: dict[str, set[tuple[str, ...]]] = {}
    for capture, content in contents:
        labels.setdefault(content, set()).add(capture.label)
    return {capture for capture, content in contents if len(labels[content]) > 1}
