"""Make the composited folder: the pictures for the model, of every capture that the dst stage has aligned.

images/<2 hex>/<20 hex>-<VIEW>.jpg          single: the pin field with its address grid
images/<2 hex>/<20 hex>-<VIEW>-star<n>.jpg  star: a reference with a red star on one pin
images/<2 hex>/<20 hex>-<VIEW>-below-<20 hex>.jpg  stacked: a reference above, the inspected capture below
manifest.csv                                one row per composite
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pinspect.captures.engines import Engine
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, content_hash
from pinspect.captures.splits import TRAIN
from pinspect.composites.drawing import draw_star, stacked
from pinspect.composites.views import Style
from pinspect.core.answers import VIEWS
from pinspect.core.errors import StageInputError
from pinspect.core.images import read_image
from pinspect.core.lines import COLUMNS as LINE_COLUMNS
from pinspect.core.lines import Line, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.nsoartc.unit_space import UnitSpace

COLUMNS = ("file", "raw_file", "kind", "view", "star_position", "reference_file")
STARS_PER_REFERENCE = 3
_MATRIX = ("m00", "m01", "m02", "m10", "m11", "m12")


@dataclass(frozen=True)
class Sheet:
    """The inputs of one capture's composites.

    Attributes:
        file: The capture's file in the raw folder.
        line: The line of the capture; it is compared with references of this line.
        role: `reference` or `inspected`.
        split: `train`, `validation` or `test`.
        alignment_score: Correlation of the aligned capture with the unit space's mean image, -1..1.
        raw: Path of the photograph.
        dst: Path of the DST picture, which is aligned already.
        matrix: Six numbers, row by row, of the 2 x 3 matrix that maps px of the photograph to px of the unit space.
        dst_matrix: The same for px of the DST picture.
        grid: Nine numbers, row by row, of the 3 x 3 matrix that maps column and row of a pin to px of the unit space.
        version: A hash of the inputs.
    """

    file: str
    line: Line
    role: str
    split: str
    alignment_score: float
    raw: str
    dst: str
    matrix: tuple[float, ...]
    dst_matrix: tuple[float, ...]
    grid: tuple[float, ...]
    version: str

    @property
    def stem(self) -> str:
        """The common beginning of the composites' file names."""
        return self.file.rsplit(".", 1)[0]


def build_composited(
    raw: Path,
    dst: Path,
    out: Path,
    style: Style,
    *,
    stacks_per_capture: int = 0,
    workers: int | None = None,
    engine: Engine = "processes",
) -> pd.Series:
    """Make the composited folder from the raw and the dst folder.

    Args:
        raw: The raw folder.
        dst: The dst folder.
        out: The composited folder.
        style: How composites are drawn.
        stacks_per_capture: Number of references that each inspected training capture is stacked with, the best aligned
            one first. Captures of validation and test are stacked with the best aligned reference only.
        workers: Number of processes; by default one per core.
        engine: What draws the composites.

    Returns:
        The number of composites of each kind.

    Raises:
        StageInputError: A manifest is missing.
    """
    sheets = _read_sheets(raw, dst)
    references = [(sheet,) for sheet in sheets if sheet.role == REFERENCE]
    work = (
        ("composites", draw_singles, [(sheet,) for sheet in sheets]),
        ("star images", draw_stars, references),
        ("stacked composites", draw_stacked, list(_pairs(sheets, stacks_per_capture))),
    )
    with IncrementalFolder(out, engine) as folder:
        rows: list[dict] = []
        for title, draw, groups in work:
            items = [_item(title, group) for group in groups]
            records = folder.map(
                functools.partial(draw, style), items, params=asdict(style), title=title, workers=workers
            )
            rows += [row for record in records for row in record["rows"]]
        manifest = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("file", ignore_index=True)
        manifest.to_csv(folder.new_file(MANIFEST), index=False, encoding="utf-8", lineterminator="\n")
    return manifest["kind"].value_counts()


def draw_singles(style: Style, sheets: tuple[Sheet], folder: Path) -> Product:
    """Draw the single composite of each view of one capture."""
    (sheet,) = sheets
    return _product(
        [
            _save(style, _single(style, sheet, view), folder, f"{sheet.stem}-{view}", raw_file=sheet.file, view=view)
            for view in VIEWS
        ]
    )


def draw_stars(style: Style, sheets: tuple[Sheet], folder: Path) -> Product:
    """Draw the star images of one reference: both views, a star at each of a few addresses.

    A hash of the file name and the address picks the addresses.
    """
    (sheet,) = sheets
    addresses = sorted(style.layout.addresses, key=lambda address: _draw_key(sheet.file, address))[:STARS_PER_REFERENCE]
    rows = []
    for view in VIEWS:
        plain = _single(style, sheet, view)
        for number, address in enumerate(addresses, start=1):
            starred = draw_star(plain, address, style.layout, style.cell)
            name = f"{sheet.stem}-{view}-star{number}"
            facts = {"kind": "star", "view": view, "star_position": str(address)}
            rows.append(_save(style, starred, folder, name, raw_file=sheet.file, **facts))
    return _product(rows)


