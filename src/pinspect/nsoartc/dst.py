"""The dst folder: the unit space of every line, and every capture laid over it and shown as its distance.

unit_space/<source>-<SHAPE>.npz      one per line, made of its references (with two eyes: <source>-<SHAPE>-<eye>.npz)
images/<2 hex>/<20 hex>.png          the DST view, aligned, in px of the unit space
images/<2 hex>/<20 hex>-EYES.png     where a connector has two views, the double-eye, named after its left one
scores.csv                           one row an inspected capture: a score for each pin, and the features of the highest
manifest.csv                         one row a capture: its DST view and place, or why it was set aside
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd

from pinspect.captures.incremental import MANIFEST, IncrementalFolder, Item, Product
from pinspect.captures.labels import FIELD_BOX, INSPECTED, REFERENCE
from pinspect.core.answers import DEFECTIVE
from pinspect.core.errors import AlignmentError, ImageError, UnitSpaceError
from pinspect.core.images import read_image, to_gray
from pinspect.core.layout import Layout
from pinspect.core.lines import LABEL, Line, lines_of, pair_eyes
from pinspect.core.manifests import read_manifest
from pinspect.core.params import DstParams
from pinspect.nsoartc.aligned import AlignedCapture, align_capture, align_to_best
from pinspect.nsoartc.alignment import Alignment
from pinspect.nsoartc.dst_view import paint_double_eye, paint_dst_view
from pinspect.nsoartc.grid import DoubtfulGridError
from pinspect.nsoartc.pin_scores import MODE_FEATURES, measure_pins, mode_features
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space
from pinspect.nsoartc.window_beta import distance_image, double_eye

SCORES = "scores.csv"
GRID_PICTURES = "grid"  # a folder beside the dst folder
MATRIX = ("m00", "m01", "m02", "m10", "m11", "m12")
COLUMNS = ("file", "dst_file", *MATRIX, "shift_x", "shift_y", "alignment_score", "error")
EYES_FILE = "eyes_file"  # a further column, where a line has two eyes
SCORE = "score"
HIGHEST = "highest"
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 1)  # these pictures gain a fifth from level 6, at five times the time


@dataclass(frozen=True)
class Reading:
    """How images are read and compared: params.dst, the layout, and how many pixels an image may have."""

    layout: Layout
    params: DstParams
    max_pixels: int


@dataclass(frozen=True)
class References:
    """The references of one line: paths, names, hashes and field boxes (x0, y0, x1, y1; None unless every one has its
    box) go together."""

    line: Line
    paths: tuple[str, ...]
    names: tuple[str, ...]
    sha256: tuple[str, ...]
    field_boxes: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class BuiltUnitSpace:
    """A unit space on disk: where it lies, its sha256, and the references that differ from their fellows."""

    path: str
    sha256: str
    outliers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A capture and what it is compared with: the path and the sha256 of its image, and its unit space."""

    path: str
    sha256: str
    unit_space: BuiltUnitSpace


@dataclass(frozen=True)
class DstReport:
    """What the dst stage has to tell.

    counts: captures by source, shape and role. made: how many captures were compared anew. set_aside: capture ->
    reason. outliers: references that differ from their fellows. remarks: why views of two eyes make no pair.
    """

    counts: pd.DataFrame
    made: int
    set_aside: dict[str, str]
    outliers: tuple[str, ...]
    remarks: tuple[str, ...]


def build_dst(raw: Path, out: Path, reading: Reading, *, workers: int | None = None) -> DstReport:
    """Make the dst folder `out` from the raw folder.

    Raises UnitSpaceError, with a line for each shape whose references make no unit space, and StageInputError when the
    raw folder is not there. A capture that cannot be read or aligned is set aside with its reason and stops no other.
    """
    captures = read_manifest(raw / MANIFEST, ("file", "sha256", "source", "capture", *LABEL, *FIELD_BOX))
    lines = lines_of(captures)
    with IncrementalFolder(out) as folder:
        unit_spaces = _build_unit_spaces(folder, raw, captures, lines, reading)
        comparisons = {
            row.file: Comparison(str(raw / row.file), row.sha256, unit_spaces[lines[row.file]])
            for row in captures.itertuples()
        }
        records = _draw_dst_views(folder, comparisons, reading, workers)
        eyes, remarks = _draw_double_eyes(folder, captures, lines, comparisons, records, reading, workers)
        _write_tables(folder, captures, records, eyes, reading.layout)
    errors = {name: record["error"] for name, record in zip(captures["capture"], records.values(), strict=True)}
    return DstReport(
        counts=captures.groupby(["source", "shape", "role"]).size().unstack("role", fill_value=0),
        made=len(set(folder.made) & set(captures["file"])),
        set_aside={name: error for name, error in errors.items() if error},
        outliers=tuple(name for line in unit_spaces.values() for name in line.outliers),
        remarks=tuple(remarks),
    )


