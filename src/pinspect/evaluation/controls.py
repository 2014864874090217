"""Controls: changed prompts whose right answers are known beforehand, to catch a model that does not look.

Each control changes what zero-shot prompts of production show, and its rule says, from logic alone, what a model that
looks must then do. A rule is one or more counts, each with a bound. No bound was chosen by what a model answered.

* blank: the inspected pin field becomes uniform grey;
* swapped: reference and inspected capture change places;
* other_shape: the reference is one of another shape;
* shuffled_letters: the digits and letters of the address grid are permuted, on all images alike;
* lighting: the inspected photograph is taken under other light.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import binom

from pinspect.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.errors import AnswerFormatError
from pinspect.evaluation.metrics import wilson
from pinspect.evaluation.pictures import fields_of, read_picture
from pinspect.layout import Address, Layout
from pinspect.prompts import ZERO_SHOT, PromptKind

CONTROL_CAPTURES = 60  # at most, half of them defective: every control asks again about each

# Exact match of 0.93 is what a line is promised: 7 answers in 100 may be wrong. A change that touches no pin may cost
# as many again.
TOLERATED_LOSS = 0.07
# More than this is «mostly»: a model that answers mostly as if nothing had been changed has not seen the change.
HALF = 0.5
# An address that tells nothing is the right one as often as chance allows, up to this quantile of the binomial.
CHANCE_QUANTILE = 0.975

_GAMMA = 2.2  # of the captures' tone curve: light is proportional to (value / 255) ** 2.2
# LED lamps are rated by L70, the hours until 70 % of the light is left. A line is set up anywhere between the two ends
# of a lamp's life, so the light may fall to 0.7 of what the reference had, or rise to 1 / 0.7 with a new lamp.
_WORN = 0.7
# Another camera's tone curve: 2.2 (sRGB) where 1.8 (older cameras and displays) was.
_TONE = 2.2 / 1.8

Row = Mapping[str, object]
AnswerRows = Callable[[Sequence[Row], Path], Sequence[str]]


@dataclass(frozen=True)
class Check:
    """One count of a rule: `hits` of `n`, with the interval of their share, against `bound`.

    bound: how many hits a model that looks has at most, or at least where `at_least` is set. n is 0 where nothing could
    be counted; such a check says nothing.
    """

    name: str
    hits: int
    n: int
    bound: int
    low: float | None
    high: float | None
    at_least: bool = False

    @property
    def held(self) -> bool | None:
        """Whether the count keeps its bound; None where nothing was counted."""
        if not self.n:
            return None
        return self.hits >= self.bound if self.at_least else self.hits <= self.bound

    def __str__(self) -> str:
        if not self.n:
            return f"{self.name}: nothing to count"
        limit = f"at {'least' if self.at_least else 'most'} {self.bound}"
        return f"{self.name}: {self.hits} of {self.n} ({self.low:.0%} to {self.high:.0%}; {limit} expected)"


@dataclass(frozen=True)
class Control:
    """A control as it is put to the model: `rows` of the chat dataset's form with absolute image paths, and `originals`,
    the rows that they were made from, in the same order. `reason` says why a control without rows could not be made."""

    name: str
    rows: tuple[Row, ...] = ()
    originals: tuple[Row, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class ControlResult:
    """What came of a control.

    captures: how many were asked about. asked, expected, found: sentences for people. held: whether the rule was kept;
    None where the control could not be made, or nothing could be counted: `found` then says why. pictures: RGB uint8
    arrays, one prompt of the control in the order of its images.
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

    rows: of a chat dataset's split; the camera's zero-shot rows of `view` and `kind` are used, else the virtual line's.
    images: the folder of their images. answer: gives the model's answers to rows, their images relative to a folder; it
    is called once, while the pictures of the controls exist. plain: row id -> the model's answer to the unchanged row.
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


