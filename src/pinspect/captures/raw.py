"""Make the raw folder: checked copies of all captures with their splits, and the captures of the virtual line.

images/<2 hex>/<20 hex>.<suffix>   the original bytes, named after their sha256
corners.csv                        corner pins that a person has marked, if any
manifest.csv                       one row per capture: label, provenance and split
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from pinspect.captures import labels as labelled
from pinspect.captures import splits
from pinspect.captures.change import locked
from pinspect.captures.engines import Engine
from pinspect.captures.file_states import hash_files
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, Capture
from pinspect.captures.lookups import TextHashes
from pinspect.captures.references import RAW_COLUMNS
from pinspect.captures.sharded import stage_folder
from pinspect.captures.table import COLUMNS as LABELED
from pinspect.captures.table import FIELD_BOX, LABEL_COLUMNS, PIN_BOX
from pinspect.core.answers import VERDICT, AnswerContract
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
_WORD = pa.dictionary(pa.int32(), pa.string())  # a few bytes a row
_LABELS = pa.schema({name: pa.string() if name == "file" else _WORD for name in LABELED})


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
    with locked(captures):
        table, problems, remarks = _read_labels(captures, contract)
        images = labelled.images_folder(captures)
        table["sha256"] = hash_files(images, table["file"], captures.with_name(f"{captures.name}.states.parquet"))
    twins = _twins(table)
    contents = [
        (Capture(*label), sha256) for *label, sha256 in twins[[*LABEL_COLUMNS, "sha256"]].itertuples(index=False)
    ]
    problems += labelled.conflicting_labels(contents)
    remarks = [*labelled.distinct(contents)[1], *remarks]
    table = table.drop(twins.index[twins["sha256"].duplicated()]).reset_index(drop=True)
    remarks += _replaced(table, out / MANIFEST)
    folder = stage_folder(out, params.shards, engine)
    with folder:
        virtual, failure = pd.DataFrame(columns=COLUMNS), None
        try:  # first, since its pictures belong into the archives of the first window, too
            virtual = _render_virtual_line(folder, table, images, contract, params, workers)
        except (ImageError, ParamsError) as error:
            failure = error
        perceptual_hashes, bad, made = _copy_images(folder, table, images, params, workers)
        if problems or bad:
            raise CaptureError("\n".join([*problems, *bad]))
        if failure:
            raise failure
        corners = read_corners(captures / CORNERS, table.loc[table["role"] == REFERENCE, "file"].to_list())
        if table.empty and virtual.empty:
            raise CaptureError(f"{captures}: no captures, and raw.virtual asks for none; run `pinspect add DIR`")
        table["split"], more_remarks = _split(table, perceptual_hashes, split_record, params)
        if corners:
            write_corners(folder.new_file(CORNERS), corners)
        counted: Counter[tuple[str, ...]] = Counter()
        virtual = virtual[~virtual["sha256"].isin(table["sha256"])]
        for camera, rendered in _windows(folder, table, virtual):
            copied = camera.rename(columns={"file": "capture"}).assign(file=_image_files(camera), source=CAMERA)
            manifest = pd.concat([copied, rendered])[list(COLUMNS)].sort_values(["source", "capture"])
            folder.write_manifest(manifest)
            counted.update(zip(*(manifest[name] for name in _COUNTED), strict=True))
    return RawReport(tabulate_counts(counted, _COUNTED), made + len(folder.made), (*remarks, *more_remarks))


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


def _read_labels(captures: Path, contract: AnswerContract) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the rows of all usable captures, the problems of the others, and remarks."""
    parts, problems, remarks = [_LABELS.empty_table()], [], []
    read = labelled.iterate_captures(captures, contract)
    while batch := list(itertools.islice(read, WINDOW)):  # a Capture takes ten times as much memory as a row
        problems += [each for each in batch if isinstance(each, str)]
        usable = [each for each in batch if isinstance(each, Capture)]
        remarks += labelled.contradicted_names(usable, contract)
        parts.append(pa.Table.from_pylist([capture.row() for capture in usable], _LABELS))
    return pa.concat_tables(parts).unify_dictionaries().to_pandas(), problems, remarks


