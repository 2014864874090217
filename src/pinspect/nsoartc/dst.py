"""The dst folder: the unit space of every line, and the DST view of every capture.

unit_space/<source>-<SHAPE>.npz      one per line, built from its references (two eyes: <source>-<SHAPE>-<eye>.npz)
images/<2 hex>/<20 hex>.jpg          the DST picture of a capture, a pixel for every `stride`-th one of the unit space
set_aside/<20 hex>.jpg               a capture that was set aside, beside the mean of its references, with the reason
images/<2 hex>/<20 hex>-EYES.png     the double-eye of a connector with two views, named after the left view
scores.csv                           one row per inspected capture: the pins' scores, the features of the highest pin
manifest.csv                         one row per capture: its DST view and place, or the reason why it was set aside
"""

# The records of IncrementalFolder are plain dicts.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pinspect.captures.engines import Engine
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import INSPECTED, REFERENCE
from pinspect.captures.sharded import stage_folder
from pinspect.captures.table import FIELD_BOX
from pinspect.core.corners import CORNERS, read_corners
from pinspect.core.errors import AlignmentError, ImageError, UnitSpaceError
from pinspect.core.files import write_file
from pinspect.core.images import read_image
from pinspect.core.layout import Layout
from pinspect.core.lines import LABEL, Line, LineRule, line_rule, lines_of
from pinspect.core.manifests import MANIFEST, gather_rows, manifest_windows, read_manifest, tabulate_counts
from pinspect.core.params import DstParams
from pinspect.nsoartc.aligned import AlignedCapture, align_capture, align_to_best
from pinspect.nsoartc.alignment import Alignment
from pinspect.nsoartc.dst_view import DST_SUFFIX, double_eye, dst_view, encode_dst
from pinspect.nsoartc.eye_pairs import EyePairs, Pair
from pinspect.nsoartc.grid import DoubtfulGridError
from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.reference_checks import check_spread, mixed_eyes
from pinspect.nsoartc.references import GRIDS, References, grid_picture, line_references
from pinspect.nsoartc.scores import SCORES, score_columns, score_row
from pinspect.nsoartc.set_aside import SET_ASIDE, set_aside_picture
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space

MATRIX = ("m00", "m01", "m02", "m10", "m11", "m12")
COLUMNS = ("file", "dst_file", *MATRIX, "shift_x", "shift_y", "alignment_score", "error")
EYES_FILE = "eyes_file"  # a further column, where a line has two eyes
DST_SHA256 = "dst_sha256"  # a further column with shards: the composite stage need not read each view to know it
_COUNTED = ("source", "shape", "role")
_RAW_COLUMNS = ("file", "sha256", "source", "capture", *LABEL, *FIELD_BOX)
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)

Record = dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """Settings for reading and comparing captures.

    Attributes:
        layout: Rows and columns of the pin field.
        params: Section `dst` of params.yaml.
        max_pixels: Largest number of pixels of an image.
    """

    layout: Layout
    params: DstParams
    max_pixels: int


