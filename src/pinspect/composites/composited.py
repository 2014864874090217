"""Make the composited folder: the pictures for the model, of every capture that the dst stage has aligned.

images/<2 hex>/<20 hex>-<VIEW>.jpg          single: the pin field with its address grid
images/<2 hex>/<20 hex>-<VIEW>-star<n>.jpg  star: a reference with a red star on one pin
images/<2 hex>/<20 hex>-<VIEW>-below-<20 hex>.jpg  stacked: a reference above, the inspected capture below
manifest.csv                                one row per composite
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pinspect.captures.engines import Engine
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, content_hash
from pinspect.captures.sharded import stage_folder
from pinspect.captures.splits import TRAIN
from pinspect.composites.drawing import draw_star, stacked
from pinspect.composites.views import Style
from pinspect.core.answers import VIEWS
from pinspect.core.errors import StageInputError
from pinspect.core.images import read_image
from pinspect.core.lines import COLUMNS as LINE_COLUMNS
from pinspect.core.lines import Line, LineRule, line_rule, lines_of
from pinspect.core.manifests import MANIFEST, WHOLE, Window, iterate_manifest, manifest_windows, read_manifest
from pinspect.nsoartc.dst import DST_SHA256, MATRIX
from pinspect.nsoartc.unit_space import UnitSpace

COLUMNS = ("file", "raw_file", "kind", "view", "star_position", "reference_file")
STARS_PER_REFERENCE = 3
_CACHED_SINGLES = 32  # of a process, half a megabyte each with 27 pins
_ALIGNED = ("file", "dst_file", *MATRIX, "alignment_score", "error")

Row = dict[str, str]


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
    shards: int = 0,
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
        shards: `raw.shards`: the number of archives, or 0 for a file per product.
        workers: Number of processes; by default one per core.
        engine: What draws the composites.

    Returns:
        The number of composites of each kind.

    Raises:
        StageInputError: A manifest is missing.
    """
    folders = _Folders.of(raw, dst)
    windows = manifest_windows(raw / MANIFEST)
    references = sorted(
        (sheet for window in windows for sheet in folders.sheets(window, only=REFERENCE)),
        key=lambda sheet: (-sheet.alignment_score, sheet.file),
    )
    kinds: Counter[str] = Counter()
    with stage_folder(out, shards, engine) as folder:
        for window in windows:
            sheets = folders.sheets(window)
            starred = [(sheet,) for sheet in sheets if sheet.role == REFERENCE]
            work = (
                ("composites", draw_singles, [(sheet,) for sheet in sheets]),
                ("star images", draw_stars, starred),
                ("stacked composites", draw_stacked, list(_pairs(sheets, references, stacks_per_capture))),
            )
            rows: list[dict] = []
            for title, draw, groups in work:
                items = [_item(title, group, folder) for group in groups]
                records = folder.map(
                    functools.partial(draw, style), items, params=asdict(style), title=title, workers=workers
                )
                rows += [row for record in records for row in record["rows"]]
            manifest = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values("file", ignore_index=True)
            folder.write_manifest(manifest)
            folder.settle({folder.shard(sheet.file) for sheet in sheets})
            kinds.update(manifest["kind"])
            folder.made.clear()  # of a window only, for the memory
    return pd.Series(dict(kinds.most_common()), name="count", dtype=int).rename_axis("kind")


def draw_singles(style: Style, sheets: tuple[Sheet]) -> Product:
    """Draw the single composite of each view of one capture."""
    (sheet,) = sheets
    return _product(
        style,
        [(_single(style, sheet, view), _row(f"{sheet.stem}-{view}", raw_file=sheet.file, view=view)) for view in VIEWS],
    )


def draw_stars(style: Style, sheets: tuple[Sheet]) -> Product:
    """Draw the star images of one reference: both views, a star at each of a few addresses.

    A hash of the file name and the address picks the addresses.
    """
    (sheet,) = sheets
    addresses = sorted(style.layout.addresses, key=lambda address: _draw_key(sheet.file, address))[:STARS_PER_REFERENCE]
    drawn = []
    for view in VIEWS:
        plain = _single(style, sheet, view)
        for number, address in enumerate(addresses, start=1):
            starred = draw_star(plain, address, style.layout, style.cell)
            name = f"{sheet.stem}-{view}-star{number}"
            facts = {"kind": "star", "view": view, "star_position": str(address)}
            drawn.append((starred, _row(name, raw_file=sheet.file, **facts)))
    return _product(style, drawn)


def draw_stacked(style: Style, sheets: tuple[Sheet, Sheet]) -> Product:
    """Draw the stacked composite of each view of two captures: the inspected capture and a reference, in this order."""
    inspected, reference = sheets
    drawn = []
    for view in VIEWS:
        both = stacked(_single(style, reference, view), _single(style, inspected, view))
        name = f"{inspected.stem}-{view}-below-{Path(reference.stem).name}"
        facts = {"kind": "stacked", "view": view, "reference_file": reference.file}
        drawn.append((both, _row(name, raw_file=inspected.file, **facts)))
    return _product(style, drawn)


