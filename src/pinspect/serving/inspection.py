"""From photographs to answers, as production asks: laid over the unit space, drawn as composites, asked zero-shot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pinspect import prompts
from pinspect.answers import FIELDS
from pinspect.data.chat import DST_COLUMNS, RAW_COLUMNS, rank_references, read_manifest
from pinspect.errors import AlignmentError, PinspectError, StageInputError
from pinspect.imaging.alignment import Alignment, align, warp
from pinspect.imaging.composite import rectify, single, stacked
from pinspect.imaging.decode import decode_image, to_gray
from pinspect.imaging.dst_view import dst_view
from pinspect.imaging.unit_space import UnitSpace
from pinspect.params import Params
from pinspect.prompts import PromptKind


@dataclass(frozen=True)
class Photograph:
    """The bytes of an image file; `name` is what results and errors call it."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Task:
    """One capture to inspect. Without `reference` the line's own is taken, without `shape` the best-fitting one."""

    inspected: Photograph
    reference: Photograph | None = None
    shape: str | None = None


@dataclass(frozen=True)
class Seen:
    """A photograph laid over the unit space of a shape. image: uint8 (H, W, 3); gray: float32 (H, W)."""

    image: np.ndarray
    gray: np.ndarray
    shape: str
    alignment: Alignment


def pack_line(root: Path, shapes: Sequence[str], out: Path) -> None:
    """Gather what production needs of a line: for each shape its unit space and the reference to compare with.

    Both are the camera's where it has references of the shape, else those of the virtual line. Raises StageInputError
    when a shape has neither.
    """
    references = rank_references(
        read_manifest(root / "data/raw/manifest.csv", RAW_COLUMNS),
        read_manifest(root / "data/dst/manifest.csv", DST_COLUMNS),
    )
    out.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        lines = [(source, shape) for source in ("camera", "virtual") if references.get((source, shape))]
        if not lines:
            raise StageInputError(
                f"data/dst: no unit space of shape {shape}; add references of it, or take it from answers.shapes"
            )
        source, _ = lines[0]
        reference = root / "data/raw" / references[lines[0]][0].file
        shutil.copyfile(root / f"data/dst/unit_space/{source}-{shape}.npz", out / f"{shape}.npz")
        shutil.copyfile(reference, out / f"{shape}-reference{reference.suffix}")


