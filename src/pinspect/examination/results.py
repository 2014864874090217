"""What stage `answer` learns about a model: predictions, controls and evidence maps, as files of `reports/predictions`.

Scoring and the report read nothing else of the model, so an evaluation can be scored again without asking the model.
The same answers make the same bytes: no file holds a time, a device or a commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from pinspect.core import predictions
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file
from pinspect.core.layout import Address, Layout

VALIDATION, TEST = "validation.csv", "test.csv"
CONTROLS, OTHER_CONTROLS = "controls.json", "other_controls.json"
EVIDENCE, SIMPLE = "evidence.json", "simple_questions.json"
ANSWER_CHECKS = "answer_checks.json"
EVIDENCE_COLUMNS = (
    *("id", "file", "defect_mode", "defect_position", "named_position", "brightest_position"),
    *("agreement", "hit", "looked"),
)
# A line is promised an exact match of 0.93: 7 answers in 100 may be wrong. A change that leaves the right answer
# visible may cost as many again.
TOLERATED_LOSS = 0.07
_PLACES = 6  # decimals of the evidence: far below what a reader or a score needs


@dataclass(frozen=True)
class Check:
    """One count of a control: `hits` of `n`.

    Attributes:
        name: What is counted.
        hits: How many of the cases are hits.
        n: Number of cases; 0 where there was nothing to count.
        bound: The most hits that a model which looks has, or the fewest if `at_least` is set. None for a count that is
            reported without a bound.
        at_least: Whether `bound` is a lower bound.
    """

    name: str
    hits: int
    n: int
    bound: int | None = None
    at_least: bool = False

    @property
    def held(self) -> bool | None:
        """Return whether the count keeps its bound; None where it has no bound, or nothing was counted."""
        if not self.n or self.bound is None:
            return None
        return self.hits >= self.bound if self.at_least else self.hits <= self.bound


@dataclass(frozen=True)
class ControlResult:
    """The outcome of one control.

    Attributes:
        name: Name of the control, such as `blank`.
        captures: Number of captures that the model was asked about.
        checks: The counts; none for a control that could not be made.
        reason: Why the control could not be made, else empty.
        pictures: The images of one of its prompts, as data URIs of JPEG files.
    """

    name: str
    captures: int
    checks: tuple[Check, ...] = ()
    reason: str = ""
    pictures: tuple[str, ...] = ()

    @property
    def held(self) -> bool | None:
        """Return whether all counts keep their bounds; None where no count has a verdict."""
        verdicts = [check.held for check in self.checks if check.held is not None]
        return all(verdicts) if verdicts else None


@dataclass(frozen=True)
class EvidenceMap:
    """Where the model looked while it wrote the address of one answer.

    Attributes:
        weights: float32 (token rows, token columns), sum 1: the attention to each visual token of the last picture of
            the prompt. The tokens cover the picture evenly from its top left, margins included.
        looked: Share of all attention that fell on the picture, 0..1.
        brightest: The pin whose cell got the most attention.
        named: The address in the answer.
        defect: The defective pin, or None for a passed capture.
        agreement: Share of the inspected composite's attention that lies in the cell of `defect`, 0..1; None where no
            pin is defective.
        hit: Whether `brightest` is `defect`; None where no pin is defective.
    """

    weights: np.ndarray
    looked: float
    brightest: Address
    named: Address
    defect: Address | None
    agreement: float | None
    hit: bool | None


@dataclass(frozen=True)
class Evidence:
    """Evidence maps and their agreement with the defective pins.

    Attributes:
        maps: Row id -> map, of the rows that the report shows.
        table: One line per map of production's prompt, columns `EVIDENCE_COLUMNS`.
        base_table: The same for the base without the adapter, which reads the same answers.
        reason: Why there are no maps, else empty.
    """

    maps: Mapping[str, EvidenceMap] = field(default_factory=dict)
    table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(EVIDENCE_COLUMNS)))
    base_table: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(EVIDENCE_COLUMNS)))
    reason: str = ""


@dataclass(frozen=True)
class Examination:
    """The content of `reports/predictions`.

    Attributes:
        validation: Predictions table of the validation rows, judged by the operating point.
        test: Predictions table of the test rows: the model's answers, then those of the baselines.
        controls: The outcome of each control, in the view that production asks about.
        other_controls: View -> the outcome of each control, for the other views of the chat dataset; without pictures.
        evidence: Where the model looked.
        answer_checks: Result of the answer checks on the model's test answers, as JSON; None where not measured.
        simple_questions: The outcome of each simple question, in the form of a control.
    """

    validation: pd.DataFrame
    test: pd.DataFrame
    controls: Sequence[ControlResult] = ()
    other_controls: Mapping[str, Sequence[ControlResult]] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    answer_checks: Mapping[str, object] | None = None
    simple_questions: Sequence[ControlResult] = ()


def write_examination(examination: Examination, folder: Path) -> None:
    """Write the files of `folder`, usually `reports/predictions`."""
    folder.mkdir(parents=True, exist_ok=True)
    predictions.write(examination.validation, folder / VALIDATION)
    predictions.write(examination.test, folder / TEST)
    _write_json([asdict(control) for control in examination.controls], folder / CONTROLS)
    others = {view: [asdict(control) for control in each] for view, each in examination.other_controls.items()}
    _write_json(others, folder / OTHER_CONTROLS)
    _write_json([asdict(question) for question in examination.simple_questions], folder / SIMPLE)
    evidence = examination.evidence
    content = {
        "reason": evidence.reason,
        "table": _records(evidence.table),
        "base_table": _records(evidence.base_table),
        "maps": {row_id: _map_to_json(evidence) for row_id, evidence in sorted(evidence.maps.items())},
    }
    _write_json(content, folder / EVIDENCE)
    if examination.answer_checks is not None:
        _write_json(examination.answer_checks, folder / ANSWER_CHECKS)


def read_examination(folder: Path, layout: Layout) -> Examination:
    """Read what `write_examination` wrote.

    Args:
        folder: Usually `reports/predictions`.
        layout: Layout of the pins that the evidence maps name.

    Raises:
        StageInputError: A file is missing or not readable.
    """
    evidence = _read_json(folder / EVIDENCE)
    return Examination(
        validation=predictions.read(folder / VALIDATION),
        test=predictions.read(folder / TEST),
        controls=_controls_from_json(_read_json(folder / CONTROLS)),
        other_controls={view: _controls_from_json(each) for view, each in _read_json(folder / OTHER_CONTROLS).items()},
        evidence=Evidence(
            maps={row_id: _map_from_json(record, layout) for row_id, record in evidence["maps"].items()},
            table=pd.DataFrame(evidence["table"], columns=list(EVIDENCE_COLUMNS)),
            base_table=pd.DataFrame(evidence["base_table"], columns=list(EVIDENCE_COLUMNS)),
            reason=evidence["reason"],
        ),
        answer_checks=_read_json(folder / ANSWER_CHECKS),
        simple_questions=_controls_from_json(_read_json(folder / SIMPLE)),
    )


def _controls_from_json(records: Sequence[Mapping]) -> tuple[ControlResult, ...]:
    return tuple(
        ControlResult(
            **{
                **record,
                "checks": tuple(Check(**check) for check in record["checks"]),
                "pictures": tuple(record["pictures"]),
            }
        )
        for record in records
    )


def _map_to_json(evidence: EvidenceMap) -> dict[str, object]:
    return {
        "weights": [[round(float(weight), _PLACES) for weight in line] for line in evidence.weights],
        "looked": round(evidence.looked, _PLACES),
        "brightest": str(evidence.brightest),
        "named": str(evidence.named),
        "defect": None if evidence.defect is None else str(evidence.defect),
        "agreement": None if evidence.agreement is None else round(evidence.agreement, _PLACES),
        "hit": evidence.hit,
    }


def _map_from_json(record: Mapping, layout: Layout) -> EvidenceMap:
    addresses = {name: record[name] and layout.address(record[name]) for name in ("brightest", "named", "defect")}
    weights = np.array(record["weights"], np.float32)
    return EvidenceMap(**{**record, **addresses, "weights": weights})


def _records(table: pd.DataFrame) -> list[dict]:
    """Return the lines of an evidence table as JSON has them; NaN becomes null."""
    rounded = table.assign(**{name: table[name].astype(float).round(_PLACES) for name in ("agreement", "looked")})
    return rounded.astype(object).where(rounded.notna(), None).to_dict("records")


def _write_json(content: object, path: Path) -> None:
    write_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run dvc repro answer") from None
    except json.JSONDecodeError as error:
        raise StageInputError(f"{path}: not JSON ({error}); run dvc repro --force answer") from None