@dataclass(frozen=True)
class _Folders:
    """The raw and the dst folder.

    Attributes:
        raw: The raw folder.
        dst: The dst folder.
        rule: The lines of all captures.
        spaces: The unit space of each line.
    """

    raw: Path
    dst: Path
    rule: LineRule
    spaces: dict[Line, UnitSpace]

    @classmethod
    def of(cls, raw: Path, dst: Path) -> _Folders:
        """Read what concerns all captures. Raises StageInputError if the dst stage knows captures that raw lacks."""
        rule = line_rule(iterate_manifest(raw / MANIFEST, LINE_COLUMNS))
        known = manifest_windows(raw / MANIFEST)
        unknown = {shard for window in manifest_windows(dst / MANIFEST) for shard in window}.difference(*known)
        if unknown:
            raise StageInputError(f"{dst / MANIFEST}: part {min(unknown)} is not in {raw / MANIFEST}; run `dvc repro`")
        return cls(raw, dst, rule, {})

    def sheets(self, window: Window, only: str = "") -> list[Sheet]:
        """Return every capture of a window, or those of one role, that the dst stage has not set aside."""
        captures = read_manifest(self.raw / MANIFEST, (*LINE_COLUMNS, "sha256", "split"), window)
        columns = _ALIGNED if window == WHOLE else (*_ALIGNED, DST_SHA256)
        aligned = read_manifest(self.dst / MANIFEST, columns, window)
        lost = sorted(set(aligned["file"]) - set(captures["file"]))
        if lost:
            raise StageInputError(f"{self.dst / MANIFEST}: {lost[0]} is not in {self.raw / MANIFEST}; run `dvc repro`")
        lines = lines_of(captures, self.rule)
        both = captures.merge(aligned[aligned["error"] == ""], on="file")
        both = both[both["role"] == only] if only else both
        for line in {lines[file] for file in both["file"]} - self.spaces.keys():
            self.spaces[line] = UnitSpace.load(self.dst / line.unit_space)
        return [
            _sheet(row, lines[row["file"]], self.raw, self.dst, self.spaces[lines[row["file"]]])
            for row in both.to_dict("records")
        ]


def _sheet(row: Mapping[Any, str], line: Line, raw: Path, dst: Path, space: UnitSpace) -> Sheet:
    matrix = tuple(float(row[name]) for name in MATRIX)
    grid, dst_matrix = (tuple(numbers.ravel().tolist()) for numbers in (space.grid, space.picture_matrix))
    dst_sha256 = row.get(DST_SHA256) or content_hash(dst / row["dst_file"])  # the manifest has it with shards
    content = (row["sha256"], dst_sha256, matrix, dst_matrix, grid)
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


def _pairs(
    sheets: Sequence[Sheet], references: Sequence[Sheet], stacks_per_capture: int
) -> Iterator[tuple[Sheet, Sheet]]:
    """Yield each inspected capture with the references to stack it with: the best aligned one, then others by hash.

    Args:
        sheets: The captures of one window.
        references: All references, the best aligned first.
        stacks_per_capture: Number of references of a training capture.
    """
    if not stacks_per_capture:
        return
    for inspected in sheets:
        candidates = [reference for reference in references if reference.line == inspected.line]
        if inspected.role == REFERENCE or not candidates:
            continue
        best, *others = candidates
        yield inspected, best
        if inspected.split == TRAIN:
            drawn = sorted(others, key=lambda other: _draw_key(inspected.file, other.file))
            yield from ((inspected, other) for other in drawn[: stacks_per_capture - 1])


def _item(title: str, sheets: tuple[Sheet, ...], folder: IncrementalFolder) -> Item:
    name = " ".join((title, *(sheet.file for sheet in sheets)))
    return Item(name, tuple(sheet.version for sheet in sheets), sheets, folder.shard(sheets[0].file))


@functools.lru_cache(maxsize=_CACHED_SINGLES)
def _single(style: Style, sheet: Sheet, view: str) -> np.ndarray:
    """Draw the single composite of a view; a reference is drawn once for the captures that it is stacked with."""
    path, matrix = (sheet.raw, sheet.matrix) if view == "RAW" else (sheet.dst, sheet.dst_matrix)
    photograph = np.asarray(read_image(path))
    composite = style.composite(photograph, np.reshape(matrix, (2, 3)), np.reshape(sheet.grid, (3, 3)))
    composite.flags.writeable = False  # others get the same array
    return composite


def _row(name: str, **facts: str) -> Row:
    """Return a composite's row of the manifest."""
    return {"file": f"{name}.jpg", "kind": "single", "star_position": "", "reference_file": ""} | facts


def _product(style: Style, drawn: Sequence[tuple[np.ndarray, Row]]) -> Product:
    """Return the product of an item: its composites with their rows."""
    files = {row["file"]: style.encode(composite) for composite, row in drawn}
    return Product(files, {"rows": [row for _, row in drawn]})


def _draw_key(file: str, candidate: object) -> str:
    """Return a hash to order candidates by; a new candidate never changes the order of the others."""
    return hashlib.sha256(f"{file}/{candidate}".encode()).hexdigest()
