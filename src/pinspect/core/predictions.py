"""The predictions table: one row per answered test row, with the fields of the expected and of the found answer.

It is the only thing that scoring, the report and the comparison of two adapters read, so that an evaluation can be
scored again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pinspect.core.answers import FIELDS, AnswerContract
from pinspect.core.errors import AnswerFormatError, StageInputError
from pinspect.core.prompts import answer_kind_of

if TYPE_CHECKING:
    from pinspect.model.generated_answer import GeneratedAnswer

MODEL = "adapter"  # values of the column `model`
BASELINE = "NSOARTC baseline"
CONSTRAINED = "constrained"  # values of the column `decoding`
FREE = "free"
DECODINGS = (CONSTRAINED, FREE)

EXPECTED = tuple(f"expected_{field}" for field in FIELDS)
FOUND = tuple(f"found_{field}" for field in FIELDS)
COLUMNS = (
    *("id", "model", "decoding", "source", "shape", "view", "kind", "shot", "file"),
    *("expected", "answer", "parses", "problem"),
    *EXPECTED,
    *FOUND,
    *("p_defective", "threshold", "latency_s", "address_entropy", "address_probabilities"),
)
_PLACES = {"p_defective": 6, "threshold": 6, "latency_s": 3, "address_entropy": 4}
_NUMBERS = dict.fromkeys(_PLACES, "float64")


def prediction(
    row: Mapping[str, object],
    answer: str,
    contract: AnswerContract,
    *,
    model: str,
    decoding: str = CONSTRAINED,
    p_defective: float | None = None,
    threshold: float | None = None,
    latency_s: float | None = None,
    address_entropy: float | None = None,
    address_probabilities: Sequence[float] | None = None,
) -> dict[str, object]:
    """One row of the table: a row of the chat dataset with the answer string that was given to it.

    threshold: what p_defective was compared with. latency_s: seconds. address_entropy: bits. address_probabilities: one
    a pin, in the layout's order. `found_*` stay empty, and `problem` says why, where the answer breaks the contract.
    Raises AnswerFormatError when the expected answer does: that is a fault of the dataset.
    """
    kind = answer_kind_of(str(row["kind"]))
    expected = contract.parse(str(row["answer"]), kind).values()
    problem = ""
    try:
        found = contract.parse(answer, kind).values()
    except AnswerFormatError as error:
        found, problem = {}, str(error)
    return {
        **{column: row[column] for column in ("id", "source", "shape", "view", "kind", "shot", "file")},
        "model": model,
        "decoding": decoding,
        "expected": row["answer"],
        "answer": answer,
        "parses": not problem,
        "problem": problem,
        **{f"expected_{field}": expected[field] for field in FIELDS},
        **{f"found_{field}": found.get(field, "") for field in FIELDS},
        "p_defective": _number(p_defective),
        "threshold": _number(threshold),
        "latency_s": _number(latency_s),
        "address_entropy": _number(address_entropy),
        "address_probabilities": ""
        if address_probabilities is None
        else " ".join(f"{share:.4f}" for share in address_probabilities),
    }


def from_generated(
    row: Mapping[str, object], answer: GeneratedAnswer, contract: AnswerContract, *, model: str, decoding: str
) -> dict[str, object]:
    """One row of the table: what the model said of a row of the chat dataset."""
    return prediction(
        row,
        answer.text,
        contract,
        model=model,
        decoding=decoding,
        p_defective=answer.p_defective,
        threshold=answer.threshold,
        latency_s=answer.seconds,
        address_entropy=answer.address_entropy,
        address_probabilities=answer.address_probabilities,
    )


def address_probabilities(predictions: pd.DataFrame, pins: int) -> np.ndarray:
    """The address probabilities of every row, float64 (rows, pins); NaN where a row has none."""
    empty = [np.nan] * pins
    shares = [[float(share) for share in text.split()] or empty for text in predictions["address_probabilities"]]
    return np.array(shares, dtype=float).reshape(len(predictions), pins)


def table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """The predictions table from rows as `prediction` makes them, columns in the order of `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_NUMBERS | {"parses": bool})


def write(predictions: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV (UTF-8, probabilities to six places, seconds to the millisecond)."""
    predictions.round(_PLACES).to_csv(path, index=False, lineterminator="\n")


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` made. Raises StageInputError when it is missing or lacks columns."""
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run the evaluate stage first (dvc repro evaluate)")
    # The position of a passed capture is the word NA, which pandas would read as a missing value.
    found = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in COLUMNS if column not in found.columns]
    if missing:
        raise StageInputError(f"{path}: lacks the columns {', '.join(missing)}; run dvc repro --force evaluate")
    for column, kind in _NUMBERS.items():
        found[column] = pd.to_numeric(found[column].replace("", np.nan)).astype(kind)
    return found.assign(parses=found["parses"] == "True")


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
