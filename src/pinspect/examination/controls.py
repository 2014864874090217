"""Controls: changed prompts whose right answers are known beforehand, to catch a model that does not look.

Each rule says, from what the prompt asks and what its pictures show, what a model that looks must answer; it is one or
more counts, each with a bound that rests on logic and on nothing of the test split. The adapter trains on changed rows
of these kinds, of the train split (`train.counterexamples`), so the controls tell whether what they teach holds for
captures that it has never seen: an adapter that had not met such rows broke all rules but that of the light
(docs/LOG.md).

What no control shows is that the reference is needed: a model that judged the inspected picture by itself would keep
every rule. How many answers change beside a reference of another shape tells how much the reference weighs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom

from pinspect.core.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError
from pinspect.core.layout import Address, Layout
from pinspect.evaluation.metrics import wilson
from pinspect.examination.control_prompts import (
    LIGHTS,
    Control,
    Row,
    control_rows,
    labelled,
    make_controls,
    pictures_of,
)

# A line is promised an exact match of 0.93: 7 answers in 100 may be wrong. A change that leaves the right answer plain
# to see may cost as many again.
TOLERATED_LOSS = 0.07
# An address that tells nothing is the right one as often as chance has it, up to this quantile of the binomial.
CHANCE_QUANTILE = 0.975

AnswerRows = Callable[[Sequence[Row], Path], Sequence[str]]


@dataclass(frozen=True)
class Check:
    """One count: `hits` of `n`.

    bound: how many hits a model that looks has at most, or at least where `at_least` is set; None where the count is
    told for its own sake. n is 0 where there was nothing to count.
    """

    name: str
    hits: int
    n: int
    bound: int | None = None
    at_least: bool = False

    @property
    def held(self) -> bool | None:
        """Whether the count keeps its bound; None where it has none, or nothing was counted."""
        if not self.n or self.bound is None:
            return None
        return self.hits >= self.bound if self.at_least else self.hits <= self.bound

    def interval(self, confidence: float) -> tuple[float, float]:
        """Wilson's interval of the share of hits: 0 to 1 where nothing was counted."""
        return wilson(self.hits, self.n, confidence) if self.n else (0.0, 1.0)

    def told(self, confidence: float) -> str:
        """The count in words."""
        if not self.n:
            return f"{self.name}: nothing to count"
        low, high = self.interval(confidence)
        limit = "" if self.bound is None else f"; at {'least' if self.at_least else 'most'} {self.bound} expected"
        return f"{self.name}: {self.hits} of {self.n} ({100 * low:.0f} to {100 * high:.0f} %{limit})"


