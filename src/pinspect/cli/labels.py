"""Writes a labels.csv for a person to fill in: one row per image, with the localizer's guess beside it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pinspect.captures.labels import REFERENCE, Capture, capture_of_row, images_folder, is_image, name_key
from pinspect.captures.table import GUESS, LABEL_COLUMNS, LABELS, Table
from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.errors import AlignmentError, CaptureError, ImageError, UnitSpaceError
from pinspect.core.files import write_file
from pinspect.core.images import IMAGE_SUFFIXES, read_image, to_gray
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.lines import Line
from pinspect.core.names import eye_of
from pinspect.core.operating_point import LOCALIZER_THRESHOLD, read_operating_point
from pinspect.core.params import Params
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.alignment import AlignmentTarget
from pinspect.nsoartc.dst_view import dst_view, localize_pin
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space

GUESSES = (f"{GUESS}judgement", f"{GUESS}position", f"{GUESS}score")
_MOST_IMAGES = 40  # of a unit space: more cost time and change little


def write_labels(folder: Path, root: Path, params: Params, shape: str) -> None:
    """Add a row to `labels.csv` for each image that has none, with what its name reveals and the localizer's guess.

    Rows and the form of an existing file stay as they are. Prints why an image gets no guess, and what to do next.

    Args:
        folder: A folder of images, with or without `images/` and `labels.csv`.
        root: The project's folder; its unit spaces serve if the folder has too few captures known to be passed.
        params: The project's parameters.
        shape: Shape to assume where the names reveal none.

    Raises:
        CaptureError: The folder has no images, or its `labels.csv` is not a table of labels.
    """
    images, labels, contract = images_folder(folder), folder / LABELS, params.contract()
    names = sorted(path.name for path in images.glob("*") if is_image(path.name))
    if not names:
        raise CaptureError(f"{folder}: no images found; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    if shape and shape not in contract.shapes:
        raise CaptureError(f"--shape: expected {' or '.join(contract.shapes)}, found {shape!r}")
    exists = labels.exists()
    table = Table.parse(labels, labels.read_bytes()) if exists else Table.new(labels, (*LABEL_COLUMNS, *GUESSES))
    rows = {name_key(row["file"]): row for _, row in table.rows()}
    captures = [capture_of_row(rows.get(name_key(name), {}) | {"file": name}, contract, shape) for name in names]
    new = [capture for capture in captures if name_key(capture.file) not in rows]
    unknown = [capture.file for capture in new if not capture.shape]
    if unknown:
        shapes = " or ".join(f"--shape {each}" for each in contract.shapes)
        raise CaptureError(f"{folder}: the shape of {len(unknown)} images is unknown, e.g. {unknown[0]}; add {shapes}")
    if not new:
        print(f"{labels}: every image has a row; nothing was changed")
        return
    guesses = dict(_guesses(captures, new, images, root, params)) if set(GUESSES) & set(table.header) else None
    write_file(labels, table.with_rows(capture.row() | (guesses or {}).get(capture.file, {}) for capture in new))
    remark = f"no columns {', '.join(GUESSES)}" if guesses is None else f"{len(guesses)} of them with a guess"
    print(f"{labels}: {len(new)} rows {'added' if exists else 'written'}, {remark}")
    print(
        "next: fill in judgement, defect_mode and defect_position (on a new line also the role 'reference' of at least "
        f"{params.dst.minimum_references} passed captures per shape and eye), then pinspect add {folder}"
    )


def _guesses(
    captures: Sequence[Capture], new: Sequence[Capture], images: Path, root: Path, params: Params
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name and the guess of each new capture, line by line; print why a capture has none."""
    point = root / "models/operating_point.json"
    threshold = read_operating_point(point).localizer_threshold if point.exists() else LOCALIZER_THRESHOLD
    without_row = set(new)
    lines: dict[Line, list[Capture]] = defaultdict(list)
    for capture in captures:
        lines[Line("camera", capture.shape, eye_of(capture.file))].append(capture)
    for line, members in lines.items():
        wanted = [capture for capture in members if capture in without_row]
        if not wanted:
            continue
        try:
            unit_space = _unit_space(line, members, images, root, params)
        except (ImageError, UnitSpaceError) as error:
            print(f"no guess for {len(wanted)} images ({line}): {error}")
            continue
        for capture in wanted:
            try:
                yield capture.file, _guess(images / capture.file, unit_space, threshold, params)
            except (ImageError, AlignmentError) as error:
                print(f"no guess for {capture.file}: {error}")


def _guess(path: Path, unit_space: UnitSpace, threshold: float, params: Params) -> dict[str, str]:
    image = np.asarray(read_image(path, params.raw.max_pixels))
    aligned = align_capture(image, unit_space, params.dst.maximum_shift)
    pin = localize_pin(dst_view(aligned), unit_space)
    is_defective = pin.score >= threshold
    judgement, position = (DEFECTIVE, str(pin.address)) if is_defective else (PASSED, NO_ADDRESS)
    return dict(zip(GUESSES, (judgement, position, f"{pin.score:.2f}"), strict=True))


def _unit_space(line: Line, captures: Sequence[Capture], images: Path, root: Path, params: Params) -> UnitSpace:
    """Return a unit space of the line: of the folder's passed captures, of the project, or of all captures.

    Most captures of a line are passed, and each defective one differs in another pin, so that the median hardly shows
    their defects.
    """
    references = [capture for capture in captures if capture.role == REFERENCE]
    passed = [capture for capture in captures if capture.judgement == PASSED]
    for group in (references, passed):
        if len(group) >= params.dst.minimum_references:
            return _built(line, group, images, params)
    for stored in (root / "data/dst" / each.unit_space for each in (line, line._replace(eye=""))):
        if stored.exists():
            return UnitSpace.load(stored)
    return _built(line, [capture for capture in captures if capture.judgement != DEFECTIVE] or captures, images, params)


def _built(line: Line, captures: Sequence[Capture], images: Path, params: Params) -> UnitSpace:
    pictures: dict[str, np.ndarray] = {}
    for capture in captures[:: math.ceil(len(captures) / _MOST_IMAGES)]:
        try:
            pictures[capture.file] = np.asarray(read_image(images / capture.file, params.raw.max_pixels))
        except ImageError:  # reported where its guess is missing
            continue
    names = _alike(pictures, params.dst.maximum_shift)
    return build_unit_space(
        [pictures[name] for name in names], names, None, line.shape, params.layout.layout(), params.dst
    )


def _alike(pictures: dict[str, np.ndarray], maximum_shift: float) -> list[str]:
    """Return the names of the pictures that show the same as most others, so that no other picture stops the build."""
    sizes = Counter(picture.shape for picture in pictures.values())
    size = max(sizes, key=lambda size: sizes[size], default=())
    grays = {name: to_gray(picture) for name, picture in pictures.items() if picture.shape == size}
    alike: list[str] = []
    for target in map(AlignmentTarget, list(grays.values())[:3]):
        alike = max(alike, [name for name, gray in grays.items() if _aligns(gray, target, maximum_shift)], key=len)
        if 2 * len(alike) > len(grays):
            break
    return alike


def _aligns(gray: np.ndarray, target: AlignmentTarget, maximum_shift: float) -> bool:
    try:
        target.align(gray, maximum_shift)
    except AlignmentError:
        return False
    return True
