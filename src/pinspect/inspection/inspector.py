"""From photographs to answers, as production asks: laid over the unit space, drawn as composites, asked zero-shot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, rank_references
from pinspect.composites.drawing import stacked
from pinspect.composites.views import Style, draw_view
from pinspect.core import prompts
from pinspect.core.answers import FIELDS, VIEWS
from pinspect.core.errors import AlignmentError, PinspectError, StageInputError
from pinspect.core.images import decode_image, to_gray
from pinspect.core.names import EYES, eye_of
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params
from pinspect.core.prompts import PromptKind
from pinspect.core.question import Question, preferred_source
from pinspect.inspection.line_facts import LINE_FACTS, facts_of_evened
from pinspect.model.families import composite_cell
from pinspect.nsoartc.aligned import AlignedCapture, align_to_best
from pinspect.nsoartc.unit_space import UnitSpace

SCORES = ("p_defective", "threshold", "address_entropy", "address_probabilities")


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
    """A photograph and the unit space that it fits.

    Attributes:
        image: The photograph, uint8 (H, W, 3), RGB.
        aspect: The name of the unit space: its shape, and its eye where the line has two (`CYLN`, or `CYLN-left`).
        capture: The photograph in gray, aligned to the unit space.
    """

    image: np.ndarray
    aspect: str
    capture: AlignedCapture


@dataclass(frozen=True)
class Prepared:
    """A capture that is ready for the model. row: as the chat dataset has it, without an expected answer. pictures: its
    composites, the bytes of JPEG files, by the names that the row gives them. facts: its `LINE_FACTS`."""

    name: str
    row: dict
    pictures: Mapping[str, bytes]
    facts: Mapping[str, float]


def pack_line(root: Path, shapes: Sequence[str], out: Path) -> None:
    """Gather what production needs of a line: for each shape, and each eye where there are two, its unit space and the
    reference to compare with.

    Both are the camera's where it has references of the shape, else those of the virtual line. Raises StageInputError
    when a shape has neither.
    """
    references = rank_references(
        read_manifest(root / "data/raw/manifest.csv", RAW_COLUMNS),
        read_manifest(root / "data/dst/manifest.csv", DST_COLUMNS),
    )
    out.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        lines = [line for line in references if line.shape == shape]
        if not lines:
            raise StageInputError(
                f"data/dst: no unit space of shape {shape}; add references of it, or take it from answers.shapes"
            )
        source = preferred_source({line.source for line in lines})
        for line in (line for line in lines if line.source == source):
            reference = root / "data/raw" / references[line][0].file
            shutil.copyfile(root / "data/dst" / line.unit_space, out / f"{line.aspect}.npz")
            shutil.copyfile(reference, out / f"{line.aspect}-reference{reference.suffix}")


class CaptureInspector:
    """Inspects photographs of one line.

    inspector: a loaded model (`pinspect.model.loading`). line: a folder that `pack_line` made. threshold: P(defective)
    at and above it is defective. Raises StageInputError or UnitSpaceError when the folder lacks a shape.
    """

    def __init__(self, inspector, line: Path, params: Params, threshold: float):
        self._inspector = inspector
        self._params = params
        self._threshold = threshold
        self._contract = params.contract()
        self._layout = self._contract.layout
        self._style = Style.of(params, composite_cell(params))
        aspects = [aspect for shape in self._contract.shapes for aspect in _aspects(line, shape)]
        self._unit_spaces = {aspect: UnitSpace.load(line / f"{aspect}.npz") for aspect in aspects}
        self._references = {aspect: self._own_reference(line, aspect) for aspect in aspects}
        self._drawn = {aspect: self._composite(seen) for aspect, seen in self._references.items()}

    def inspect(self, tasks: Sequence[Task]) -> list[dict]:
        """One record per task, in order: file, `answers.FIELDS`, answer, `SCORES`, `LINE_FACTS` and error.

        The scores, see `model.generate.GeneratedAnswer`: p_defective; the threshold that it was compared with;
        address_probabilities, a list with one a pin, row by row from the top left, and address_entropy in bits: of the
        place of the defect if there is one, so a passed capture has them too. `error` is None, or the reason why this
        capture could not be inspected; the other values are then None.
        """
        ready: dict[int, Prepared] = {}
        records: dict[int, dict] = {}
        for number, task in enumerate(tasks):
            try:
                ready[number] = self.prepare(task)
            except PinspectError as error:
                records[number] = empty_record(task.inspected.name) | {"error": str(error)}
        records |= dict(zip(ready, self.answer(list(ready.values())), strict=True))
        return [records[number] for number in range(len(tasks))]

    def prepare(self, task: Task) -> Prepared:
        """The part of an inspection that needs no model: the capture laid over the line, measured and drawn.

        Safe to be called by several threads at once, also while `answer` is at work. Raises AlignmentError or
        ImageError.
        """
        inspected = self.see(task.inspected, task.shape)
        reference = self._drawn[inspected.aspect]
        if task.reference and self._params.evaluate.kind != PromptKind.ONE_IMAGE:
            reference = self._composite(self._lay(task.reference, [inspected.aspect]))
        return self._prepared(task.inspected.name, inspected, reference)

    def answer(self, prepared: Sequence[Prepared]) -> list[dict]:
        """The records, as `inspect` gives them, of captures that this inspector has prepared; they share forward
        passes, `evaluate.batch_size` of them at most."""
        with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
            rows = [_written(one, number, Path(folder)) for number, one in enumerate(prepared)]
            answers = self._answer(rows, Path(folder)) if rows else []
        return [self._told(one, answer) for one, answer in zip(prepared, answers, strict=True)]

    def pictures(self, photograph: Photograph, shape: str | None = None) -> dict[str, bytes]:
        """Both views of a photograph as the model gets to see them: `RAW` and `DST`, each the JPEG of its single
        composite. Raises AlignmentError or ImageError."""
        seen = self.see(photograph, shape)
        return {view: self._style.encode(self._composite(seen, view)) for view in VIEWS}

    def try_out(self) -> None:
        """Inspect the line's own references: what is broken raises here, before anything relies on this inspector, and
        what is done once a model is done then."""
        self.answer([self._prepared(aspect, seen, self._drawn[aspect]) for aspect, seen in self._references.items()])

    def see(self, photograph: Photograph, shape: str | None = None) -> Seen:
        """The photograph laid over `shape`, or the shape that it fits best, by its own eye where the line has two.

        Raises AlignmentError or ImageError.
        """
        shapes = {aspect: unit_space.shape for aspect, unit_space in self._unit_spaces.items()}
        if shape is not None and shape not in shapes.values():
            found = list(dict.fromkeys(shapes.values()))
            raise AlignmentError(f"{photograph.name}: expected a shape of {found}, found {shape!r}")
        aspects = [aspect for aspect, its_shape in shapes.items() if shape in (None, its_shape)]
        eye = eye_of(Path(photograph.name).name)
        return self._lay(photograph, [aspect for aspect in aspects if aspect.endswith(f"-{eye}")] or aspects)

    def _prepared(self, name: str, inspected: Seen, reference: np.ndarray) -> Prepared:
        """reference: its composite."""
        view, kind = self._params.evaluate.view, PromptKind(self._params.evaluate.kind)
        shown = {"inspected": self._composite(inspected)}
        if kind is not PromptKind.ONE_IMAGE:
            shown = {"reference": reference} | shown
        if kind is PromptKind.STACKED:
            shown = {"stacked": stacked(*shown.values())}
        messages = {
            PromptKind.TWO_IMAGE: prompts.two_image,
            PromptKind.ONE_IMAGE: prompts.one_image,
            PromptKind.STACKED: prompts.stacked,
        }[kind](view)
        row = {"images": list(shown), "messages": messages, "answer_kind": prompts.answer_kind_of(kind)}
        pictures = {picture: self._style.encode(drawn) for picture, drawn in shown.items()}
        facts = facts_of_evened(inspected.capture.gray, inspected.capture.evened, inspected.capture.unit_space)
        return Prepared(name, row, pictures, facts)

    def _answer(self, rows: list[dict], folder: Path) -> list:
        from pinspect.model.generation import answer_rows

        asked = self._params.evaluate
        return answer_rows(
            self._inspector,
            rows,
            folder,
            self._contract,
            batch_size=asked.batch_size,
            constrained=Question.of(asked).constrained,
            threshold=self._threshold,
        )

    def _told(self, prepared: Prepared, answer) -> dict:
        scores = {name: getattr(answer, name) for name in SCORES}
        if answer.address_probabilities is not None:
            scores["address_probabilities"] = list(answer.address_probabilities)
        record = empty_record(prepared.name) | {"answer": answer.text} | scores | prepared.facts
        try:
            kind = prompts.answer_kind_of(self._params.evaluate.kind)
            return record | self._contract.parse(answer.text, kind).values()
        except PinspectError as error:
            return record | {"error": f"the answer breaks the contract: {error}"}

    def _lay(self, photograph: Photograph, aspects: Sequence[str]) -> Seen:
        """The photograph laid over the one of `aspects` that it fits best. Raises AlignmentError or ImageError."""
        image = decode_image(photograph.content, photograph.name, self._params.raw.max_pixels)
        unit_spaces = {aspect: self._unit_spaces[aspect] for aspect in aspects}
        try:
            aspect, capture = align_to_best(to_gray(image), unit_spaces, self._params.dst.maximum_shift)
        except AlignmentError as error:
            raise AlignmentError(f"{photograph.name}: {error}") from None
        return Seen(np.asarray(image), aspect, capture)

    def _composite(self, seen: Seen, view: str = "") -> np.ndarray:
        """The single composite of a view; without one, of the view that is asked about."""
        return draw_view(view or self._params.evaluate.view, seen.image, seen.capture, self._style)

    def _own_reference(self, line: Path, aspect: str) -> Seen:
        found = sorted(line.glob(f"{aspect}-reference.*"))
        if not found:
            raise StageInputError(f"{line}: no reference of shape {aspect}; register the adapter again")
        return self._lay(Photograph(found[0].name, found[0].read_bytes()), [aspect])

    def pin_corners(self, seen: Seen, address: str) -> np.ndarray:
        """Where the cell of the pin at `address` (such as `X:3, Y:U`) lies in a photograph: float64 (4, 2), x and y in
        px of its corners, clockwise from the pin's top left, pixel centres at whole numbers. Raises ValueError where
        the layout has no such pin."""
        pin = self._layout.index(self._layout.address(address))
        row, column = divmod(pin, self._layout.columns)
        x0, y0, x1, y1 = self._unit_spaces[seen.aspect].cell_box
        width, height = (x1 - x0) / self._layout.columns, (y1 - y0) / len(self._layout.rows)
        corners = np.array([(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)], np.float64)
        in_unit_space = corners * (width, height) + (x0 - 0.5, y0 - 0.5)
        matrix = seen.capture.alignment.matrix.astype(np.float64)  # from the photograph to the unit space
        return np.linalg.solve(matrix[:, :2], (in_unit_space - matrix[:, 2]).T).T


def _written(prepared: Prepared, number: int, folder: Path) -> dict:
    """The row of a prepared capture, its composites written to `folder`."""
    names = [f"{number}-{name}.jpg" for name in prepared.row["images"]]
    for name, content in zip(names, prepared.pictures.values(), strict=True):
        (folder / name).write_bytes(content)
    return prepared.row | {"id": str(number), "images": names}


def _aspects(line: Path, shape: str) -> list[str]:
    """The aspects of a shape that a packed line has: one, or one for each eye."""
    aspects = [shape, *(f"{shape}-{eye}" for eye in EYES)]
    return [aspect for aspect in aspects if (line / f"{aspect}.npz").is_file()] or [shape]


def empty_record(file: str) -> dict:
    """The record of a capture of which nothing is known yet."""
    return {"file": file, **dict.fromkeys((*FIELDS, "answer", *SCORES, *LINE_FACTS, "error"))}
