"""Make the raw folder: checked copies of all captures with their splits, and the captures of the virtual line.

images/<2 hex>/<20 hex>.<suffix>   the original bytes, named after their sha256
corners.csv                        corner pins that a person has marked, if any
manifest.csv                       one row per capture: label, provenance and split
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from pinspect.captures import labels as labelled
from pinspect.captures import splits
from pinspect.captures.capture_table import new_capture_table
from pinspect.captures.change import locked
from pinspect.captures.engines import Engine
from pinspect.captures.file_states import FileStates
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, Capture
from pinspect.captures.references import RAW_COLUMNS
from pinspect.captures.sharded import stage_folder
from pinspect.captures.table import COLUMNS as LABELED
from pinspect.captures.table import FIELD_BOX, LABEL_COLUMNS, PIN_BOX
from pinspect.core.answers import AnswerContract
from pinspect.core.corners import CORNERS, read_corners, write_corners
from pinspect.core.errors import CaptureError, ImageError, ParamsError
from pinspect.core.images import read_image
from pinspect.core.manifests import MANIFEST, WINDOW, group_shards, iterate_manifest, tabulate_counts
from pinspect.core.params import RawParams, VirtualParams
from pinspect.core.rows import SPLITS
from pinspect.virtual_line import DRAWN_SHAPES, LineSetup, VirtualCapture, default_setup, render_line, setup_like

CAMERA = "camera"
VIRTUAL = "virtual"
_COUNTED = ("source", "shape", "role", "split")
_SHOWN_REFERENCES = 7  # whose colors the virtual line takes
COLUMNS = (*RAW_COLUMNS, *FIELD_BOX, *PIN_BOX)


@dataclass(frozen=True)
class RawReport:
    """The result of the raw stage.

    Attributes:
        counts: Number of captures by source, shape, role and split.
        made: Number of items that this run has made.
        remarks: Remarks for the user, one line each.
    """

    counts: pd.DataFrame
    made: int
    remarks: tuple[str, ...]


def build_raw(
    captures: Path,
    out: Path,
    split_record: Path,
    contract: AnswerContract,
    params: RawParams,
    *,
    workers: int | None = None,
    engine: Engine = "processes",
) -> RawReport:
    """Make the raw folder from the captures' folder and the virtual line.

    Args:
        captures: The captures' folder.
        out: The raw folder.
        split_record: The record of decided splits; new splits are added.
        contract: The line's layout, shapes and defect modes.
        params: The parameters of the stage.
        workers: Number of processes; by default one per core.
        engine: What makes the images.

    Raises:
        CaptureError: Captures cannot be used (one line each), or there are none. `out` and the record are unchanged.
        ParamsError: The virtual line cannot draw a shape, or draws no defect mode. `out` and the record are unchanged.
    """
    folder = stage_folder(out, params.shards, engine)
    with closing(new_capture_table()) as table:
        images = labelled.images_folder(captures)
        table.create_function("shard_of", 1, lambda sha256: folder.shard(_image_file(sha256, "")), deterministic=True)
        with locked(captures), FileStates(captures.with_name(f"{captures.name}.states.sqlite")) as states:
            problems, remarks = _read_labels(table, captures, contract, states)
            _read_images(table, images, states)
        contradictions, left_out = _drop_twins(table)
        problems += contradictions
        remarks = [*left_out, *remarks, *_replaced(table, out / MANIFEST)]
        with folder:
            virtual, failure = pd.DataFrame(columns=COLUMNS), None
            try:  # first, since its pictures belong into the archives of the first window, too
                virtual = _render_virtual_line(folder, table, images, contract, params, workers)
            except (ImageError, ParamsError) as error:
                failure = error
            bad, made = _copy_images(folder, table, images, params, workers)
            if problems or bad:
                raise CaptureError("\n".join([*problems, *bad]))
            if failure:
                raise failure
            references = table.execute("SELECT file FROM captures WHERE role = ?", (REFERENCE,))
            corners = read_corners(captures / CORNERS, [file for (file,) in references])
            if virtual.empty and not _count(table):
                raise CaptureError(f"{captures}: no captures, and raw.virtual asks for none; run `pinspect add DIR`")
            remarks += _split(table, split_record, splits.SplitRule.of(params))
            if corners:
                write_corners(folder.new_file(CORNERS), corners)
            counted: Counter[tuple[str, ...]] = Counter()
            for camera, rendered in _windows(folder, table, virtual):
                copied = camera.rename(columns={"file": "capture"}).assign(file=_image_files(camera), source=CAMERA)
                manifest = pd.concat([copied, rendered])[list(COLUMNS)].sort_values(["source", "capture"])
                folder.write_manifest(manifest)
                counted.update(zip(*(manifest[name] for name in _COUNTED), strict=True))
        made += len(folder.made)
    return RawReport(tabulate_counts(counted, _COUNTED), made, tuple(remarks))


def copy_image(payload: tuple[str, str, int]) -> Product:
    """Check and copy one image.

    Args:
        payload: Path, sha256, and the number of pixels that an image may have.

    Returns:
        A record with `file` and `perceptual_hash`, or with `error`. The error has no path, since the same content may
        have another name in the next run.
    """
    path, sha256, max_pixels = payload
    try:
        image = read_image(Path(path), max_pixels)
    except ImageError as error:
        return Product({}, {"error": str(error).removeprefix(f"{path}: ")})
    file = _image_file(sha256, Path(path).suffix.lower())
    record = {"file": file, "perceptual_hash": splits.perceptual_hash(image)}
    return Product({file: Path(path).read_bytes()}, record)


def render_virtual_line(payload: tuple[AnswerContract, VirtualParams, dict[str, LineSetup], str]) -> Product:
    """Render the captures of one split of the virtual line.

    Args:
        payload: Answer contract, parameters and looks of the virtual line, and the split.

    Returns:
        A record with `rows`, the captures' rows of the manifest.
    """
    contract, params, setups, split = payload
    files, rows = {}, []
    for capture in render_line(contract.layout, contract.shapes, contract.drawings, params, setups):
        if capture.split == split:
            sha256 = hashlib.sha256(capture.jpeg).hexdigest()
            file = _image_file(sha256, ".jpg")
            files[file] = capture.jpeg
            rows.append({"file": file, "sha256": sha256, "source": VIRTUAL, "split": split} | _virtual(capture))
    return Product(files, {"rows": rows})


def _read_labels(
    table: sqlite3.Connection, captures: Path, contract: AnswerContract, states: FileStates
) -> tuple[list[str], list[str]]:
    """Fill the table with the usable captures and known hashes; return the problems of the others, and remarks."""
    images = labelled.images_folder(captures)
    problems, remarks = [], []

    def rows() -> Iterator[tuple[str | None, ...]]:
        for each in labelled.iterate_captures(captures, contract):
            if isinstance(each, str):
                problems.append(each)
            else:
                remarks.extend(labelled.contradicted_names([each], contract))
                yield *each.row().values(), states.recorded(images / each.file)

    columns = (*LABELED, "sha256")
    table.executemany(f"INSERT INTO captures ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", rows())
    return problems, remarks


def _read_images(table: sqlite3.Connection, images: Path, states: FileStates) -> None:
    """Fill in the hashes of new and changed images, and all shards."""

    def waiting() -> Iterator[tuple[int, str]]:
        query = "SELECT number, file FROM captures WHERE sha256 IS NULL LIMIT ?"
        while rows := table.execute(query, (WINDOW,)).fetchall():
            yield from rows

    if count := _count(table, "sha256 IS NULL"):
        for number, file in track(waiting(), "captures to read", count, console=Console(stderr=True)):
            sha256 = states.sha256(images / file) or ""
            table.execute("UPDATE captures SET sha256 = ? WHERE number = ?", (sha256, number))
    states.save()
    table.execute("UPDATE captures SET shard = shard_of(sha256)")


def _drop_twins(table: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """Keep the first of several captures of equal content; return the problems and the remarks about the others."""
    twins = table.execute(f"""
        SELECT {", ".join(LABEL_COLUMNS)}, sha256 FROM captures
        WHERE sha256 IN (SELECT sha256 FROM captures GROUP BY sha256 HAVING count(*) > 1) ORDER BY number""")
    contents = [(Capture(*label), sha256) for *label, sha256 in twins]
    table.execute("DELETE FROM captures WHERE number NOT IN (SELECT min(number) FROM captures GROUP BY sha256)")
    return labelled.conflicting_labels(contents), labelled.distinct(contents)[1]


def _copy_images(
    folder: IncrementalFolder, table: sqlite3.Connection, images: Path, params: RawParams, workers: int | None
) -> tuple[list[str], int]:
    """Copy the images, fill in their perceptual hashes; return the problems, and the number of images copied."""
    made = 0
    problems: dict[int, str] = {}
    for rows, _ in _windows(folder, table, pd.DataFrame(columns=COLUMNS)):
        items = [
            Item(
                sha256,
                (Path(file).suffix.lower(),),
                (str(images.absolute() / file), sha256, params.max_pixels),
                folder.shard(_image_file(sha256, "")),
            )
            for file, sha256 in zip(rows["file"], rows["sha256"], strict=True)
        ]
        records = folder.map(copy_image, items, params=params.max_pixels, title="captures", workers=workers)
        folder.settle({item.shard for item in items})
        made += len(folder.made)
        folder.made.clear()  # of a window only, for the memory
        hashes = zip((record.get("perceptual_hash", "") for record in records), rows["number"].to_list(), strict=True)
        table.executemany("UPDATE captures SET perceptual_hash = ? WHERE number = ?", hashes)
        problems |= {
            number: f"{images / file}: {record['error']}"
            for number, file, record in zip(rows["number"], rows["file"], records, strict=True)
            if "error" in record
        }
    return [problems[number] for number in sorted(problems)], made


def _windows(
    folder: IncrementalFolder, table: sqlite3.Connection, virtual: pd.DataFrame
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Yield captures and virtual captures in windows of shards; without shards all at once, in their order.

    A virtual capture whose picture is also a capture is left out.
    """
    captured = [sha256 for sha256 in virtual["sha256"] if _count(table, "sha256 = ?", sha256)]
    virtual = virtual[~virtual["sha256"].isin(captured)]
    shard = virtual["file"].map(folder.shard)
    sizes = Counter(dict(table.execute("SELECT shard, count(*) FROM captures GROUP BY shard")))
    sizes.update(shard)
    query = "SELECT * FROM captures WHERE shard BETWEEN ? AND ? ORDER BY number"
    for window in group_shards(sizes):
        yield pd.read_sql_query(query, table, params=(window[0], window[-1])), virtual[shard.isin(window)]


