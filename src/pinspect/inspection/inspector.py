"""The only way from a photograph to an answer: align, draw composites, put production's question to the model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from pinspect.composites.drawing import stacked
from pinspect.composites.views import Style, draw_view
from pinspect.core import prompts
from pinspect.core.answers import DEFECTIVE, PASSED, VIEWS
from pinspect.core.errors import AlignmentError, AnswerFormatError, PinspectError, StageInputError
from pinspect.core.images import decode_image
from pinspect.core.names import EYES, eye_of
from pinspect.core.operating_point import LOCALIZER_THRESHOLD
from pinspect.core.params import Params
from pinspect.core.prompts import PromptKind
from pinspect.core.question import Question
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.inspection.photograph_inspector import PhotographInspector
from pinspect.inspection.records import (
    PIN_VALUES,
    SCORES,
    Inspection,
    Photograph,
    Prepared,
    Record,
    Seen,
    Task,
    empty_record,
    pin_map,
)
from pinspect.model.families import composite_cell
from pinspect.nsoartc.aligned import align_to_best
from pinspect.nsoartc.pin_evidence import EVIDENT, pin_evidence
from pinspect.nsoartc.unit_space import UnitSpace

if TYPE_CHECKING:
    from pinspect.model.generated_answer import GeneratedAnswer
    from pinspect.model.loading import Inspector
    from pinspect.model.memory import AnswerMemory

_THREADS = 2  # photographs that are prepared at once


@dataclass(frozen=True)
class _Drawing:
    """The composite of a reference, uint8 (H, W, 3), and its JPEG file."""

    composite: npt.NDArray[np.uint8]
    jpeg: bytes


@dataclass(frozen=True)
class _Capture:
    """A capture to inspect: aligned, and prepared for the model."""

    seen: Seen
    prepared: Prepared


class CaptureInspector(PhotographInspector):
    """Inspects in this process, with the code of this process."""

    def __init__(
        self,
        model: Inspector | None,
        line: Path,
        params: Params,
        threshold: float,
        *,
        localizer_threshold: float = LOCALIZER_THRESHOLD,
        version: str | None = None,
    ) -> None:
        """Load the unit spaces and references of a line.

        Args:
            model: The loaded model; None for an inspector that only aligns and draws.
            line: The folder of a packed line (see `pinspect.registry.package`).
            params: The parameters that the model was trained with.
            threshold: A capture is defective if P(defective) is at least this threshold, 0..1.
            localizer_threshold: The localizer calls a capture defective if its score is at least this threshold.
            version: Number of the registered version.

        Raises:
            StageInputError: The line has no reference of a shape.
            UnitSpaceError: The line has no unit space of a shape.
        """
        self.version = version
        self._model = model
        self._params = params
        self._threshold = threshold
        self._localizer_threshold = localizer_threshold
        self._memory: AnswerMemory | None = None  # imported with the model, not before
        self._contract = params.contract()
        self._layout = self._contract.layout
        self._kind = PromptKind(params.evaluate.kind)
        self._style = Style.of(params, composite_cell(params))
        aspects = [aspect for shape in self._contract.shapes for aspect in _aspects(line, shape)]
        self._unit_spaces = {aspect: UnitSpace.load(line / f"{aspect}.npz") for aspect in aspects}
        self._references = {aspect: self._line_reference(line, aspect) for aspect in aspects}
        self._references_drawn = {aspect: self._drawing(seen) for aspect, seen in self._references.items()}

    @property
    def max_pixels(self) -> int:
        """The largest photograph that is accepted, in px."""
        return self._params.raw.max_pixels

    def inspect_photograph(self, photograph: Photograph, shape: str | None = None) -> Inspection:
        """See `PhotographInspector`."""
        (inspection,) = self._inspect_seen([self._capture(Task(photograph, shape=shape))])
        if inspection.error:
            raise AnswerFormatError(f"{photograph.name}: {inspection.error}")
        return inspection

    def inspect_photographs(self, photographs: Sequence[Photograph], shape: str | None = None) -> list[Inspection]:
        """See `PhotographInspector`."""
        captures = self._captures([Task(photograph, shape=shape) for photograph in photographs])
        inspections = iter(self._inspect_seen([each for each in captures if isinstance(each, _Capture)]))
        return [
            next(inspections)
            if isinstance(capture, _Capture)
            else Inspection(photograph.name, model_version=self.version, error=str(capture))
            for photograph, capture in zip(photographs, captures, strict=True)
        ]

    def inspect(self, tasks: Sequence[Task]) -> list[Record]:
        """See `PhotographInspector`."""
        captures = self._captures(tasks)
        records = iter(self.answer([each.prepared for each in captures if isinstance(each, _Capture)]))
        return [
            next(records)
            if isinstance(capture, _Capture)
            else empty_record(task.inspected.name) | {"error": str(capture)}
            for task, capture in zip(tasks, captures, strict=True)
        ]

    def prepare(self, task: Task) -> Prepared:
        """See `PhotographInspector`."""
        return self._capture(task).prepared

    def answer(self, prepared: Sequence[Prepared]) -> list[Record]:
        """See `PhotographInspector`."""
        answers = self._answers(prepared)
        return [self._record(capture, answer) for capture, answer in zip(prepared, answers, strict=True)]

    def _captures(self, tasks: Sequence[Task]) -> list[_Capture | PinspectError]:
        """Prepare photographs, several at once; return the error of each that cannot be aligned."""

        def attempt(task: Task) -> _Capture | PinspectError:
            try:
                return self._capture(task)
            except PinspectError as error:
                return error

        if len(tasks) < 2:
            return [attempt(task) for task in tasks]
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(attempt, tasks))

    def _capture(self, task: Task) -> _Capture:
        seen = self.see(task.inspected, task.shape)
        reference = self._references_drawn[seen.aspect]
        if task.reference and self._kind is not PromptKind.ONE_IMAGE:
            reference = self._drawing(self._align(task.reference, [seen.aspect]))
        return _Capture(seen, self._prepared(task.inspected.name, seen, reference))

    def _answers(self, prepared: Sequence[Prepared]) -> list[GeneratedAnswer]:
        from pinspect.model.generation import answer_rows
        from pinspect.model.memory import AnswerMemory

        if not prepared:
            return []
        pictures: dict[str, bytes] = {}
        rows: list[Record] = []
        for number, capture in enumerate(prepared):
            names = [f"{number}-{name}" for name in capture.row["images"]]
            pictures |= zip(names, capture.pictures.values(), strict=True)
            rows.append(dict(capture.row) | {"id": str(number), "images": names})
        self._memory = self._memory or AnswerMemory()
        return answer_rows(
            cast("Inspector", self._model),
            rows,
            pictures,
            self._contract,
            batch_size=self._params.evaluate.batch_size,
            constrained=Question.of(self._params.evaluate).constrained,
            threshold=self._threshold,
            memory=self._memory,
        )

    def pictures(self, photograph: Photograph, shape: str | None = None) -> dict[str, bytes]:
        """See `PhotographInspector`."""
        seen = self.see(photograph, shape)
        return {view: self._style.encode(self._composite(seen, view)) for view in VIEWS}

    def try_out(self) -> None:
        """See `PhotographInspector`."""
        drawings = self._references_drawn
        self.answer([self._prepared(aspect, seen, drawings[aspect]) for aspect, seen in self._references.items()])

    def see(self, photograph: Photograph, shape: str | None = None) -> Seen:
        """Align a photograph to the unit space of its shape, and of its eye if the line has two.

        Args:
            photograph: The photograph.
            shape: Its pin shape; None for the shape that fits best.

        Returns:
            The photograph with its unit space.

        Raises:
            ImageError: The photograph cannot be read.
            AlignmentError: The line does not have the shape, or the photograph does not show it.
        """
        shapes = {aspect: unit_space.shape for aspect, unit_space in self._unit_spaces.items()}
        if shape is not None and shape not in shapes.values():
            known = list(dict.fromkeys(shapes.values()))
            raise AlignmentError(f"{photograph.name}: expected a shape of {known}, found {shape!r}")
        aspects = [aspect for aspect, known_shape in shapes.items() if shape in (None, known_shape)]
        eye = eye_of(Path(photograph.name).name)
        return self._align(photograph, [aspect for aspect in aspects if aspect.endswith(f"-{eye}")] or aspects)

    def locate_pin(self, photograph: Photograph, address: str, shape: str | None = None) -> npt.NDArray[np.float64]:
        """See `PhotographInspector`."""
        return self.pin_corners(self.see(photograph, shape), address)

    def pin_corners(self, seen: Seen, address: str) -> npt.NDArray[np.float64]:
        """Locate the cell of a pin in a photograph.

        Args:
            seen: The photograph.
            address: The pin, such as `X:3, Y:U`.

        Returns:
            float64 (4, 2): x and y of the corners in px, clockwise from the pin's top left. Pixel centers are at whole
            numbers.

        Raises:
            ValueError: The layout has no such pin.
        """
        pin = self._layout.index(self._layout.address(address))
        in_unit_space = self._unit_spaces[seen.aspect].cell_corners(pin)
        matrix = seen.capture.alignment.matrix.astype(np.float64)  # from the photograph to the unit space
        return np.linalg.solve(matrix[:, :2], (in_unit_space - matrix[:, 2]).T).T.astype(np.float64)

    def _inspect_seen(self, captures: Sequence[_Capture]) -> list[Inspection]:
        records = self.answer([capture.prepared for capture in captures])
        return [self._inspection(record, capture.seen) for record, capture in zip(records, captures, strict=True)]

    def _inspection(self, record: Record, seen: Seen) -> Inspection:
        values = {name: value for name, value in record.items() if name not in LINE_FACTS}
        values |= {name: tuple(record[name]) for name in PIN_VALUES if record[name] is not None}
        if record["judgement"] == DEFECTIVE:
            corners = self.pin_corners(seen, record["defect_position"])
            values["pin_box"] = tuple((float(x), float(y)) for x, y in corners)
        return Inspection(**values, model_version=self.version)

    def _prepared(self, name: str, seen: Seen, reference: _Drawing) -> Prepared:
        """Draw what the model sees, and measure what needs no model."""
        view, composite = self._params.evaluate.view, self._composite(seen)
        if self._kind is PromptKind.STACKED:
            pictures = {"stacked": self._style.encode(stacked(reference.composite, composite))}
        else:
            pictures = {"inspected": self._style.encode(composite)}
        if self._kind is PromptKind.TWO_IMAGE:
            pictures = {"reference": reference.jpeg} | pictures
        messages = {
            PromptKind.TWO_IMAGE: prompts.two_image,
            PromptKind.ONE_IMAGE: prompts.one_image,
            PromptKind.STACKED: prompts.stacked,
        }[self._kind](view)
        row = {"images": list(pictures), "messages": messages, "answer_kind": prompts.answer_kind_of(self._kind)}
        evidence = pin_evidence(seen.capture, self._localizer_threshold)
        return Prepared(name, row, pictures, facts=line_facts(seen.capture), pin_evidence=tuple(map(float, evidence)))

    def _record(self, prepared: Prepared, answer: GeneratedAnswer) -> Record:
        scores = {name: getattr(answer, name) for name in SCORES}
        if answer.address_probabilities is not None:
            scores["address_probabilities"] = list(answer.address_probabilities)
        record = empty_record(prepared.name) | {"answer": answer.text} | scores | dict(prepared.facts)
        evidence = np.array(prepared.pin_evidence)
        localized = str(self._layout.addresses[int(evidence.argmax())]) if evidence.max() >= EVIDENT else PASSED
        record["localizer_position"] = localized
        record["pin_map"] = pin_map(prepared.pin_evidence, answer.p_defective, answer.address_probabilities)
        try:
            values = self._contract.parse(answer.text, prompts.answer_kind_of(self._kind)).values()
            position = values["defect_position"] if values["judgement"] == DEFECTIVE else PASSED
            return record | values | {"localizer_disagrees": position != localized}
        except AnswerFormatError as error:
            return record | {"error": f"the answer breaks the contract: {error}"}

    def _align(self, photograph: Photograph, aspects: Sequence[str]) -> Seen:
        """Align a photograph to the one of `aspects` that it fits best."""
        image = np.asarray(decode_image(photograph.content, photograph.name, self._params.raw.max_pixels))
        unit_spaces = {aspect: self._unit_spaces[aspect] for aspect in aspects}
        try:
            aspect, capture = align_to_best(image, unit_spaces, self._params.dst.maximum_shift)
        except AlignmentError as error:
            raise AlignmentError(f"{photograph.name}: {error}") from None
        return Seen(image, aspect, capture)

    def _drawing(self, reference: Seen) -> _Drawing:
        composite = self._composite(reference)
        return _Drawing(composite, self._style.encode(composite))

    def _composite(self, seen: Seen, view: str = "") -> npt.NDArray[np.uint8]:
        """Draw the single composite of a view; without a view, of the view in production's question."""
        return draw_view(view or self._params.evaluate.view, seen.image, seen.capture, self._style)

    def _line_reference(self, line: Path, aspect: str) -> Seen:
        files = sorted(line.glob(f"{aspect}-reference.*"))
        if not files:
            raise StageInputError(f"{line}: no reference of shape {aspect}; register the adapter again")
        return self._align(Photograph(files[0].name, files[0].read_bytes()), [aspect])


def _aspects(line: Path, shape: str) -> list[str]:
    """Return the aspects of a shape in a packed line: the shape, or one per eye."""
    aspects = [shape, *(f"{shape}-{eye}" for eye in EYES)]
    return [aspect for aspect in aspects if (line / f"{aspect}.npz").is_file()] or [shape]
