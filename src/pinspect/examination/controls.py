"""Controls: changed prompts whose right answers are known beforehand, to catch a model that does not look.

The rule of each control turns into one or more counts. The bound of a count follows from logic, not from the test
split. The adapter trains on changed rows of these kinds, of the train split (`train.counterexamples`), so the controls
show whether the lesson holds for captures that the adapter has never seen. An adapter that had not met such rows broke
every rule except the rule of the light (docs/LOG.md).

No control shows that the model needs the reference: a model that judged the inspected picture alone would keep every
rule. How many answers change beside a reference of another shape shows how much weight the reference has.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import binom

from pinspect.core.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError
from pinspect.core.layout import Address, Layout
from pinspect.core.question import Question
from pinspect.core.rows import Row
from pinspect.examination.control_prompts import (
    LIGHTS,
    Control,
    Relit,
    control_rows,
    label_of,
    make_controls,
    pictures_of,
)
from pinspect.examination.results import TOLERATED_LOSS, Check, ControlResult

# An address without evidence is right as often as chance allows, up to this quantile of the binomial distribution.
CHANCE_QUANTILE = 0.975
_PICTURE_SIZE = 480  # px, the longer side of a control's picture in the report

AnswerRows = Callable[[Sequence[Row], Path], Sequence[str]]


def run_controls(
    rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    answer: AnswerRows,
    plain: Mapping[str, str],
    question: Question,
    relit: Relit | None = None,
) -> list[ControlResult]:
    """Make, ask and judge every control.

    Args:
        rows: Rows of one split of the chat dataset; `control_rows` selects from them.
        images: Folder of their images.
        contract: The answer contract.
        answer: Returns the model's answers to rows whose images lie in a folder. It is called once, while the pictures
            of the controls exist.
        plain: Row id -> the model's answer to the unchanged row.
        question: What production asks.
        relit: As in `make_controls`.

    Raises:
        StageInputError: An image is missing.
    """
    chosen = control_rows(rows, contract, question)
    with tempfile.TemporaryDirectory(prefix="pinspect-controls-") as folder:
        controls = make_controls(chosen, images, Path(folder), contract.layout, relit)
        changed = [row for control in controls for row in control.rows]
        answers = iter(answer(changed, Path(folder)) if changed else [])
        return [judge_control(control, [next(answers) for _ in control.rows], plain, contract) for control in controls]


def judge_control(
    control: Control, answers: Sequence[str], plain: Mapping[str, str], contract: AnswerContract
) -> ControlResult:
    """Count the answers to a control's rows by the control's rule.

    Args:
        control: The control, its pictures still in place.
        answers: The model's answers to `control.rows`.
        plain: Row id -> the model's answer to the unchanged row.
        contract: The answer contract.
    """
    if control.reason:
        return ControlResult(control.name, captures=0, reason=control.reason)
    cases = [
        _Case(
            row=row,
            label=label_of(original, contract),
            plain=_read(plain[str(original["id"])], row, contract),
            changed=_read(text, row, contract),
        )
        for row, original, text in zip(control.rows, control.originals, answers, strict=True)
    ]
    shown = next((case.row for case in cases if case.label.judgement == DEFECTIVE), control.rows[0])
    return ControlResult(
        name=control.name,
        captures=len({row["file"] for row in control.rows}),
        checks=tuple(_RULES[control.name](cases, contract.layout)),
        pictures=tuple(data_uri(picture) for picture in pictures_of(shown)),
    )


def data_uri(picture: np.ndarray) -> str:
    """Return uint8 RGB (H, W, 3) as the data URI of a small JPEG."""
    image = Image.fromarray(picture)
    image.thumbnail((_PICTURE_SIZE, _PICTURE_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class _Case:
    """One row of a control: the label of its capture, and the model's answers to the unchanged and to the changed row.

    An answer that breaks the contract is None.
    """

    row: Row
    label: Answer
    plain: Answer | None
    changed: Answer | None

    @property
    def defective(self) -> bool:
        return self.label.judgement == DEFECTIVE

    @property
    def located(self) -> bool:
        """Return whether the answer to the unchanged row names the label's defective pin."""
        return self.defective and self.plain is not None and self.plain.defect_position == self.label.defect_position

    @property
    def well_judged(self) -> bool:
        """Return whether the unchanged row was judged as labeled."""
        return self.plain is not None and self.plain.judgement == self.label.judgement

    def judged(self, judgement: str | None) -> bool:
        """Return whether the changed row got this judgement."""
        return self.changed is not None and self.changed.judgement == judgement

    def names_the_pin(self) -> bool:
        """Return whether the answer to the changed row names the label's address."""
        return self.changed is not None and self.changed.defect_position == self.label.defect_position


