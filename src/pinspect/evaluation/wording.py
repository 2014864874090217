"""The sentences and tables in which controls, evidence maps and answer checks are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import pandas as pd

from pinspect.core.layout import Layout
from pinspect.core.statistics import wilson
from pinspect.examination.results import TOLERATED_LOSS, Check, ControlResult, Evidence

_EXAMPLES = 3  # unexpected values that the report shows of a rule
_LONGEST_VALUES = 120  # characters
_ROW = ("line", "capture")  # they name a row of the chat dataset


@dataclass(frozen=True)
class ControlText:
    """What a reader has to know about a control.

    Attributes:
        title: Its name.
        change: What is changed.
        expected: What a model that looks answers, and the bound that follows.
    """

    title: str
    change: str
    expected: str


_IN_100 = f"{100 * (1 - TOLERATED_LOSS):.0f} in 100"
_TRAINED = "The adapter was trained on such rows of the train split."
CONTROLS = {
    "blank": ControlText(
        "Blank capture",
        "The pin field of the inspected image is one gray, as bright as the capture was on average.",
        "No blank picture is judged passed, because it shows no pin that could pass. The label's address is named no "
        f"more often than chance allows, because the picture shows nothing of the defect. {_TRAINED}",
    ),
    "swapped": ControlText(
        "Reference and capture swapped",
        "The capture stands in the place of the passed reference, and the reference is inspected.",
        f"Two passed pictures stay passed in either order. Of the defective captures, {_IN_100} pairs are judged "
        "passed, because the inspected picture is now a passed one. The label's whole answer for such a pair would "
        f"mean that the model sees a difference but not which picture shows it. {_TRAINED}",
    ),
    "other_shape": ControlText(
        "Reference of another shape",
        "The capture is compared with a passed reference of another pin shape.",
        "The image type is that of the inspected capture, and the judgement is the same as beside the right reference, "
        f"each for {_IN_100} of the answers that were right before. The number of changed answers shows how much "
        f"weight the reference has. {_TRAINED}",
    ),
    "shuffled_letters": ControlText(
        "Letters of the grid shuffled",
        "The digits and letters of the address grid are permuted, in all images alike; no pixel of a pin changes.",
        f"The judgement is about pins and stays the same for {_IN_100}. An address is a place on the token grid, not "
        f"the mark beside it: {_IN_100} of the pins that were located before are named by their place. {_TRAINED}",
    ),
    "lighting": ControlText(
        "Other light",
        "The capture alone is relit, since its reference was taken when the line was set up: with 0.7 of the light (a "
        "lamp at the end of its rated life), with 1 / 0.7 of it (a new lamp), with a fall to 0.7 towards the left, and "
        "with the tone curve of another camera.",
        f"Light moves no pin: in each light, {_IN_100} of the right answers stay right. The adapter was trained on "
        "photographs made brighter and darker as a whole (train.light_jitter), not on the other two lights.",
    ),
}

SIMPLE_QUESTIONS = {
    "star": ControlText(
        "Where is the red star?",
        "A red star is drawn on one pin of a passed test capture.",
        f"The address of the star, for {_IN_100} pictures.",
    ),
    "grid": ControlText(
        "Which marks has the grid?",
        "The digits and letters of the address grid change places.",
        f"All marks in the order of the picture, for {_IN_100} pictures.",
    ),
}


def control_outcome(result: ControlResult, confidence: float) -> str:
    """Return the outcome of a control in words.

    Args:
        result: The control.
        confidence: Coverage of the intervals.
    """
    if result.reason:
        return f"not made: {result.reason}"
    return "; ".join(_count(check, confidence) for check in result.checks)


def checks_table(results: Mapping[str, Sequence[ControlResult]], confidence: float) -> pd.DataFrame:
    """Return the counts of all controls, one row per count.

    Args:
        results: View -> the controls.
        confidence: Coverage of Wilson's interval (low, high) of the share.
    """
    columns = ("view", "control", "check", "hits", "n", "share", "low", "high", "at_least", "bound", "held")
    rows = []
    for view, result in ((view, result) for view, each in results.items() for result in each):
        for check in result.checks:
            share = check.hits / check.n if check.n else None
            counts = (check.hits, check.n, share, *_interval(check, confidence))
            rows.append((view, result.name, check.name, *counts, check.at_least, check.bound, check.held))
    return pd.DataFrame(rows, columns=list(columns))


def evidence_summary(evidence: Evidence, layout: Layout, confidence: float) -> str:
    """Return the agreement of the evidence maps with the defective pins, in words; empty where nothing was measured.

    A hit is a maximum of the map inside the cell of the defective pin: the pointing game of Zhang et al. (Top-down
    neural attention by excitation backprop, IJCV 2018, doi:10.1007/s11263-017-1059-x). The mean share inside the cell
    is the energy-based pointing game of Wang et al. (Score-CAM, CVPR workshops 2020,
    doi:10.1109/CVPRW50498.2020.00020).

    Args:
        evidence: The maps and their tables.
        layout: Layout of the pins.
        confidence: Coverage of the interval.
    """
    if evidence.reason:
        return evidence.reason
    if evidence.table.empty:
        return ""
    if evidence.table["agreement"].isna().all():
        return "No answer to a defective capture names an address, so no map can be compared with a defective pin."
    cells = (len(layout.rows) + 1) * (layout.columns + 1)
    sentence = (
        f"While it writes the address, the model looks {_agreement(evidence.table, confidence)}. By chance it would be "
        f"1 capture in {layout.pins}, and 1 part of the attention in {cells}."
    )
    if evidence.base_table.empty:
        return sentence
    base = _agreement(evidence.base_table, confidence)
    return f"{sentence} The base without the adapter, which reads the same answers, looks {base}."


def checks_summary(checks: Mapping[str, Any] | None) -> str:
    """Return the result of answer checks (their JSON form) in one sentence; empty where there is none."""
    if checks is None:
        return ""
    kept = checks["rows"] - checks["failing_rows"]
    return f"{kept} of {checks['rows']} answers keep all {len(checks['expectations'])} rules"


def expectation_text(rule: Mapping[str, Any]) -> str:
    """Return the expectation behind a rule of the answer checks: its name, its columns, and the values it allows.

    Args:
        rule: One of the `expectations` of the checks' JSON form.
    """
    values = ", ".join(str(value) for value in rule["kwargs"].get("value_set", ()))
    parts = (rule["type"].replace("_", " "), ", ".join(_columns(rule)), shorten(values, _LONGEST_VALUES))
    return ": ".join(part for part in parts if part)


def unexpected_values(rule: Mapping[str, Any]) -> list[str]:
    """Return three examples of what a rule of the answer checks does not expect, each with its row.

    Args:
        rule: One of the `expectations` of the checks' JSON form.

    Returns:
        The examples, and the number of other rows; empty if the rule held.
    """
    examples = []
    for row in rule["failing_rows"][:_EXAMPLES]:
        values = ", ".join(f"{column} {shorten(repr(row[column]), _LONGEST_VALUES)}" for column in _columns(rule))
        place = ", ".join(str(row[name]) for name in _ROW if row.get(name)) or row["id"]
        examples.append(f"{values} ({place})")
    if len(rule["failing_rows"]) > _EXAMPLES:
        examples.append(f"and {len(rule['failing_rows']) - _EXAMPLES} more")
    if not examples and not rule["success"]:
        examples.append(f"found {rule.get('observed_value', 'nothing')}")
    return examples


def _columns(rule: Mapping[str, Any]) -> list[str]:
    return [rule["kwargs"][name] for name in ("column", "column_A", "column_B") if name in rule["kwargs"]]


def _count(check: Check, confidence: float) -> str:
    if not check.n:
        return f"{check.name}: nothing to count"
    low, high = _interval(check, confidence)
    limit = "" if check.bound is None else f"; at {'least' if check.at_least else 'most'} {check.bound} expected"
    return f"{check.name}: {check.hits} of {check.n} ({100 * low:.0f} to {100 * high:.0f} %{limit})"


def _interval(check: Check, confidence: float) -> tuple[float, float]:
    return wilson(check.hits, check.n, confidence) if check.n else (0.0, 1.0)


def _agreement(table: pd.DataFrame, confidence: float) -> str:
    located = table[table["agreement"].notna()]
    hits, n = int(located["hit"].astype(bool).sum()), len(located)
    low, high = wilson(hits, n, confidence)
    return (
        f"most at the defective pin for {hits} of {n} defective captures ({100 * low:.0f} to {100 * high:.0f} %), with "
        f"{100 * located['agreement'].mean():.0f} % of its attention to the picture inside the cell of that pin on "
        "average"
    )
