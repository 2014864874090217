"""Shows the pins' grid of each line over a reference, and stores a person's correction of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pinspect.captures.labels import REFERENCE, images_folder, read_captures
from pinspect.core.corners import CORNERS, Corners, read_corners, write_corners
from pinspect.core.errors import CaptureError, UnitSpaceError
from pinspect.core.files import write_file
from pinspect.core.images import read_image, to_gray
from pinspect.core.lines import Line, lines_of
from pinspect.core.params import Params
from pinspect.nsoartc.field import PlacedReferences, place_references
from pinspect.nsoartc.grid import MINIMUM_CONFIDENCE, draw_grid, grid_from_corners
from pinspect.nsoartc.references import GRIDS, References, grid_picture, line_references

_EYES = {"0": "left", "2": "right", "left": "left", "right": "right", "": ""}


@dataclass(frozen=True)
class Choice:
    """The lines that a command is about.

    Attributes:
        shape: Pin shape; empty for all.
        eye: `0`, `left`, `2` or `right`; empty for all.
        reference: File name of the reference to draw on; empty for the one with corners, or the first.
    """

    shape: str
    eye: str
    reference: str


def print_grids(root: Path, params: Params, choice: Choice) -> None:
    """Draw the grid of each chosen line over a reference, and print its origin, its confidence and the picture's path.

    Raises:
        UnitSpaceError: A grid is doubtful, so stage dst would stop; all pictures are written.
    """
    doubtful: list[str] = []
    for references in _chosen(root, params, choice):
        placed, origin = _placed(references, params)
        name = _reference_of(references, choice)
        index = references.names.index(name)
        photograph = np.asarray(read_image(references.paths[index], params.raw.max_pixels))
        grid = placed.grid.seen_in(cv2.invertAffineTransform(placed.alignments[index].matrix))
        picture = root / "data" / GRIDS / grid_picture(references.line)
        encoded = cv2.imencode(".png", draw_grid(photograph, grid)[..., ::-1])[1]
        write_file(picture, encoded.tobytes())
        print(f"{_words(references.line)}: {origin}, confidence {grid.confidence:.2f}, over {name}: {picture}")
        if grid.confidence < MINIMUM_CONFIDENCE:
            doubtful.append(_words(references.line))
    if doubtful:
        raise UnitSpaceError(
            f"{', '.join(doubtful)}: the confidence is below {MINIMUM_CONFIDENCE}, so stage dst would stop; check the "
            "layout in params.yaml, or read the px of four corner pins off the picture and store them: pinspect grid "
            "--shape SHAPE --eye EYE --corners x0,y0 x1,y1 x2,y2 x3,y3"
        )


def correct_grid(root: Path, params: Params, choice: Choice, corners: Sequence[str] | None) -> None:
    """Store the corner pins that a person has marked in a reference of one line, or remove them.

    Args:
        root: The project's folder.
        params: The project's parameters.
        choice: Names exactly one line.
        corners: Four texts `x,y`, px in the reference: top left, top right, bottom right, bottom left. None: remove the
            stored corners.

    Raises:
        UnitSpaceError: The choice names several lines or none, the corners make no grid, or none are stored.
    """
    lines = _chosen(root, params, choice)
    if len(lines) != 1:
        words = "; ".join(_words(references.line) for references in lines)
        raise UnitSpaceError(f"corners belong to one line: choose it by --shape and --eye from: {words}")
    (references,) = lines
    path = root / "data/captures" / CORNERS
    others = [each for each in _stored(root, params) if each.reference not in references.names]
    if corners is None:
        if references.corners is None:
            raise UnitSpaceError(f"{_words(references.line)}: no corners are stored in {path}; nothing to remove")
        write_corners(path, others)
        return
    name = _reference_of(references, choice)
    points = tuple(_point(text) for text in corners)
    width, height = read_image(references.paths[references.names.index(name)], params.raw.max_pixels).size
    outside = [f"{x:g},{y:g}" for x, y in points if not (0 <= x < width and 0 <= y < height)]
    if outside:
        raise UnitSpaceError(f"--corners: {' '.join(outside)} lies outside of {name}, which has {width} x {height} px")
    grid_from_corners(points, params.layout.layout())
    write_corners(path, [*others, Corners(name, points)])
    print(f"{_words(references.line)}: corners stored in {path}; next: look at the picture, then dvc repro")


def _chosen(root: Path, params: Params, choice: Choice) -> list[References]:
    """Return the references of the chosen lines."""
    folder = root / "data/captures"
    labels = read_captures(folder, params.contract())
    if labels.problems:
        raise CaptureError("\n".join(labels.problems))
    rows = [capture.row() | {"capture": capture.file, "source": "camera", "sha256": ""} for capture in labels.captures]
    if not rows:
        raise CaptureError(f"{folder}: no captures; add some with `pinspect add DIR`")
    if choice.eye not in _EYES:
        raise UnitSpaceError(f"--eye: expected 0 or left, 2 or right, found {choice.eye!r}")
    captures = pd.DataFrame(rows)
    corners = read_corners(folder / CORNERS, captures.loc[captures["role"] == REFERENCE, "capture"])
    by_file = lines_of(captures)
    lines = line_references(captures, by_file, by_file.values(), images_folder(folder), corners)
    chosen = [
        references
        for line, references in lines.items()
        if choice.shape in ("", line.shape) and _EYES[choice.eye] in ("", line.eye)
    ]
    if not chosen:
        raise UnitSpaceError(
            f"no line of shape {choice.shape or 'any'} and eye {_EYES[choice.eye] or 'any'}; the lines of {folder} "
            f"are: {'; '.join(map(_words, lines))}"
        )
    return chosen


def _stored(root: Path, params: Params) -> list[Corners]:
    everything = _chosen(root, params, Choice("", "", ""))
    return [references.corners for references in everything if references.corners]


def _placed(references: References, params: Params) -> tuple[PlacedReferences, str]:
    placed = place_references(
        [to_gray(read_image(path, params.raw.max_pixels)) for path in references.paths],
        references.names,
        references.field_boxes,
        references.corners,
        references.line.shape,
        params.layout.layout(),
        params.dst,
    )
    if references.corners:
        return placed, f"corners of {CORNERS}"
    return placed, "field boxes of labels.csv" if references.field_boxes else "fitted to the references"


def _reference_of(references: References, choice: Choice) -> str:
    if choice.reference and choice.reference not in references.names:
        raise UnitSpaceError(
            f"--reference: {choice.reference} is no reference of {_words(references.line)}; its references are "
            f"{', '.join(references.names)}"
        )
    marked = references.corners.reference if references.corners else ""
    return choice.reference or marked or next(iter(references.names), "")


def _words(line: Line) -> str:
    return f"{line.shape} {line.eye}".strip()


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UnitSpaceError(f"--corners: expected x,y in px such as 41,38.5, found {text!r}") from None
    return x, y