def make_unit_space(reading: Reading, grid_pictures: Path, references: References, folder: Path) -> Product:
    """Build the unit space of one line.

    The record has its outliers, or as `error` why it could not be built. Where no grid of pins fits the references, a
    picture in the folder `grid_pictures` shows the best one.
    """
    cv2.setNumThreads(1)  # the stage runs a process a core
    try:
        unit_space = build_unit_space(
            [to_gray(read_image(path, reading.max_pixels)) for path in references.paths],
            references.names,
            references.field_boxes,
            references.line.shape,
            reading.layout,
            reading.params,
        )
    except DoubtfulGridError as error:
        picture = grid_pictures / f"{Path(references.line.unit_space).stem}.png"
        _write_png(picture, error.picture[..., ::-1])
        return Product((), {"error": f"{_name(references.line)}: {error}. {picture} shows the best grid"})
    except (ImageError, UnitSpaceError) as error:
        return Product((), {"error": f"{_name(references.line)}: {error}"})
    unit_space.save(folder / references.line.unit_space)
    return Product((references.line.unit_space,), {"outliers": unit_space.outliers, "sha256": unit_space.digest})


def check_shapes(reading: Reading, payload: tuple[References, dict[str, BuiltUnitSpace]], folder: Path) -> Product:
    """Whether the references of a line look like its shape, rather than like another of its source; makes no file."""
    references, rivals = payload
    line, problems = references.line, []
    for path, name in zip(references.paths, references.names, strict=True) if len(rivals) > 1 else ():
        gray = to_gray(read_image(path, reading.max_pixels))
        unit_spaces = {shape: _loaded(built.path, built.sha256) for shape, built in rivals.items()}
        shape, _ = align_to_best(gray, unit_spaces, reading.params.maximum_shift)
        if shape != line.shape:
            problems.append(
                f"{_name(line)}: reference {name} is labelled {line.shape} but looks like {shape}; "
                "correct its shape in labels.csv"
            )
    return Product((), {"problems": problems})


def draw_dst_view(reading: Reading, payload: tuple[str, Comparison], folder: Path) -> Product:
    """Align one capture, `file` in the raw folder, to its unit space and draw its DST view.

    The record holds its place and its pins' scores, or as `error` why the capture was set aside.
    """
    file, comparison = payload
    cv2.setNumThreads(1)
    try:
        capture = _aligned(reading, comparison)
    except (ImageError, AlignmentError) as error:
        return Product((), {"error": str(error)})
    unit_space = capture.unit_space
    measures = measure_pins(capture.evened, unit_space.templates)
    distances = unit_space.pin_distances(measures)
    painted = paint_dst_view(capture.evened, measures, distances, unit_space)
    dst_file = str(PurePosixPath(file).with_suffix(".png"))
    _write_png(folder / dst_file, painted[..., ::-1])
    scores = score_row(measures, unit_space)
    return Product((dst_file,), _placed(dst_file, capture.alignment) | {"error": "", "scores": scores})


def draw_double_eye(reading: Reading, payload: tuple[str, Comparison, Comparison], folder: Path) -> Product:
    """Draw what the left and the right view of one connector, neither of them set aside, see differently."""
    eyes_file, *comparisons = payload
    cv2.setNumThreads(1)
    distances, boxes, whites = [], [], []
    for comparison in comparisons:
        capture = _aligned(reading, comparison)
        distances.append(_whole_distance(capture.evened, capture.unit_space))
        boxes.append(capture.unit_space.cell_box)
        whites.append(capture.unit_space.white)
    painted = paint_double_eye(double_eye(*distances, *boxes), sum(whites) / 2)
    _write_png(folder / eyes_file, painted)
    return Product((eyes_file,), {})


