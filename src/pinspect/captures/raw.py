"""Make the raw folder: checked copies of all captures with their splits, and the captures of the virtual line.

images/<2 hex>/<20 hex>.<suffix>   the original bytes, named after their sha256
corners.csv                        corner pins that a person has marked, if any
manifest.csv                       one row per capture: label, provenance and split
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from pinspect.captures import labels as labelled
from pinspect.captures import splits
from pinspect.captures.change import locked
from pinspect.captures.engines import Engine
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import REFERENCE, Capture
from pinspect.captures.references import RAW_COLUMNS
from pinspect.captures.sharded import stage_folder
from pinspect.captures.table import FIELD_BOX, PIN_BOX
from pinspect.core.answers import VERDICT, AnswerContract
from pinspect.core.corners import CORNERS, read_corners, write_corners
from pinspect.core.errors import CaptureError, ImageError, ParamsError
from pinspect.core.images import read_image
from pinspect.core.manifests import MANIFEST, group_shards, iterate_manifest
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
    with locked(captures):
        labels = labelled.read_captures(captures, contract)
        images = labelled.images_folder(captures)
        contents = [(capture, labelled.content_hash(images / capture.file)) for capture in labels.captures]
    problems = [*labels.problems, *labelled.conflicting_labels(contents)]
    distinct, remarks = labelled.distinct(contents)
    remarks += [*labelled.contradicted_names(labels.captures, contract), *_replaced(distinct, out / MANIFEST)]
    virtual: list[dict] | None = None
    folder = stage_folder(out, params.shards, engine)
    with folder:
        if params.shards:  # their pictures belong into the archives of the first window, too
            virtual = _try_virtual_line(folder, distinct, images, contract, params, workers)
        copies = _copy_images(folder, distinct, images, params, workers)
        problems += [
            f"{images / capture.file}: {copy['error']}"
            for (capture, _), copy in zip(distinct, copies, strict=True)
            if "error" in copy
        ]
        if problems:
            raise CaptureError("\n".join(problems))
        references = [capture.file for capture, _ in distinct if capture.role == REFERENCE]
        corners = read_corners(captures / CORNERS, references)
        if virtual is None:
            virtual = _render_virtual_line(folder, distinct, images, contract, params, workers)
        if not distinct and not virtual:
            raise CaptureError(f"{captures}: no captures, and raw.virtual asks for none; run `pinspect add DIR`")
        split_of, more_remarks = _split(distinct, copies, split_record, params)
        if corners:
            write_corners(folder.new_file(CORNERS), corners)
        counted: Counter[tuple[str, ...]] = Counter()
        both = [
            *zip(distinct, (copy["file"] for copy in copies), strict=True),
            *((row, row["file"]) for row in virtual if row["sha256"] not in split_of),
        ]
        for window in _windows(both, itemgetter(1), folder):
            rows = [
                source
                if isinstance(source, dict)
                else {"file": file, "sha256": source[1], "source": CAMERA, "split": split_of[source[1]]}
                | _named(source[0])
                for source, file in window
            ]
            manifest = pd.DataFrame(rows, columns=COLUMNS).sort_values(["source", "capture"], ignore_index=True)
            folder.write_manifest(manifest)
            counted.update(zip(*(manifest[name] for name in _COUNTED), strict=True))
    return RawReport(_crosstab(counted), len(folder.made), (*remarks, *more_remarks))


def copy_image(payload: tuple[str, str, int], folder: Path) -> Product:
    """Check and copy one image.

    Args:
        payload: Path, sha256, and the number of pixels that an image may have.
        folder: The raw folder.

    Returns:
        A record with `file` and `perceptual_hash`, or with `error`. The error has no path, since the same content may
        have another name in the next run.
    """
    path, sha256, max_pixels = payload
    try:
        image = read_image(Path(path), max_pixels)
    except ImageError as error:
        return Product((), {"error": str(error).removeprefix(f"{path}: ")})
    file = _write_image(folder, sha256, Path(path).suffix.lower(), Path(path).read_bytes())
    return Product((file,), {"file": file, "perceptual_hash": splits.perceptual_hash(image)})


def render_virtual_line(
    payload: tuple[AnswerContract, VirtualParams, dict[str, LineSetup], str], folder: Path
) -> Product:
    """Render the captures of one split of the virtual line.

    Args:
        payload: Answer contract, parameters and looks of the virtual line, and the split.
        folder: The raw folder.

    Returns:
        A record with `rows`, the captures' rows of the manifest.
    """
    contract, params, setups, split = payload
    rows = []
    for capture in render_line(contract.layout, contract.shapes, contract.drawings, params, setups):
        if capture.split == split:
            sha256 = hashlib.sha256(capture.jpeg).hexdigest()
            file = _write_image(folder, sha256, ".jpg", capture.jpeg)
            rows.append({"file": file, "sha256": sha256, "source": VIRTUAL, "split": split} | _virtual(capture))
    return Product(tuple(row["file"] for row in rows), {"rows": rows})


def _copy_images(
    folder: IncrementalFolder,
    contents: Sequence[tuple[Capture, str]],
    images: Path,
    params: RawParams,
    workers: int | None,
) -> list[dict]:
    copies: dict[str, dict] = {}
    for window in _windows(contents, lambda content: _image_file(content[1], ""), folder):
        items = [
            Item(
                sha256,
                (Path(capture.file).suffix.lower(),),
                (str(images.absolute() / capture.file), sha256, params.max_pixels),
                folder.shard(_image_file(sha256, "")),
            )
            for capture, sha256 in window
        ]
        records = folder.map(copy_image, items, params=params.max_pixels, title="captures", workers=workers)
        copies |= {item.name: record for item, record in zip(items, records, strict=True)}
        folder.settle({item.shard for item in items})
    return [copies[sha256] for _, sha256 in contents]


T = TypeVar("T")


def _windows(values: Sequence[T], file_of: Callable[[T], str], folder: IncrementalFolder) -> Iterator[list[T]]:
    """Yield values in windows of shards; without shards all values at once, in their order.

    Args:
        values: The values.
        file_of: Returns the file of a value in the folder.
        folder: The folder.
    """
    by_shard: dict[str, list[T]] = defaultdict(list)
    for value in values:
        by_shard[folder.shard(file_of(value))].append(value)
    for window in group_shards({shard: len(of_shard) for shard, of_shard in by_shard.items()}):
        yield [value for shard in window for value in by_shard[shard]]


def _virtual_setups(
    contents: Sequence[tuple[Capture, str]], images: Path, contract: AnswerContract, params: RawParams
) -> dict[str, LineSetup]:
    """Return what the virtual captures of a shape look like, for each shape with references: like its references."""
    virtual = params.virtual
    setups: dict[str, LineSetup] = {}
    if not (virtual.train or virtual.validation or virtual.test):
        return setups
    for shape in DRAWN_SHAPES:
        files = sorted(
            (sha256, each.file) for each, sha256 in contents if (each.role, each.shape) == (REFERENCE, shape)
        )
        pictures = [np.asarray(read_image(images / file, params.max_pixels)) for _, file in files[:_SHOWN_REFERENCES]]
        if pictures:
            setups[shape] = setup_like(pictures, default_setup(shape, contract.layout), contract.layout)
    return setups


def _try_virtual_line(
    folder: IncrementalFolder,
    contents: Sequence[tuple[Capture, str]],
    images: Path,
    contract: AnswerContract,
    params: RawParams,
    workers: int | None,
) -> list[dict] | None:
    """Return the rows of the virtual line before captures are checked; None if a bad reference or parameter hinders."""
    try:
        return _render_virtual_line(folder, contents, images, contract, params, workers)
    except (ImageError, ParamsError):  # raised again after the captures are checked
        return None


def _render_virtual_line(
    folder: IncrementalFolder,
    contents: Sequence[tuple[Capture, str]],
    images: Path,
    contract: AnswerContract,
    raw: RawParams,
    workers: int | None,
) -> list[dict]:
    """Return the rows of the virtual line; the line is seeded, so parameters and looks fully determine the captures."""
    setups, params = _virtual_setups(contents, images, contract, raw), raw.virtual
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
    return [row for record in records for row in record["rows"]]


def _replaced(captures: Sequence[tuple[Capture, str]], manifest: Path) -> list[str]:
    """Return a remark for each name under which the raw folder has had another picture so far."""
    if not manifest.exists():
        return []
    known: dict[str, str] = {}
    for before in iterate_manifest(manifest, ("capture", "source", "sha256")):
        camera = before[before["source"] == CAMERA]
        known |= dict(zip(camera["capture"], camera["sha256"], strict=True))
    return [
        f"{capture.file}: another picture than so far under this name; it counts as a new capture"
        for capture, sha256 in captures
        if known.get(capture.file, sha256) != sha256
    ]


def _split(
    contents: Sequence[tuple[Capture, str]], copies: Sequence[dict], split_record: Path, params: RawParams
) -> tuple[dict[str, str], list[str]]:
    """Return the split of each capture by its sha256, after writing the record, and remarks."""
    rule = splits.SplitRule.of(params)
    candidates = [
        splits.Candidate(
            capture.file,
            sha256,
            copy["perceptual_hash"],
            is_reference=capture.role == REFERENCE,
            label=" ".join(getattr(capture, field) for field in VERDICT),
        )
        for (capture, sha256), copy in zip(contents, copies, strict=True)
    ]
    split_of, remarks = splits.assign_splits(candidates, rule, splits.read_splits(split_record, rule))
    splits.write_splits(split_record, split_of.items(), rule)
    return split_of, remarks


def _named(capture: Capture) -> dict[str, str]:
    """Return the columns of a labeled capture; `capture` is its name, since `file` is the file of the raw folder."""
    row = capture.row()
    return {"capture": row.pop("file")} | row


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


def _crosstab(counted: Mapping[tuple[str, ...], int]) -> pd.DataFrame:
    """Return the number of captures by source, shape, role (rows) and split (columns)."""
    table = pd.DataFrame([(*key, count) for key, count in sorted(counted.items())], columns=[*_COUNTED, "captures"])
    return table.set_index(list(_COUNTED))["captures"].unstack("split", fill_value=0)


def _image_file(sha256: str, suffix: str) -> str:
    return f"images/{sha256[:2]}/{sha256[:20]}{suffix}"


def _write_image(folder: Path, sha256: str, suffix: str, content: bytes) -> str:
    file = _image_file(sha256, suffix)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    return file