def _twins(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose content another row has, too."""
    repeated = TextHashes(map(hash, table["sha256"])).repeated()  # pandas would make an object of each value
    return table[np.fromiter((hash(sha256) in repeated for sha256 in table["sha256"]), bool, len(table))]


def _copy_images(
    folder: IncrementalFolder, table: pd.DataFrame, images: Path, params: RawParams, workers: int | None
) -> tuple[pd.Series, list[str], int]:
    """Return the images' perceptual hashes, the problems of those that cannot be copied, and the number of new ones."""
    hashes, made = [pd.Series(dtype=str)], 0
    problems: dict[int, str] = {}
    for (rows,) in _windows(folder, table):
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
        hashes.append(pd.Series([record.get("perceptual_hash", "") for record in records], rows.index, dtype=str))
        problems |= {
            number: f"{images / file}: {record['error']}"
            for number, file, record in zip(rows.index, rows["file"], records, strict=True)
            if "error" in record
        }
    return pd.concat(hashes).reindex(table.index), [problems[number] for number in sorted(problems)], made


def _windows(folder: IncrementalFolder, *tables: pd.DataFrame) -> Iterator[list[pd.DataFrame]]:
    """Yield rows of each table in windows of shards; without shards all rows at once, in their order."""
    shards = [
        pd.Series([folder.shard(_image_file(sha256, "")) for sha256 in table["sha256"]], table.index, dtype=str)
        for table in tables
    ]
    for window in group_shards(Counter(itertools.chain(*shards))):
        yield [table[shard.isin(window)] for table, shard in zip(tables, shards, strict=True)]


def _virtual_setups(
    captures: pd.DataFrame, images: Path, contract: AnswerContract, params: RawParams
) -> dict[str, LineSetup]:
    """Return what the virtual captures of a shape look like, for each shape with references: like its references."""
    virtual = params.virtual
    setups: dict[str, LineSetup] = {}
    if not (virtual.train or virtual.validation or virtual.test):
        return setups
    for shape in DRAWN_SHAPES:
        references = captures[(captures["role"] == REFERENCE) & (captures["shape"] == shape)].sort_values("sha256")
        files = references["file"].head(_SHOWN_REFERENCES)
        pictures = [np.asarray(read_image(images / file, params.max_pixels)) for file in files]
        if pictures:
            setups[shape] = setup_like(pictures, default_setup(shape, contract.layout), contract.layout)
    return setups


def _render_virtual_line(
    folder: IncrementalFolder,
    captures: pd.DataFrame,
    images: Path,
    contract: AnswerContract,
    raw: RawParams,
    workers: int | None,
) -> pd.DataFrame:
    """Return the rows of the virtual line; the line is seeded, so parameters and looks fully determine the captures."""
    setups, params = _virtual_setups(captures, images, contract, raw), raw.virtual
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


def _replaced(captures: pd.DataFrame, manifest: Path) -> list[str]:
    """Return a remark for each name under which the raw folder has had another picture so far."""
    if not manifest.exists():
        return []
    replaced: set[str] = set()
    for part in iterate_manifest(manifest, ("capture", "source", "sha256")):
        known = part[part["source"] == CAMERA].set_index("capture")["sha256"]
        present = captures.loc[captures["file"].isin(known.index), ["file", "sha256"]]
        replaced |= set(present.loc[present["sha256"].to_numpy() != known[present["file"]].to_numpy(), "file"])
    return [
        f"{file}: another picture than so far under this name; it counts as a new capture" for file in sorted(replaced)
    ]


def _split(
    captures: pd.DataFrame, perceptual_hashes: pd.Series, split_record: Path, params: RawParams
) -> tuple[pd.Series, list[str]]:
    """Return the split of each capture, after writing the record, and remarks."""
    rule = splits.SplitRule.of(params)
    label = captures[list(VERDICT)].astype("str")
    candidates = captures[["file", "sha256"]].assign(
        perceptual_hash=perceptual_hashes,
        is_reference=captures["role"] == REFERENCE,
        label=label[VERDICT[0]].str.cat(label[[*VERDICT[1:]]], sep=" "),
    )
    split, remarks = splits.assign_splits(candidates, rule, splits.read_splits(split_record, rule))
    splits.write_splits(split_record, split.set_axis(captures["sha256"]), rule)
    return split, remarks


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