def _count(table: sqlite3.Connection, condition: str = "true", *values: str) -> int:
    """Return the number of captures for which a condition holds."""
    return table.execute(f"SELECT count(*) FROM captures WHERE {condition}", values).fetchone()[0]


def _virtual_setups(
    table: sqlite3.Connection, images: Path, contract: AnswerContract, params: RawParams
) -> dict[str, LineSetup]:
    """Return what the virtual captures of a shape look like, for each shape with references: like its references."""
    virtual = params.virtual
    setups: dict[str, LineSetup] = {}
    if not (virtual.train or virtual.validation or virtual.test):
        return setups
    query = "SELECT file FROM captures WHERE role = ? AND shape = ? ORDER BY sha256 LIMIT ?"
    for shape in DRAWN_SHAPES:
        files = [file for (file,) in table.execute(query, (REFERENCE, shape, _SHOWN_REFERENCES))]
        pictures = [np.asarray(read_image(images / file, params.max_pixels)) for file in files]
        if pictures:
            setups[shape] = setup_like(pictures, default_setup(shape, contract.layout), contract.layout)
    return setups


def _render_virtual_line(
    folder: IncrementalFolder,
    table: sqlite3.Connection,
    images: Path,
    contract: AnswerContract,
    raw: RawParams,
    workers: int | None,
) -> pd.DataFrame:
    """Return the rows of the virtual line; the line is seeded, so parameters and looks fully determine the captures."""
    setups, params = _virtual_setups(table, images, contract, raw), raw.virtual
    wanted = {split: getattr(params, split) for split in SPLITS}
    # The references are rendered with the training captures, also when the user asks for other splits only.
    parts = {
        split: params.model_copy(update=dict.fromkeys(wanted, 0) | {split: count})
        for split, count in wanted.items()
        if count or (split == splits.TRAIN and any(wanted.values()))
    }
    items = [
        Item(
            f"virtual line, {split}",
            (repr((contract, setups)), part.model_dump_json()),
            (contract, part, setups, split),
        )
        for split, part in parts.items()
    ]
    try:
        records = folder.map(
            render_virtual_line, items, params=None, title="virtual line", batch_size=1, workers=workers
        )
    except ValueError as error:
        raise ParamsError(f"params.yaml: raw.virtual: {error}") from None
    return pd.DataFrame([row for record in records for row in record["rows"]], columns=COLUMNS)


