"""The raw folder: every capture checked and copied, its split decided, and the virtual line beside it.

images/<2 hex>/<20 hex>.<suffix>   the original bytes, named after their sha256
manifest.csv                       one row a capture: label, provenance and split
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pinspect.captures import labels as labelled
from pinspect.captures import splits
from pinspect.captures.incremental import IncrementalFolder, Item, Product
from pinspect.captures.labels import FIELD_BOX, PIN_BOX, REFERENCE, Capture
from pinspect.captures.references import RAW_COLUMNS
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import CaptureError, ImageError, ParamsError
from pinspect.core.images import read_image
from pinspect.core.manifests import MANIFEST
from pinspect.core.params import RawParams, VirtualParams
from pinspect.virtual_line import VirtualCapture, render_line

CAMERA = "camera"
VIRTUAL = "virtual"
COLUMNS = (*RAW_COLUMNS, *FIELD_BOX, *PIN_BOX)


@dataclass(frozen=True)
class RawReport:
    """What the raw stage has to tell: how many captures of each source and split, what was made anew, and remarks."""

    counts: pd.DataFrame
    made: int
    remarks: tuple[str, ...]


def build_raw(captures: Path, out: Path, split_record: Path, contract: AnswerContract, params: RawParams) -> RawReport:
    """Make the raw folder `out` from the captures' folder and the virtual line.

    `split_record` holds the splits decided so far; new ones are added to it. Raises CaptureError with a line for each
    capture that cannot be used, and ParamsError where the virtual line cannot draw what it should; `out` and the
    record are then as they were.
    """
    labels = labelled.read_captures(captures, contract)
    images = labelled.images_folder(captures)
    contents = [(capture, labelled.content_hash(images / capture.file)) for capture in labels.captures]
    problems = [*labels.problems, *labelled.conflicting_labels(contents)]
    distinct, remarks = _distinct(contents)
    folder = IncrementalFolder(out)
    with folder:
        copies = _copy_images(folder, distinct, images, params)
        problems += [
            f"{images / capture.file}: {copy['error']}"
            for (capture, _), copy in zip(distinct, copies, strict=True)
            if "error" in copy
        ]
        if problems:
            raise CaptureError("\n".join(problems))
        virtual = _render_virtual_line(folder, contract, params.virtual)
        if not distinct and not virtual:
            raise CaptureError(f"{captures}: no captures, and raw.virtual asks for none; run `pinspect add DIR`")
        split_of, more_remarks = _split(distinct, copies, split_record, params)
        camera = [
            {"file": copy["file"], "sha256": sha256, "source": CAMERA, "split": split_of[sha256]} | _named(capture)
            for (capture, sha256), copy in zip(distinct, copies, strict=True)
        ]
        manifest = pd.DataFrame([*camera, *(row for row in virtual if row["sha256"] not in split_of)], columns=COLUMNS)
        manifest = manifest.sort_values(["source", "capture"], ignore_index=True)
        manifest.to_csv(folder.new_file(MANIFEST), index=False, encoding="utf-8", lineterminator="\n")
    counts = manifest.groupby(["source", "shape", "role", "split"]).size().unstack("split", fill_value=0)
    return RawReport(counts, len(folder.made), (*remarks, *more_remarks))


def copy_image(payload: tuple[str, str, int], folder: Path) -> Product:
    """Copy one image (path, sha256, most pixels allowed) once it is decoded. The record tells its file and perceptual
    hash, or as `error` why it cannot be read (without the path: the same content may come by another name)."""
    path, sha256, max_pixels = payload
    try:
        image = read_image(Path(path), max_pixels)
    except ImageError as error:
        return Product((), {"error": str(error).removeprefix(f"{path}: ")})
    file = _write_image(folder, sha256, Path(path).suffix.lower(), Path(path).read_bytes())
    return Product((file,), {"file": file, "perceptual_hash": splits.perceptual_hash(image)})


def render_virtual_line(payload: tuple[AnswerContract, VirtualParams, str], folder: Path) -> Product:
    """Render the captures of one split of the virtual line; the record holds their rows of the manifest."""
    contract, params, split = payload
    rows = []
    for capture in render_line(contract.layout, contract.shapes, contract.defect_modes, params):
        if capture.split == split:
            sha256 = hashlib.sha256(capture.jpeg).hexdigest()
            file = _write_image(folder, sha256, ".jpg", capture.jpeg)
            rows.append({"file": file, "sha256": sha256, "source": VIRTUAL, "split": split} | _virtual(capture))
    return Product(tuple(row["file"] for row in rows), {"rows": rows})


def _distinct(contents: Sequence[tuple[Capture, str]]) -> tuple[list[tuple[Capture, str]], list[str]]:
    """Each content once, under the name that came first."""
    first: dict[str, Capture] = {}
    remarks = [
        f"{capture.file}: the same picture as {other.file}, left out"
        for capture, sha256 in contents
        if (other := first.setdefault(sha256, capture)) is not capture
    ]
    return [(capture, sha256) for sha256, capture in first.items()], remarks


def _copy_images(
    folder: IncrementalFolder, contents: Sequence[tuple[Capture, str]], images: Path, params: RawParams
) -> list[dict]:
    items = [
        Item(sha256, (Path(capture.file).suffix.lower(),), (str(images / capture.file), sha256, params.max_pixels))
        for capture, sha256 in contents
    ]
    return folder.map(copy_image, items, params=params.max_pixels, title="captures")


def _render_virtual_line(folder: IncrementalFolder, contract: AnswerContract, params: VirtualParams) -> list[dict]:
    """The rows of the virtual line. It is seeded throughout, so that its parameters stand for what it makes."""
    wanted = {split: getattr(params, split) for split in splits.SPLITS}
    # The references belong to the training captures, which are there as soon as there is anything.
    parts = {
        split: params.model_copy(update=dict.fromkeys(wanted, 0) | {split: count})
        for split, count in wanted.items()
        if count or (split == splits.TRAIN and any(wanted.values()))
    }
    items = [
        Item(f"virtual line, {split}", (repr(contract), part.model_dump_json()), (contract, part, split))
        for split, part in parts.items()
    ]
    try:
        parts_done = folder.map(render_virtual_line, items, params=None, title="virtual line", batch_size=1)
    except ValueError as error:
        raise ParamsError(f"params.yaml: raw.virtual: {error}") from None
    return [row for part in parts_done for row in part["rows"]]


def _split(
    contents: Sequence[tuple[Capture, str]], copies: Sequence[dict], split_record: Path, params: RawParams
) -> tuple[dict[str, str], list[str]]:
    """The split of each capture by its sha256, written down at once, and remarks."""
    rule = splits.SplitRule(params.split_salt, params.validation_share, params.test_share, params.near_duplicate_bits)
    candidates = [
        splits.Candidate(capture.file, sha256, copy["perceptual_hash"], capture.role == REFERENCE)
        for (capture, sha256), copy in zip(contents, copies, strict=True)
    ]
    split_of, remarks = splits.assign_splits(candidates, rule, splits.read_splits(split_record, rule))
    splits.write_splits(split_record, split_of.items(), rule)
    return split_of, remarks


def _named(capture: Capture) -> dict[str, str]:
    """The label of a capture as the manifest names it: `file` there is the file of the raw folder."""
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


def _write_image(folder: Path, sha256: str, suffix: str, content: bytes) -> str:
    file = f"images/{sha256[:2]}/{sha256[:20]}{suffix}"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    return file