@dataclass(frozen=True)
class BuiltUnitSpace:
    """A unit space on disk.

    Attributes:
        path: Path of the npz file.
        sha256: Hash of the npz file.
        outliers: Names of the references that differ from the others.
        remarks: What the references lack.
    """

    path: str
    sha256: str
    outliers: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A capture and the unit space to compare it with.

    Attributes:
        path: Path of the capture's image.
        sha256: Hash of the capture's image.
        unit_space: The unit space of the capture's line.
    """

    path: str
    sha256: str
    unit_space: BuiltUnitSpace


@dataclass(frozen=True)
class DstReport:
    """Summary of a run of the dst stage.

    Attributes:
        counts: Number of captures by source, shape (rows) and role (columns).
        made: Number of captures that this run compared.
        set_aside: Reason by name of each capture that was set aside.
        pictures: Picture of each capture that was set aside and can be read, by name; relative to the dst folder.
        outliers: Names of the references that differ from the others.
        remarks: What the references lack, and reasons why views of two eyes make no pair.
    """

    counts: pd.DataFrame
    made: int
    set_aside: dict[str, str]
    pictures: dict[str, str]
    outliers: tuple[str, ...]
    remarks: tuple[str, ...]


def build_dst(
    raw: Path,
    out: Path,
    reading: Reading,
    *,
    shards: int = 0,
    workers: int | None = None,
    engine: Engine = "processes",
) -> DstReport:
    """Make the dst folder from the raw folder.

    A capture that cannot be read or aligned is set aside with its reason; the run goes on with the other captures.

    Args:
        raw: The raw folder.
        out: The dst folder.
        reading: How to read and compare captures.
        shards: `raw.shards`: the number of archives, or 0 for a file per product.
        workers: Number of processes; by default one per core.
        engine: What makes the pictures.

    Returns:
        The summary of the run.

    Raises:
        UnitSpaceError: References make no unit space; the message has one line for each of these shapes.
        StageInputError: The raw folder is missing.
    """
    read = functools.lru_cache(maxsize=1)(functools.partial(read_manifest, raw / MANIFEST, _RAW_COLUMNS))
    windows = manifest_windows(raw / MANIFEST)
    rule = line_rule(map(read, windows))
    references = gather_rows(map(read, windows), lambda rows: rows["role"] == REFERENCE)
    eyes = EyePairs(map(read, windows), rule)
    counted: Counter[tuple[str, ...]] = Counter()
    made = 0
    set_aside: dict[str, Record] = {}
    with stage_folder(out, shards, engine) as folder:
        unit_spaces = _build_unit_spaces(folder, raw, references, rule, reading)
        for window in windows:
            captures = read(window)
            counted.update(zip(*(captures[name] for name in _COUNTED), strict=True))
            comparisons = _comparisons(raw, captures, rule, unit_spaces)
            records = _draw_dst_views(folder, comparisons, reading, workers)
            by_name = zip(captures["capture"], records.values(), strict=True)
            set_aside |= {name: record for name, record in by_name if record["error"]}
            made += len(comparisons.keys() & set(folder.made))
            folder.made.clear()
            pairs = list(eyes.of_left(comparisons, set_aside))
            views = _comparisons(raw, eyes.views(pairs), rule, unit_spaces)
            _draw_double_eyes(folder, pairs, views, reading, workers)
            _write_tables(folder, captures, records, reading.layout)
            folder.settle({folder.shard(file) for file in comparisons})
        if any(line.eye for line in rule.values()):
            folder.update_manifest(
                lambda rows: rows.assign(**{EYES_FILE: [eyes.eyes_file(file, set_aside) for file in rows["file"]]})
            )
    return DstReport(
        counts=tabulate_counts(counted, _COUNTED),
        made=made,
        set_aside={name: record["error"] for name, record in set_aside.items()},
        pictures={name: record["picture"] for name, record in set_aside.items() if "picture" in record},
        outliers=tuple(name for line in unit_spaces.values() for name in line.outliers),
        remarks=(
            *mixed_eyes(unit_spaces),
            *(each for space in unit_spaces.values() for each in space.remarks),
            *eyes.remarks(set_aside),
        ),
    )


def _comparisons(
    raw: Path, captures: pd.DataFrame, rule: LineRule, unit_spaces: dict[Line, BuiltUnitSpace]
) -> dict[str, Comparison]:
    """Return the comparison of each capture by its file."""
    lines = lines_of(captures, rule)
    return {
        file: Comparison(str(raw.absolute() / file), sha256, unit_spaces[lines[file]])
        for file, sha256 in zip(captures["file"], captures["sha256"], strict=True)
    }


def make_unit_space(reading: Reading, grid_pictures: Path, references: References) -> Product:
    """Build the unit space of one line.

    Args:
        reading: How to read and compare captures.
        grid_pictures: Folder for a picture of the best grid, written if no grid of pins fits the references.
        references: The references of the line.

    Returns:
        The unit space's file with the record `outliers`, `remarks` and `sha256`, or no file with the record `error`.
    """
    cv2.setNumThreads(1)  # the stage runs one process per core
    try:
        images = [np.asarray(read_image(path, reading.max_pixels)) for path in references.paths]
        unit_space = build_unit_space(
            images,
            references.names,
            references.field_boxes,
            references.line.shape,
            reading.layout,
            reading.params,
            references.corners,
        )
        remark = check_spread(images, references.names, unit_space, reading.params.maximum_shift)
    except DoubtfulGridError as error:
        picture = grid_pictures / grid_picture(references.line)
        write_file(picture, _png(error.picture[..., ::-1]))
        eye = f" --eye {references.line.eye}" if references.line.eye else ""
        command = f"pinspect grid --shape {references.line.shape}{eye}"
        return Product({}, {"error": f"{references.line_name}: {error}. {picture} shows the best grid; run {command}"})
    except (ImageError, UnitSpaceError) as error:
        return Product({}, {"error": f"{references.line_name}: {error}"})
    record = {"outliers": unit_space.outliers, "sha256": unit_space.digest}
    remarks = [f"{references.line_name}, {remark}"] if remark else []
    return Product({references.line.unit_space: unit_space.packed()}, record | {"remarks": remarks})


def check_shapes(reading: Reading, payload: tuple[References, dict[str, BuiltUnitSpace]]) -> Product:
    """Check that the references of a line look more like its shape than like another shape of its source.

    Args:
        reading: How to read and compare captures.
        payload: The references of the line, and the unit spaces of its source and eye by shape.

    Returns:
        The record `problems`, one message per reference that looks like another shape.
    """
    references, rivals = payload
    line = references.line
    problems: list[str] = []
    for path, name in zip(references.paths, references.names, strict=True) if len(rivals) > 1 else ():
        image = np.asarray(read_image(path, reading.max_pixels))
        unit_spaces = {shape: _loaded(built.path, built.sha256) for shape, built in rivals.items()}
        shape, _ = align_to_best(image, unit_spaces, reading.params.maximum_shift)
        if shape != line.shape:
            problems.append(
                f"{references.line_name}: reference {name} is labeled {line.shape} but looks like {shape}; "
                "correct its shape in labels.csv"
            )
    return Product({}, {"problems": problems})


def draw_dst_view(reading: Reading, payload: tuple[str, Comparison]) -> Product:
    """Align one capture to its unit space and draw its DST view.

    Args:
        reading: How to read and compare captures.
        payload: The capture's file in the raw folder, and its comparison.

    Returns:
        The DST view's file with the capture's place and its pins' scores. If the capture is set aside: the reason as
        `error`, and a picture of the capture if it can be read.
    """
    file, comparison = payload
    cv2.setNumThreads(1)
    unit_space = _loaded(comparison.unit_space.path, comparison.unit_space.sha256)
    try:
        image = np.asarray(read_image(comparison.path, reading.max_pixels))
    except ImageError as error:
        return Product({}, {"error": f"{file}: {str(error).removeprefix(f'{comparison.path}: ')}"})
    try:
        capture = align_capture(image, unit_space, reading.params.maximum_shift)
    except AlignmentError as error:
        picture = f"{SET_ASIDE}/{PurePosixPath(file).stem}.jpg"
        shown = set_aside_picture(image, unit_space.mean, str(error))
        return Product({picture: shown}, {"error": str(error), "picture": picture})
    measures = measure_pins(capture.evened, unit_space.templates)
    dst_file = str(PurePosixPath(file).with_suffix(DST_SUFFIX))
    facts = {"error": "", "scores": score_row(measures, unit_space)}
    return Product({dst_file: encode_dst(dst_view(capture))}, _placed(dst_file, capture.alignment) | facts)


def draw_double_eye(reading: Reading, payload: tuple[str, Comparison, Comparison]) -> Product:
    """Draw the double-eye: the difference between the left and the right view of one connector.

    Args:
        reading: How to read and compare captures.
        payload: The double-eye's file, and the comparisons of the left and the right view.

    Returns:
        The double-eye's file; none if a view is set aside, which another window of shards shows.
    """
    eyes_file, *comparisons = payload
    cv2.setNumThreads(1)
    try:
        left, right = (_aligned(reading, comparison) for comparison in comparisons)
    except (AlignmentError, ImageError):
        return Product({}, {})
    return Product({eyes_file: _png(double_eye(left, right))}, {})


@functools.lru_cache(maxsize=8)
def _loaded(path: str, sha256: str) -> UnitSpace:
    """Read a unit space once per process; `sha256` distinguishes two versions at the same path."""
    return UnitSpace.load(path)


def _aligned(reading: Reading, comparison: Comparison) -> AlignedCapture:
    unit_space = _loaded(comparison.unit_space.path, comparison.unit_space.sha256)
    image = np.asarray(read_image(comparison.path, reading.max_pixels))
    return align_capture(image, unit_space, reading.params.maximum_shift)


def _png(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8, gray or BGR."""
    return cv2.imencode(".png", picture, _PNG)[1].tobytes()