def _replaced(table: sqlite3.Connection, manifest: Path) -> list[str]:
    """Return a remark for each name under which the raw folder has had another picture so far."""
    if not manifest.exists():
        return []
    replaced: set[str] = set()
    for part in iterate_manifest(manifest, ("capture", "source", "sha256")):
        known = part.loc[part["source"] == CAMERA, ["capture", "sha256"]]
        replaced |= {
            file
            for file, sha256 in known.itertuples(index=False)
            if _count(table, "file = ? AND sha256 != ?", file, sha256)
        }
    return [
        f"{file}: another picture than so far under this name; it counts as a new capture" for file in sorted(replaced)
    ]


def _split(table: sqlite3.Connection, record: Path, rule: splits.SplitRule) -> list[str]:
    """Fill in the split of each capture, write the record; return remarks."""
    table.executemany("INSERT OR REPLACE INTO decided VALUES (?, ?)", splits.read_splits(record, rule))
    remarks = splits.assign_splits(table, rule)
    splits.write_splits(record, table.execute("SELECT sha256, split FROM captures ORDER BY sha256"), rule)
    return remarks


def _virtual(capture: VirtualCapture) -> dict[str, str]:
    boxes = (*capture.field_box, *(capture.pin_box or ()))
    return {
        "capture": capture.name,
        "shape": capture.shape,
        "judgement": capture.judgement,
        "defect_mode": capture.defect_mode,
        "defect_position": capture.defect_position,
        "role": capture.role,
    } | {column: f"{edge:.2f}" for column, edge in zip((*FIELD_BOX, *PIN_BOX), boxes, strict=False)}


def _image_files(captures: pd.DataFrame) -> list[str]:
    pairs = zip(captures["file"], captures["sha256"], strict=True)
    return [_image_file(sha256, Path(file).suffix.lower()) for file, sha256 in pairs]


def _image_file(sha256: str, suffix: str) -> str:
    return f"images/{sha256[:2]}/{sha256[:20]}{suffix}"
