"""The predictions table: one row per answered row of the chat dataset, with the expected and the generated answer.

Scoring, the report and the comparison of two adapters read nothing else of the model's answers, so an evaluation can be
scored again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from pinspect.core.answers import FIELDS, AnswerContract
from pinspect.core.errors import AnswerFormatError, StageInputError
from pinspect.core.files import write_file
from pinspect.core.prompts import answer_kind_of

if TYPE_CHECKING:
    from pinspect.model.generated_answer import GeneratedAnswer

MODEL = "adapter"  # values of the column `model`
BASELINE = "per-pin baseline"
LOCALIZER = "NSOARTC localizer"
BASELINES = (BASELINE, LOCALIZER)
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
    *("p_defective", "threshold", "address_entropy", "address_probabilities"),
)
_PLACES = {"p_defective": 6, "threshold": 6, "address_entropy": 4}


def prediction(
    row: Mapping[str, object],
    answer: str,
    contract: AnswerContract,
    *,
    model: str,
    decoding: str = CONSTRAINED,
    p_defective: float | None = None,
    threshold: float | None = None,
    address_entropy: float | None = None,
    address_probabilities: Sequence[float] | None = None,
) -> dict[str, object]:
    """Return one row of the table: a row of the chat dataset with an answer to it.

    Where the answer breaks the contract, the columns `found_*` stay empty and `problem` holds the reason.

    Args:
        row: Row of the chat dataset.
        answer: The answer string.
        contract: The answer contract.
        model: Name of the predictor, such as `MODEL`.
        decoding: One of `DECODINGS`.
        p_defective: P(defective), 0..1.
        threshold: The value that `p_defective` was compared with.
        address_entropy: Entropy of `address_probabilities`, in bits.
        address_probabilities: One probability per pin, in the order of the layout.

    Raises:
        AnswerFormatError: The expected answer breaks the contract, which is a fault of the dataset.
    """
    kind = answer_kind_of(str(row["kind"]))
    expected = contract.parse(str(row["answer"]), kind).values()
    problem, fields = "", {}
    try:
        fields = contract.parse(answer, kind).values()
    except AnswerFormatError as error:
        problem = str(error)
    return {
        **{column: row[column] for column in ("id", "source", "shape", "view", "kind", "shot", "file")},
        "model": model,
        "decoding": decoding,
        "expected": row["answer"],
        "answer": answer,
        "parses": not problem,
        "problem": problem,
        **{f"expected_{field}": expected[field] for field in FIELDS},
        **{f"found_{field}": fields.get(field, "") for field in FIELDS},
        "p_defective": _number(p_defective),
        "threshold": _number(threshold),
        "address_entropy": _number(address_entropy),
        "address_probabilities": ""
        if address_probabilities is None
        else " ".join(f"{share:.4f}" for share in address_probabilities),
    }


def from_generated(
    row: Mapping[str, object], answer: GeneratedAnswer, contract: AnswerContract, model: str, decoding: str
) -> dict[str, object]:
    """Return one row of the table: a row of the chat dataset with the answer that a model generated.

    Args:
        row: Row of the chat dataset.
        answer: The generated answer.
        contract: The answer contract.
        model: Name of the predictor.
        decoding: One of `DECODINGS`.
    """
    return prediction(
        row,
        answer.text,
        contract,
        model=model,
        decoding=decoding,
        p_defective=answer.p_defective,
        threshold=answer.threshold,
        address_entropy=answer.address_entropy,
        address_probabilities=answer.address_probabilities,
    )


def address_probabilities(predictions: pd.DataFrame, pins: int) -> npt.NDArray[np.float64]:
    """Return the address probabilities of every row, float64 (rows, pins), 0..1; NaN where a row has none."""
    empty = [np.nan] * pins
    shares = [[float(share) for share in text.split()] or empty for text in predictions["address_probabilities"]]
    return np.array(shares, dtype=float).reshape(len(predictions), pins)


def table(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return the predictions table of rows that `prediction` made, with the columns `COLUMNS`."""
    types = dict.fromkeys(_PLACES, "float64") | {"parses": "bool"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def write(predictions: pd.DataFrame, path: Path) -> None:
    """Write the table as CSV (UTF-8, probabilities to six decimals)."""
    write_file(path, predictions.round(_PLACES).to_csv(index=False, lineterminator="\n"))


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` wrote.

    Raises:
        StageInputError: The file is missing, or lacks columns.
    """
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run dvc repro answer")
    # Empty texts stay empty texts, which pandas would read as missing values.
    content = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in COLUMNS if column not in content.columns]
    if missing:
        raise StageInputError(f"{path}: lacks the columns {', '.join(missing)}; run dvc repro --force answer")
    for column in _PLACES:
        content[column] = content[column].replace("", "nan").astype("float64")
    return content.assign(parses=content["parses"] == "True")


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