def _build_unit_spaces(
    folder: IncrementalFolder, raw: Path, captures: pd.DataFrame, rule: LineRule, reading: Reading
) -> dict[Line, BuiltUnitSpace]:
    """Build the unit space of every line that has captures, from the references among the captures."""
    corners = read_corners(raw / CORNERS, captures["capture"])
    references = line_references(captures, lines_of(captures, rule), rule.values(), raw, corners)
    items = [
        Item(line.unit_space, (*each.sha256, repr((each.field_boxes, each.corners))), each)
        for line, each in references.items()
    ]
    make = functools.partial(make_unit_space, reading, folder.path.parent / GRIDS)
    records: list[Record] = folder.map(make, items, params=repr(reading), title="unit spaces", workers=1)
    problems: list[str] = [record["error"] for record in records if "error" in record]
    if problems:
        raise UnitSpaceError("\n".join(problems))
    built = {
        line: BuiltUnitSpace(
            _find(folder, line.unit_space, record["sha256"]),
            record["sha256"],
            tuple(record["outliers"]),
            tuple(record["remarks"]),
        )
        for line, record in zip(references, records, strict=True)
    }
    checks = [_check(each, built) for each in references.values()]
    records = folder.map(
        functools.partial(check_shapes, reading), checks, params=repr(reading), title="references' shapes", workers=1
    )
    problems = [problem for record in records for problem in record["problems"]]
    if problems:
        raise UnitSpaceError("\n".join(problems))
    return built