def score_row(measures: np.ndarray, unit_space: UnitSpace) -> dict[str, float | str]:
    """What the baseline knows of a capture, from what `measure_pins` found, as a row of scores.csv.

    The score of each pin, keyed by its address: its Mahalanobis distance as a share of what few passed pins reach, so
    that shapes and lines can be compared. `score` and `highest`: the highest of them and its address. Then the
    `MODE_FEATURES` of that pin.
    """
    scores = unit_space.pin_distances(measures) / unit_space.pin_white
    highest = int(scores.argmax())
    addresses = unit_space.layout.addresses
    features = mode_features(measures, unit_space.templates, highest)
    return (
        {str(address): round(float(score), 4) for address, score in zip(addresses, scores, strict=True)}
        | {SCORE: round(float(scores[highest]), 4), HIGHEST: str(addresses[highest])}
        | {name: round(float(value), 5) for name, value in zip(MODE_FEATURES, features, strict=True)}
    )


def score_columns(layout: Layout) -> tuple[str, ...]:
    """The columns of scores.csv."""
    return ("file", *map(str, layout.addresses), SCORE, HIGHEST, *MODE_FEATURES)


@functools.lru_cache(maxsize=8)
def _loaded(path: str, sha256: str) -> UnitSpace:
    """A unit space, read once by each process; `sha256` keeps two versions at one path apart."""
    return UnitSpace.load(path)


def _aligned(reading: Reading, comparison: Comparison) -> AlignedCapture:
    unit_space = _loaded(comparison.unit_space.path, comparison.unit_space.sha256)
    gray = to_gray(read_image(comparison.path, reading.max_pixels))
    return align_capture(gray, unit_space, reading.params.maximum_shift)


def _whole_distance(evened: np.ndarray, unit_space: UnitSpace) -> np.ndarray:
    """DST at stride 1, in the size of the unit space: the outer windows' values go on to the edge."""
    before, after = (unit_space.window - 1) // 2, unit_space.window // 2
    return np.pad(distance_image(evened, unit_space.mean, unit_space.window), (before, after), mode="edge")