class CaptureInspector:
    """Inspects photographs of one line.

    inspector: a loaded model (`pinspect.model.loading`). line: a folder that `pack_line` made. Raises StageInputError
    or UnitSpaceError when the folder lacks a shape.
    """

    def __init__(self, inspector, line: Path, params: Params):
        self._inspector = inspector
        self._params = params
        self._contract = params.contract()
        self._layout = self._contract.layout
        self._unit_spaces = {shape: UnitSpace.load(line / f"{shape}.npz") for shape in self._contract.shapes}
        self._references = {shape: self._own_reference(line, shape) for shape in self._contract.shapes}

    def inspect(self, tasks: Sequence[Task]) -> list[dict]:
        """One record per task, in order: file, `answers.FIELDS`, answer, p_defective and error.

        `error` is None, or the reason why this capture could not be inspected; the other values are then None.
        """
        with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
            rows: dict[int, dict] = {}
            errors: dict[int, str] = {}
            for number, task in enumerate(tasks):
                try:
                    rows[number] = self._row(task, number, Path(folder))
                except PinspectError as error:
                    errors[number] = str(error)
            answers = dict(zip(rows, self._answer(list(rows.values()), Path(folder)), strict=True))
        return [
            empty_record(task.inspected.name) | {"error": errors[number]}
            if number in errors
            else self._told(task, answers[number])
            for number, task in enumerate(tasks)
        ]

    def _answer(self, rows: list[dict], folder: Path) -> list:
        from pinspect.model.generate import answer_rows

        asked = self._params.evaluate
        constrained = asked.decodings[0] == "constrained"
        return answer_rows(
            self._inspector, rows, folder, self._contract, batch_size=asked.batch_size, constrained=constrained
        )

    def _told(self, task: Task, answer) -> dict:
        record = empty_record(task.inspected.name) | {"answer": answer.text, "p_defective": answer.p_defective}
        try:
            kind = prompts.answer_kind_of(self._params.evaluate.kind)
            return record | self._contract.parse(answer.text, kind).values()
        except PinspectError as error:
            return record | {"error": f"the answer breaks the contract: {error}"}

    def _row(self, task: Task, number: int, folder: Path) -> dict:
        """A row as the chat dataset has it, without an expected answer; its composites are written to `folder`."""
        view, kind = self._params.evaluate.view, PromptKind(self._params.evaluate.kind)
        inspected = self._see(task.inspected, task.shape)
        shown = {"inspected": self._composite(inspected, view)}
        if kind is not PromptKind.ONE_IMAGE:
            given = task.reference
            reference = self._see(given, inspected.shape) if given else self._references[inspected.shape]
            shown = {"reference": self._composite(reference, view)} | shown
        if kind is PromptKind.STACKED:
            shown = {"stacked": stacked(*shown.values())}
        names = [f"{number}-{name}.jpg" for name in shown]
        quality = self._params.composite.jpeg_quality
        for name, picture in zip(names, shown.values(), strict=True):
            # The model learnt from composites that had gone through JPEG, written just so.
            Image.fromarray(picture).save(folder / name, quality=quality, subsampling=0)
        messages = {
            PromptKind.TWO_IMAGE: prompts.two_image,
            PromptKind.ONE_IMAGE: prompts.one_image,
            PromptKind.STACKED: prompts.stacked,
        }[kind](view)
        return {"id": str(number), "images": names, "messages": messages, "answer_kind": prompts.answer_kind_of(kind)}

    def _see(self, photograph: Photograph, shape: str | None) -> Seen:
        """The photograph laid over `shape`, or the shape that it fits best. Raises AlignmentError or ImageError."""
        if shape is not None and shape not in self._unit_spaces:
            raise AlignmentError(f"{photograph.name}: expected a shape of {list(self._unit_spaces)}, found {shape!r}")
        image = decode_image(photograph.content, photograph.name, self._params.raw.max_pixels)
        gray = to_gray(image)
        seen, reasons = [], []
        for name in [shape] if shape else self._unit_spaces:
            try:
                place = align(gray, self._unit_spaces[name].mean, self._params.dst.maximum_shift)
                seen.append(Seen(np.asarray(image), gray, name, place))
            except AlignmentError as error:
                reasons.append(f"{name}: {error}")
        if not seen:
            raise AlignmentError(f"{photograph.name}: {'; '.join(reasons)}")
        return max(seen, key=lambda found: found.alignment.score)

    def _composite(self, seen: Seen, view: str) -> np.ndarray:
        unit_space, cell = self._unit_spaces[seen.shape], self._params.composite.cell
        if view == "RAW":
            field = rectify(seen.image, seen.alignment.matrix, unit_space.cell_box, self._layout, cell)
        else:
            picture = dst_view(warp(seen.gray, seen.alignment, unit_space.size), unit_space)
            field = rectify(picture, np.eye(2, 3), unit_space.cell_box, self._layout, cell)
        return single(field, self._layout, cell, grid=self._params.composite.grid)

    def _own_reference(self, line: Path, shape: str) -> Seen:
        found = sorted(line.glob(f"{shape}-reference.*"))
        if not found:
            raise StageInputError(f"{line}: no reference of shape {shape}; register the adapter again")
        return self._see(Photograph(found[0].name, found[0].read_bytes()), shape)


def empty_record(file: str) -> dict:
    """The record of a capture of which nothing is known yet."""
    return {"file": file, **dict.fromkeys(FIELDS), "answer": None, "p_defective": None, "error": None}