def _check(references: References, built: dict[Line, BuiltUnitSpace]) -> Item:
    line = references.line
    rivals = {each.shape: space for each, space in built.items() if (each.source, each.eye) == (line.source, line.eye)}
    hashes = sorted((shape, space.sha256) for shape, space in rivals.items())
    return Item(f"shapes of {line.unit_space}", (*references.sha256, repr(hashes)), (references, rivals))


def _find(folder: IncrementalFolder, file: str, sha256: str) -> str:
    """Return the path of a file of the folder: made by this run, or in place since an earlier run."""
    paths = [path for path in (folder.partial / file, folder.path / file) if path.is_file()]
    return next(str(path.absolute()) for path in paths if hashlib.sha256(path.read_bytes()).hexdigest() == sha256)


def _draw_dst_views(
    folder: IncrementalFolder, comparisons: dict[str, Comparison], reading: Reading, workers: int | None
) -> dict[str, Record]:
    """Draw the DST view of each capture; return the captures' records by file in the raw folder."""
    items = [
        Item(file, (each.sha256, each.unit_space.sha256), (file, each), folder.shard(file))
        for file, each in comparisons.items()
    ]
    make = functools.partial(draw_dst_view, reading)
    records: list[Record] = folder.map(make, items, params=repr(reading), title="DST views", workers=workers)
    return dict(zip(comparisons, records, strict=True))


def _draw_double_eyes(
    folder: IncrementalFolder,
    pairs: Sequence[Pair],
    views: Mapping[str, Comparison],
    reading: Reading,
    workers: int | None,
) -> None:
    """Draw the double-eye of each pair of views."""
    items: list[Item] = []
    for eyes_file, left_file, right_file in pairs:
        left, right = views[left_file], views[right_file]
        inputs = (left.sha256, left.unit_space.sha256, right.sha256, right.unit_space.sha256)
        items.append(Item(eyes_file, inputs, (eyes_file, left, right), folder.shard(eyes_file)))
    folder.map(
        functools.partial(draw_double_eye, reading), items, params=repr(reading), title="double-eyes", workers=workers
    )


def _placed(dst_file: str, place: Alignment) -> dict[str, float | str]:
    numbers = dict(zip(MATRIX, place.matrix.astype(float).ravel(), strict=True))
    numbers |= {"shift_x": place.shift[0], "shift_y": place.shift[1], "alignment_score": place.score}
    return {"dst_file": dst_file} | {name: float(f"{number:.7g}") for name, number in numbers.items()}


def _write_tables(
    folder: IncrementalFolder, captures: pd.DataFrame, records: dict[str, Record], layout: Layout
) -> None:
    """Write the rows of one window to the scores and to the manifest."""
    inspected = captures.loc[captures["role"] == INSPECTED, "file"]
    scores = [{"file": file} | records[file]["scores"] for file in inspected if "scores" in records[file]]
    manifest = pd.DataFrame(list(records.values()), columns=list(COLUMNS)).assign(file=captures["file"])
    if any(map(folder.shard, captures["file"])):
        hashes = [folder.hashes(file) for file in captures["file"]]
        manifest[DST_SHA256] = [
            each.get(file, "") for each, file in zip(hashes, manifest["dst_file"].fillna(""), strict=True)
        ]
    folder.write_table(SCORES, pd.DataFrame(scores, columns=list(score_columns(layout))))
    folder.write_manifest(manifest)