def _write_png(path: Path, picture: np.ndarray) -> None:
    """`picture`: uint8, gray or in OpenCV's order of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture, _PNG)[1].tobytes())


def _build_unit_spaces(
    folder: IncrementalFolder, raw: Path, captures: pd.DataFrame, lines: dict[str, Line], reading: Reading
) -> dict[Line, BuiltUnitSpace]:
    """The unit space of every line that has captures."""
    references = {
        line: _references(line, captures[[lines[file] == line for file in captures["file"]]], raw)
        for line in sorted(set(lines.values()))
    }
    items = [Item(line.unit_space, (*r.sha256, repr(r.field_boxes)), r) for line, r in references.items()]
    make = functools.partial(make_unit_space, reading, folder.path.parent / GRID_PICTURES)
    records = folder.map(make, items, params=repr(reading), title="unit spaces", workers=1)
    problems = [record["error"] for record in records if "error" in record]
    if problems:
        raise UnitSpaceError("\n".join(problems))
    built = {
        line: BuiltUnitSpace(
            _find(folder, line.unit_space, record["sha256"]), record["sha256"], tuple(record["outliers"])
        )
        for line, record in zip(references, records, strict=True)
    }
    checks = [_check(each, built) for each in references.values()]
    make = functools.partial(check_shapes, reading)
    records = folder.map(make, checks, params=repr(reading), title="references' shapes", workers=1)
    problems = [problem for record in records for problem in record["problems"]]
    if problems:
        raise UnitSpaceError("\n".join(problems))
    return built


def _check(references: References, built: dict[Line, BuiltUnitSpace]) -> Item:
    line = references.line
    rivals = {each.shape: space for each, space in built.items() if (each.source, each.eye) == (line.source, line.eye)}
    hashes = sorted((shape, space.sha256) for shape, space in rivals.items())
    return Item(f"shapes of {line.unit_space}", (*references.sha256, repr(hashes)), (references, rivals))


def _references(line: Line, rows: pd.DataFrame, raw: Path) -> References:
    found = rows[rows["role"] == REFERENCE]
    defective = found.loc[found["judgement"] == DEFECTIVE, "capture"].tolist()
    if defective:
        raise UnitSpaceError(
            f"{_name(line)}, shape {line.shape}: reference {defective[0]} is labelled defective; a reference is a "
            "passed capture: correct its judgement or its role in labels.csv"
        )
    boxes = found[list(FIELD_BOX)]
    has_boxes = len(found) > 0 and not (boxes == "").any(axis=None)
    return References(
        line=line,
        paths=tuple(str(raw / file) for file in found["file"]),
        names=tuple(found["capture"]),
        sha256=tuple(found["sha256"]),
        field_boxes=tuple(map(tuple, boxes.astype(float).to_numpy().tolist())) if has_boxes else None,
    )


def _name(line: Line) -> str:
    return f"{line.source} line{f', {line.eye} eye' if line.eye else ''}"


def _find(folder: IncrementalFolder, file: str, sha256: str) -> str:
    """Where a file of the folder lies now: freshly made, or in place since an earlier run."""
    paths = [path for path in (folder.partial / file, folder.path / file) if path.is_file()]
    return next(str(path) for path in paths if hashlib.sha256(path.read_bytes()).hexdigest() == sha256)


def _draw_dst_views(
    folder: IncrementalFolder, comparisons: dict[str, Comparison], reading: Reading, workers: int | None
) -> dict[str, dict]:
    """The record of each capture, by its file in the raw folder."""
    items = [Item(file, (one.sha256, one.unit_space.sha256), (file, one)) for file, one in comparisons.items()]
    make = functools.partial(draw_dst_view, reading)
    records = folder.map(make, items, params=repr(reading), title="DST views", workers=workers)
    return dict(zip(comparisons, records, strict=True))


def _draw_double_eyes(
    folder: IncrementalFolder,
    captures: pd.DataFrame,
    lines: dict[str, Line],
    comparisons: dict[str, Comparison],
    records: dict[str, dict],
    reading: Reading,
    workers: int | None,
) -> tuple[dict[str, str] | None, list[str]]:
    """The double-eye of each capture that has one, by its file in the raw folder, and remarks on those without.

    None in place of the files where no line has eyes at all.
    """
    pairs, remarks = pair_eyes(captures, lines)
    names = dict(zip(captures["file"], captures["capture"], strict=True))
    items, eyes = [], {}
    for pair in pairs:
        lost = [names[file] for file in pair if records[file]["error"]]
        if lost:
            both = " and ".join(names[file] for file in pair)
            remarks.append(f"{both}: no double-eye: {' and '.join(lost)} set aside")
            continue
        eyes_file = f"{PurePosixPath(pair[0]).with_suffix('')}-EYES.png"
        left, right = (comparisons[file] for file in pair)
        inputs = (left.sha256, left.unit_space.sha256, right.sha256, right.unit_space.sha256)
        items.append(Item(eyes_file, inputs, (eyes_file, left, right)))
        eyes |= dict.fromkeys(pair, eyes_file)
    make = functools.partial(draw_double_eye, reading)
    folder.map(make, items, params=repr(reading), title="double-eyes", workers=workers)
    return eyes if any(line.eye for line in lines.values()) else None, remarks


def _placed(dst_file: str, place: Alignment) -> dict[str, float | str]:
    numbers = dict(zip(MATRIX, place.matrix.astype(float).ravel(), strict=True))
    numbers |= {"shift_x": place.shift[0], "shift_y": place.shift[1], "alignment_score": place.score}
    return {"dst_file": dst_file} | {name: float(f"{number:.7g}") for name, number in numbers.items()}


def _write_tables(
    folder: IncrementalFolder,
    captures: pd.DataFrame,
    records: dict[str, dict],
    eyes: dict[str, str] | None,
    layout: Layout,
) -> None:
    inspected = captures.loc[captures["role"] == INSPECTED, "file"]
    scores = [{"file": file} | records[file]["scores"] for file in inspected if "scores" in records[file]]
    manifest = pd.DataFrame(list(records.values()), columns=list(COLUMNS)).assign(file=captures["file"])
    if eyes is not None:
        manifest[EYES_FILE] = [eyes.get(file, "") for file in captures["file"]]
    for name, table in ((SCORES, pd.DataFrame(scores, columns=list(score_columns(layout)))), (MANIFEST, manifest)):
        table.to_csv(folder.new_file(name), index=False, encoding="utf-8", lineterminator="\n")