@dataclass(frozen=True)
class ControlResult:
    """What came of a control.

    captures: how many were asked about. asked, expected, found: sentences for people. held: whether all counts keep
    their bounds; None where the control could not be made, or nothing could be counted: `found` then says why.
    pictures: uint8 (H, W, 3) each, the images of one of its prompts.
    """

    name: str
    title: str
    captures: int
    asked: str
    expected: str
    found: str
    held: bool | None
    checks: tuple[Check, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()


def run_controls(
    rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    answer: AnswerRows,
    plain: Mapping[str, str],
    *,
    view: str,
    kind: str,
    confidence: float,
) -> list[ControlResult]:
    """Make, ask and judge every control.

    rows: of one split of the chat dataset; `control_rows` says which are used. images: the folder of their images.
    answer: gives the model's answers to rows whose images lie in a folder; it is called once, while the pictures of the
    controls exist. plain: row id -> the model's answer to the unchanged row. view, kind: what production asks with.
    Raises StageInputError when an image is missing.
    """
    chosen = control_rows(rows, contract, view, kind)
    with tempfile.TemporaryDirectory(prefix="pinspect-controls-") as folder:
        controls = make_controls(chosen, images, Path(folder), contract.layout)
        asked = [row for control in controls for row in control.rows]
        answers = iter(answer(asked, Path(folder)) if asked else [])
        return [
            judge_control(control, [next(answers) for _ in control.rows], plain, contract, confidence)
            for control in controls
        ]


def judge_control(
    control: Control, answers: Sequence[str], plain: Mapping[str, str], contract: AnswerContract, confidence: float
) -> ControlResult:
    """Hold the answers to a control's rows against its rule; `plain` as in `run_controls`."""
    about = _ABOUT[control.name]
    if control.reason:
        found = f"not made: {control.reason}"
        return ControlResult(control.name, about.title, 0, about.asked, about.expected, found, None)
    cases = [
        _Case(
            row=row,
            label=labelled(original, contract),
            plain=_read(plain[str(original["id"])], row, contract),
            found=_read(text, row, contract),
        )
        for row, original, text in zip(control.rows, control.originals, answers, strict=True)
    ]
    checks = tuple(about.rule(cases, contract.layout))
    verdicts = [check.held for check in checks if check.held is not None]
    shown = next((case.row for case in cases if case.label.judgement == DEFECTIVE), control.rows[0])
    return ControlResult(
        name=control.name,
        title=about.title,
        captures=len({row["file"] for row in control.rows}),
        asked=about.asked,
        expected=about.expected,
        found="; ".join(check.told(confidence) for check in checks),
        held=all(verdicts) if verdicts else None,
        checks=checks,
        pictures=tuple(pictures_of(shown)),
    )


def checks_table(results: Sequence[ControlResult], confidence: float) -> pd.DataFrame:
    """One row a count: control, check, hits, n, share, low, high (Wilson's interval), at_least, bound, held."""
    columns = ("control", "check", "hits", "n", "share", "low", "high", "at_least", "bound", "held")
    rows = []
    for result in results:
        for check in result.checks:
            share = check.hits / check.n if check.n else None
            counted = (check.hits, check.n, share, *check.interval(confidence))
            rows.append((result.name, check.name, *counted, check.at_least, check.bound, check.held))
    return pd.DataFrame(rows, columns=list(columns))


@dataclass(frozen=True)
class _Case:
    """One row of a control with the label of its capture, the model's answer to the unchanged row and the one to this;
    None for an answer that breaks the contract."""

    row: Row
    label: Answer
    plain: Answer | None
    found: Answer | None

    @property
    def defective(self) -> bool:
        return self.label.judgement == DEFECTIVE

    @property
    def well_judged(self) -> bool:
        """Whether the unchanged row was judged as labelled."""
        return self.plain is not None and self.plain.judgement == self.label.judgement

    def judged(self, judgement: str | None) -> bool:
        """Whether the changed row was judged so."""
        return self.found is not None and self.found.judgement == judgement

    def names_the_pin(self) -> bool:
        """Whether the changed row's answer tells the label's address."""
        return self.found is not None and self.found.defect_position == self.label.defect_position


def _blank_rule(cases: Sequence[_Case], layout: Layout) -> list[Check]:
    defective = [case for case in cases if case.defective]
    by_chance = int(binom.ppf(CHANCE_QUANTILE, len(defective), 1 / layout.pins)) if defective else 0
    return [
        # One blank that passes is a camera that fails unnoticed: no share of them is small enough.
        _count("judged passed", cases, lambda case: case.judged(PASSED), bound=0),
        _count("the label's address named", defective, _Case.names_the_pin, bound=by_chance),
    ]


def _swapped_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    stood = [case for case in cases if case.well_judged]
    passed = [case for case in stood if not case.defective]
    defective = [case for case in stood if case.defective]
    return [
        _most("passed pairs that stay passed", passed, lambda case: case.judged(PASSED)),
        _most("defective pairs judged passed", defective, lambda case: case.judged(PASSED)),
        _count("defective pairs with the label's whole answer", defective, lambda case: case.found == case.label),
    ]


def _other_shape_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    stood = [case for case in cases if case.well_judged]
    shaped = [case for case in cases if case.plain is not None and case.plain.shape == case.label.shape]
    return [
        _most(
            "image type of the inspected capture",
            shaped,
            lambda case: case.found is not None and case.found.shape == case.label.shape,
        ),
        _most("judged as beside its own reference", stood, lambda case: case.judged(case.label.judgement)),
        _count("answers changed", cases, lambda case: case.found != case.plain),
    ]


def _shuffled_rule(cases: Sequence[_Case], layout: Layout) -> list[Check]:
    answered = [case for case in cases if case.plain is not None]
    located = [case for case in answered if case.defective and case.plain.defect_position == case.label.defect_position]
    return [
        _most("judged as before", answered, lambda case: case.judged(case.plain.judgement)),
        _most("the defective pin named by its place", located, _Case.names_the_pin),
        _count(
            "the defective pin named by the letters now beside it",
            located,
            lambda case: case.found is not None and case.found.defect_position == _now_called(case, layout),
        ),
    ]


def _lighting_rule(cases: Sequence[_Case], _layout: Layout) -> list[Check]:
    right = [case for case in cases if case.plain == case.label]
    return [
        _most(
            f"right answers that stay right, {light}",
            [case for case in right if case.row["light"] == light],
            lambda case: case.found == case.label,
        )
        for light in LIGHTS
    ]


def _count(name: str, cases: Sequence[_Case], hit: Callable[[_Case], bool], *, bound: int | None = None) -> Check:
    return Check(name, sum(map(hit, cases)), len(cases), bound)


def _most(name: str, cases: Sequence[_Case], hit: Callable[[_Case], bool]) -> Check:
    """A count which only `TOLERATED_LOSS` of the cases may lack: whole captures, so that of a few one may."""
    bound = len(cases) - ceil(TOLERATED_LOSS * len(cases))
    return Check(name, sum(map(hit, cases)), len(cases), bound, at_least=True)


def _now_called(case: _Case, layout: Layout) -> Address:
    """What the shuffled letters call the defective pin."""
    place = case.label.defect_position
    letter = layout.rows[case.row["letters"][layout.rows.index(place.row)]]
    return Address(case.row["columns"][place.column - 1] + 1, letter)


def _read(text: str, row: Row, contract: AnswerContract) -> Answer | None:
    try:
        return contract.parse(text, AnswerKind(row["answer_kind"]))
    except AnswerFormatError:
        return None


@dataclass(frozen=True)
class _About:
    """What people read of a control, and its rule."""

    title: str
    asked: str
    expected: str
    rule: Callable[[Sequence[_Case], Layout], list[Check]]


_IN_100 = f"{100 * (1 - TOLERATED_LOSS):.0f} in 100"
_TRAINED = "The adapter has trained on such rows of the train split."

_ABOUT = {
    "blank": _About(
        "Blank capture",
        "The pin field of the inspected image is one grey, as bright as the capture was on average.",
        "None is judged passed, for there is no pin that could pass. The label's address is named no more often than "
        f"chance allows, for nothing of it is to be seen. {_TRAINED}",
        _blank_rule,
    ),
    "swapped": _About(
        "Reference and capture swapped",
        "The capture stands where the passed reference belongs, and the reference is to be inspected.",
        f"Two passed pictures stay passed in either order, and of the defective captures {_IN_100} pairs are judged "
        "passed: what is to be inspected is a passed picture now. The label's whole answer for such a pair would mean "
        f"that the model sees a difference and not whose it is. {_TRAINED}",
        _swapped_rule,
    ),
    "other_shape": _About(
        "Reference of another shape",
        "The capture is compared with a passed reference of another pin shape.",
        "The image type is that of the inspected capture, and its judgement is the one beside its own reference, each "
        f"for {_IN_100} of those that were right before. How many answers change tells how much the reference weighs. "
        f"{_TRAINED}",
        _other_shape_rule,
    ),
    "shuffled_letters": _About(
        "Letters of the grid shuffled",
        "The digits and letters of the address grid are permuted, alike on all images; no pixel of a pin changes.",
        f"The judgement is about pins and stays for {_IN_100}. An address is told by its place on the token grid, not "
        f"by the mark beside it: {_IN_100} of the pins that were located before are named by their place. {_TRAINED}",
        _shuffled_rule,
    ),
    "lighting": _About(
        "Other light",
        "The capture alone is relit, since its reference was taken when the line was set up: with 0.7 of the light (a "
        "lamp at the end of its rated life), with 1 / 0.7 of it (a new lamp), with a fall to 0.7 towards the left, and "
        "with the tone curve of another camera.",
        f"Light moves no pin: in each light {_IN_100} of the right answers stay right. The adapter has trained on "
        "photographs made brighter and darker as a whole (train.light_jitter), not on the other two.",
        _lighting_rule,
    ),
}