def control_rows(rows: Sequence[Row], contract: AnswerContract, view: str, kind: str) -> list[Row]:
    """The rows that controls are made from: zero-shot ones of `view` and `kind`, of the camera or, where it has none, of
    the virtual line; at most `CONTROL_CAPTURES`, passed and defective ones in equal parts, chosen by content hash."""
    asked = [row for row in rows if (row["view"], row["kind"], row["shot"]) == (view, kind, ZERO_SHOT)]
    source = "camera" if any(row["source"] == "camera" for row in asked) else "virtual"
    ordered = sorted((row for row in asked if row["source"] == source), key=lambda row: _lot(row, "control"))
    judged = {judgement: [row for row in ordered if _label(row, contract).judgement == judgement] for judgement in _BOTH}
    half = CONTROL_CAPTURES // 2
    spare = {PASSED: half - len(judged[DEFECTIVE]), DEFECTIVE: half - len(judged[PASSED])}
    return [row for judgement in _BOTH for row in judged[judgement][: half + max(0, spare[judgement])]]


def make_controls(rows: Sequence[Row], images: Path, folder: Path, layout: Layout) -> list[Control]:
    """Every control of `rows`, its pictures written to `folder` without loss. Raises StageInputError for a missing image."""
    if not rows:
        return [Control(name, reason="no capture is asked about with production's prompt") for name in _RULES]
    makers = {
        "blank": _made_blank,
        "swapped": _made_swapped,
        "other_shape": _made_other_shape,
        "shuffled_letters": _made_shuffled,
        "lighting": _made_lighting,
    }
    return [make(_Workshop(name, rows, images, folder, layout)) for name, make in makers.items()]


def judge_control(
    control: Control, answers: Sequence[str], plain: Mapping[str, str], contract: AnswerContract, confidence: float
) -> ControlResult:
    """Hold the answers to a control's rows against its rule; `plain` as in `run_controls`."""
    title, asked, expected, rule = _RULES[control.name]
    if control.reason:
        return ControlResult(control.name, title, 0, asked, expected, f"not made: {control.reason}", None)
    cases = [
        _Case(row, _label(original, contract), _read(plain[original["id"]], row, contract), _read(text, row, contract))
        for row, original, text in zip(control.rows, control.originals, answers, strict=True)
    ]
    checks = [
        Check(name, hits, n, bound, *(wilson(hits, n, confidence) if n else (None, None)), at_least)
        for name, hits, n, bound, at_least in rule(cases, contract.layout)
    ]
    counted = [check.held for check in checks if check.n]
    shown = next((case.row for case in cases if case.label.judgement == DEFECTIVE), control.rows[0])
    return ControlResult(
        name=control.name,
        title=title,
        captures=len({row["file"] for row in control.rows}),
        asked=asked,
        expected=expected,
        found="; ".join(map(str, checks)),
        held=all(counted) if counted else None,
        checks=tuple(checks),
        pictures=tuple(read_picture(Path(name)) for name in shown["images"]),
    )


def controls_table(results: Sequence[ControlResult]) -> pd.DataFrame:
    """One row a control: control, asked, n (captures), expected, found, held."""
    return pd.DataFrame(
        [
            {
                "control": result.title,
                "asked": result.asked,
                "n": result.captures,
                "expected": result.expected,
                "found": result.found,
                "held": result.held,
            }
            for result in results
        ]
    )


def checks_table(results: Sequence[ControlResult]) -> pd.DataFrame:
    """One row a count: control, check, hits, n, share, low, high, at_least, bound, held."""
    return pd.DataFrame(
        [
            {
                "control": result.name,
                "check": check.name,
                "hits": check.hits,
                "n": check.n,
                "share": check.hits / check.n if check.n else None,
                "low": check.low,
                "high": check.high,
                "at_least": check.at_least,
                "bound": check.bound,
                "held": check.held,
            }
            for result in results
            for check in result.checks
        ],
        columns=["control", "check", "hits", "n", "share", "low", "high", "at_least", "bound", "held"],
    )