def draw_stacked(style: Style, sheets: tuple[Sheet, Sheet], folder: Path) -> Product:
    """Draw the stacked composite of each view of two captures: the inspected capture and a reference, in this order."""
    inspected, reference = sheets
    rows = []
    for view in VIEWS:
        both = stacked(_single(style, reference, view), _single(style, inspected, view))
        name = f"{inspected.stem}-{view}-below-{Path(reference.stem).name}"
        facts = {"kind": "stacked", "view": view, "reference_file": reference.file}
        rows.append(_save(style, both, folder, name, raw_file=inspected.file, **facts))
    return _product(rows)


def _read_sheets(raw: Path, dst: Path) -> list[Sheet]:
    """Return every capture that the dst stage has not set aside."""
    captures = read_manifest(raw / MANIFEST, (*LINE_COLUMNS, "sha256", "split"))
    aligned = read_manifest(dst / MANIFEST, ("file", "dst_file", *_MATRIX, "alignment_score", "error"))
    lost = sorted(set(aligned["file"]) - set(captures["file"]))
    if lost:
        raise StageInputError(f"{dst / MANIFEST}: {lost[0]} is not in {raw / MANIFEST}; run `dvc repro`")
    both = captures.merge(aligned[aligned["error"] == ""], on="file")
    lines = lines_of(captures)
    spaces = {line: UnitSpace.load(dst / line.unit_space) for line in {lines[file] for file in both["file"]}}
    return [_sheet(row, lines[row["file"]], raw, dst, spaces[lines[row["file"]]]) for row in both.to_dict("records")]


def _sheet(row: Mapping[Any, str], line: Line, raw: Path, dst: Path, space: UnitSpace) -> Sheet:
    matrix = tuple(float(row[name]) for name in _MATRIX)
    grid, dst_matrix = (tuple(numbers.ravel().tolist()) for numbers in (space.grid, space.picture_matrix))
    content = (row["sha256"], content_hash(dst / row["dst_file"]), matrix, dst_matrix, grid)
    return Sheet(
        file=row["file"],
        line=line,
        role=row["role"],
        split=row["split"],
        alignment_score=float(row["alignment_score"]),
        raw=str(raw.absolute() / row["file"]),
        dst=str(dst.absolute() / row["dst_file"]),
        matrix=matrix,
        grid=grid,
        dst_matrix=dst_matrix,
        version=hashlib.sha256(repr(content).encode()).hexdigest(),
    )


def _pairs(sheets: Sequence[Sheet], stacks_per_capture: int) -> Iterator[tuple[Sheet, Sheet]]:
    """Yield each inspected capture with the references to stack it with: the best aligned one, then others by hash."""
    if not stacks_per_capture:
        return
    references = sorted(
        (sheet for sheet in sheets if sheet.role == REFERENCE), key=lambda sheet: (-sheet.alignment_score, sheet.file)
    )
    for inspected in sheets:
        candidates = [reference for reference in references if reference.line == inspected.line]
        if inspected.role == REFERENCE or not candidates:
            continue
        best, *others = candidates
        yield inspected, best
        if inspected.split == TRAIN:
            drawn = sorted(others, key=lambda other: _draw_key(inspected.file, other.file))
            yield from ((inspected, other) for other in drawn[: stacks_per_capture - 1])


def _item(title: str, sheets: tuple[Sheet, ...]) -> Item:
    return Item(" ".join((title, *(sheet.file for sheet in sheets))), tuple(sheet.version for sheet in sheets), sheets)


def _single(style: Style, sheet: Sheet, view: str) -> np.ndarray:
    path, matrix = (sheet.raw, sheet.matrix) if view == "RAW" else (sheet.dst, sheet.dst_matrix)
    return style.composite(np.asarray(read_image(path)), np.reshape(matrix, (2, 3)), np.reshape(sheet.grid, (3, 3)))


def _save(style: Style, composite: np.ndarray, folder: Path, name: str, **facts: str) -> dict[str, str]:
    """Write one composite and return its row of the manifest."""
    file = f"{name}.jpg"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(style.encode(composite))
    return {"file": file, "kind": "single", "star_position": "", "reference_file": ""} | facts


def _product(rows: list[dict[str, str]]) -> Product:
    return Product(tuple(row["file"] for row in rows), {"rows": rows})


def _draw_key(file: str, candidate: object) -> str:
    """Return a hash to order candidates by; a new candidate never changes the order of the others."""
    return hashlib.sha256(f"{file}/{candidate}".encode()).hexdigest()
