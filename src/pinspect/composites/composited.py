"""The composited folder: the pictures that the model sees, of every capture that the dst stage has aligned.

images/<2 hex>/<20 hex>-<VIEW>.jpg          single: the pin field with its address grid
images/<2 hex>/<20 hex>-<VIEW>-star<n>.jpg  star: a reference with a red star on one pin
images/<2 hex>/<20 hex>-<VIEW>-below-<20 hex>.jpg  stacked: a reference above, the inspected capture below
manifest.csv                                one row a composite
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, content_hash
from pinspect.captures.splits import TRAIN
from pinspect.composites.drawing import draw_star, rectify, single, stacked
from pinspect.core.answers import VIEWS
from pinspect.core.errors import StageInputError
from pinspect.core.images import read_image
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.core.lines import COLUMNS as LINE_COLUMNS
from pinspect.core.lines import Line, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.nsoartc.unit_space import UnitSpace

COLUMNS = ("file", "raw_file", "kind", "view", "star_position", "reference_file")
STARS_PER_REFERENCE = 3
_MATRIX = ("m00", "m01", "m02", "m10", "m11", "m12")
_ALIGNED = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class Style:
    """How composites are drawn: the layout, px a pin (`cell`), whether with the address grid, the JPEG quality, and how
    many pixels an image that is read may have."""

    layout: Layout
    cell: int
    grid: bool
    jpeg_quality: int
    max_pixels: int


@dataclass(frozen=True)
class Sheet:
    """What the composites of one capture are made of.

    file: of the raw manifest. line: captures of one line can be compared with its references. raw, dst: the images of
    its two views. matrix: 2 x 3, capture px to unit-space px (the DST image is aligned already). cell_box: x0, y0, x1,
    y1 in unit-space px. version: a hash of all that.
    """

    file: str
    line: Line
    role: str
    split: str
    alignment_score: float
    raw: str
    dst: str
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    cell_box: tuple[float, float, float, float]
    version: str

    @property
    def stem(self) -> str:
        """The name of its composites, without what tells them apart."""
        return self.file.rsplit(".", 1)[0]


def build_composited(
    raw: Path,
    dst: Path,
    out: Path,
    style: Style,
    *,
    stacks_per_capture: int = 0,
) -> pd.Series:
    """Make the folder `out` from the raw and the dst folder; returns how many composites of each kind it holds.

    `stacks_per_capture`: with how many references each inspected capture is stacked, the best aligned one first; those
    of validation and test with that one only. Raises StageInputError where a manifest is missing.
    """
    sheets = _read_sheets(raw, dst)
    references = [(sheet,) for sheet in sheets if sheet.role == REFERENCE]
    work = (
        ("composites", draw_singles, [(sheet,) for sheet in sheets]),
        ("star images", draw_stars, references),
        ("stacked composites", draw_stacked, list(_pairs(sheets, stacks_per_capture))),
    )
    with IncrementalFolder(out) as folder:
        rows: list[dict] = []
        for title, draw, groups in work:
            items = [_item(title, group) for group in groups]
            records = folder.map(functools.partial(draw, style), items, params=asdict(style), title=title)
            rows += [row for record in records for row in record["rows"]]
        manifest = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("file", ignore_index=True)
        manifest.to_csv(folder.new_file(MANIFEST), index=False, encoding="utf-8", lineterminator="\n")
    return manifest["kind"].value_counts()


def draw_singles(style: Style, sheets: tuple[Sheet], folder: Path) -> Product:
    """The single composite of each view of one capture."""
    (sheet,) = sheets
    return _product(
        [
            _save(style, _single(style, sheet, view), folder, f"{sheet.stem}-{view}", raw_file=sheet.file, view=view)
            for view in VIEWS
        ]
    )


def draw_stars(style: Style, sheets: tuple[Sheet], folder: Path) -> Product:
    """The star images of one reference: each view, with a star at each of a few addresses that its name draws."""
    (sheet,) = sheets
    addresses = sorted(style.layout.addresses, key=lambda address: _lot(sheet.file, address))[:STARS_PER_REFERENCE]
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
    """The stacked composites of one inspected capture and one reference, given in this order."""
    inspected, reference = sheets
    rows = []
    for view in VIEWS:
        both = stacked(_single(style, reference, view), _single(style, inspected, view))
        name = f"{inspected.stem}-{view}-below-{Path(reference.stem).name}"
        facts = {"kind": "stacked", "view": view, "reference_file": reference.file}
        rows.append(_save(style, both, folder, name, raw_file=inspected.file, **facts))
    return _product(rows)


def _read_sheets(raw: Path, dst: Path) -> list[Sheet]:
    """Every capture that the dst stage has not set aside."""
    captures = read_manifest(raw / MANIFEST, (*LINE_COLUMNS, "sha256", "split"))
    aligned = read_manifest(dst / MANIFEST, ("file", "dst_file", *_MATRIX, "alignment_score", "error"))
    lost = sorted(set(aligned["file"]) - set(captures["file"]))
    if lost:
        raise StageInputError(f"{dst / MANIFEST}: {lost[0]} is not in {raw / MANIFEST}; run `dvc repro`")
    both = captures.merge(aligned[aligned["error"] == ""], on="file")
    lines = lines_of(captures)
    boxes = {line: UnitSpace.load(dst / line.unit_space).cell_box for line in {lines[file] for file in both["file"]}}
    return [_sheet(row, lines[row["file"]], raw, dst, boxes[lines[row["file"]]]) for row in both.to_dict("records")]


def _sheet(row: dict[str, str], line: Line, raw: Path, dst: Path, cell_box: tuple[float, float, float, float]) -> Sheet:
    matrix = tuple(float(row[name]) for name in _MATRIX)
    content = (row["sha256"], content_hash(dst / row["dst_file"]), matrix, cell_box)
    return Sheet(
        file=row["file"],
        line=line,
        role=row["role"],
        split=row["split"],
        alignment_score=float(row["alignment_score"]),
        raw=str(raw / row["file"]),
        dst=str(dst / row["dst_file"]),
        matrix=(matrix[:3], matrix[3:]),
        cell_box=cell_box,
        version=hashlib.sha256(repr(content).encode()).hexdigest(),
    )


def _pairs(sheets: Sequence[Sheet], stacks_per_capture: int) -> Iterator[tuple[Sheet, Sheet]]:
    """Inspected captures, each with the references it is stacked with: the best aligned one, then others by lot."""
    if not stacks_per_capture:
        return
    references = sorted(
        (sheet for sheet in sheets if sheet.role == REFERENCE), key=lambda sheet: (-sheet.alignment_score, sheet.file)
    )
    for inspected in sheets:
        best, *others = [one for one in references if one.line == inspected.line] or [None]
        if inspected.role == REFERENCE or best is None:
            continue
        yield inspected, best
        if inspected.split == TRAIN:
            drawn = sorted(others, key=lambda other: _lot(inspected.file, other.file))
            yield from ((inspected, other) for other in drawn[: stacks_per_capture - 1])


def _item(title: str, sheets: tuple[Sheet, ...]) -> Item:
    return Item(" ".join((title, *(sheet.file for sheet in sheets))), tuple(sheet.version for sheet in sheets), sheets)


def _single(style: Style, sheet: Sheet, view: str) -> np.ndarray:
    path, matrix = (sheet.raw, sheet.matrix) if view == "RAW" else (sheet.dst, _ALIGNED)
    image = np.asarray(read_image(path, style.max_pixels))
    field = rectify(image, np.array(matrix), sheet.cell_box, style.layout, style.cell)
    return single(field, style.layout, style.cell, grid=style.grid)


def _save(style: Style, composite: np.ndarray, folder: Path, name: str, **facts: str) -> dict[str, str]:
    """Write one composite; returns its row of the manifest. Colours keep their full resolution: the star is red."""
    file = f"{name}.jpg"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(composite).save(folder / file, quality=style.jpeg_quality, subsampling=0)
    return {"file": file, "kind": "single", "star_position": NO_ADDRESS, "reference_file": ""} | facts


def _product(rows: list[dict[str, str]]) -> Product:
    return Product(tuple(row["file"] for row in rows), {"rows": rows})


def _lot(file: str, candidate: object) -> str:
    """Orders candidates at random, but always alike for one capture, and whatever other candidates there are."""
    return hashlib.sha256(f"{file}/{candidate}".encode()).hexdigest()