def _blank_rule(cases: Sequence[_Case], layout: Layout) -> list[Check]:
    defective = [case for case in cases if case.defective]
    by_chance = int(binom.ppf(CHANCE_QUANTILE, len(defective), 1 / layout.pins)) if defective else 0
    return [
        # One blank picture that passes is a camera failure that nobody notices, so not even one is tolerated.
        _count("judged passed", cases, lambda case: case.judged(PASSED), bound=0),
        _count("the label's address named", defective, _Case.names_the_pin, bound=by_chance),
    ]


def _swapped_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    judged_right = [case for case in cases if case.well_judged]
    passed = [case for case in judged_right if not case.defective]
    defective = [case for case in judged_right if case.defective]
    return [
        _most("passed pairs that stay passed", passed, lambda case: case.judged(PASSED)),
        _most("defective pairs judged passed", defective, lambda case: case.judged(PASSED)),
        _count("defective pairs with the label's whole answer", defective, lambda case: case.changed == case.label),
    ]


def _other_shape_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    judged_right = [case for case in cases if case.well_judged]
    shaped = [case for case in cases if case.plain is not None and case.plain.shape == case.label.shape]
    return [
        _most(
            "image type of the inspected capture",
            shaped,
            lambda case: case.changed is not None and case.changed.shape == case.label.shape,
        ),
        _most("judged as beside its own reference", judged_right, lambda case: case.judged(case.label.judgement)),
        _count("answers changed", cases, lambda case: case.changed != case.plain),
    ]


def _shuffled_rule(cases: Sequence[_Case], layout: Layout) -> list[Check]:
    answered = [case for case in cases if case.plain is not None]
    located = [case for case in cases if case.located]
    return [
        _most("judged as before", answered, lambda case: case.judged(case.plain and case.plain.judgement)),
        _most("the defective pin named by its place", located, _Case.names_the_pin),
        _count(
            "the defective pin named by the letters now beside it",
            located,
            lambda case: case.changed is not None and case.changed.defect_position == _now_called(case, layout),
        ),
    ]


def _lighting_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    right = [case for case in cases if case.plain == case.label]
    return [
        _most(
            f"right answers that stay right, {light}",
            [case for case in right if case.row["light"] == light],
            lambda case: case.changed == case.label,
        )
        for light in LIGHTS
    ]


def _count(name: str, cases: Sequence[_Case], hit: Callable[[_Case], bool], *, bound: int | None = None) -> Check:
    return Check(name, sum(map(hit, cases)), len(cases), bound)


def _most(name: str, cases: Sequence[_Case], hit: Callable[[_Case], bool]) -> Check:
    return at_least_most(name, [hit(case) for case in cases])


def at_least_most(name: str, hits: Sequence[bool]) -> Check:
    """Return a count that all cases but a share of `TOLERATED_LOSS`, rounded up to whole cases, have to reach."""
    bound = len(hits) - ceil(TOLERATED_LOSS * len(hits))
    return Check(name, sum(hits), len(hits), bound, at_least=True)


def _now_called(case: _Case, layout: Layout) -> Address | None:
    """Return the address that the shuffled marks give the defective pin; None for a passed capture."""
    place = case.label.defect_position
    if place is None:
        return None
    letter = layout.rows[case.row["letters"][layout.rows.index(place.row)]]
    return Address(case.row["columns"][place.column - 1] + 1, letter)


def _read(text: str, row: Row, contract: AnswerContract) -> Answer | None:
    try:
        return contract.parse(text, AnswerKind(row["answer_kind"]))
    except AnswerFormatError:
        return None


_RULES: dict[str, Callable[[Sequence[_Case], Layout], list[Check]]] = {
    "blank": _blank_rule,
    "swapped": _swapped_rule,
    "other_shape": _other_shape_rule,
    "shuffled_letters": _shuffled_rule,
    "lighting": _lighting_rule,
}
