"""The model's answers to validation and test rows, by real generation, as predictions tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from pinspect.core import predictions as tables
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import StageInputError
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.params import EvaluateParams
from pinspect.core.predictions import CONSTRAINED, MODEL
from pinspect.core.prompts import ZERO_SHOT
from pinspect.examination.operating_point import EVEN_ODDS, choose_operating_point

if TYPE_CHECKING:
    from pinspect.model.generated_answer import GeneratedAnswer

Row = Mapping[str, object]


def answer_validation_rows(
    inspector, rows: Sequence[Row], images: Path, contract: AnswerContract, params: EvaluateParams, weights: str
) -> tuple[OperatingPoint, pd.DataFrame]:
    """Answer the validation rows, choose the operating point by them, and judge them by it.

    The virtual line's captures are asked as in `answer_test_rows`. weights: sha256 of the adapter. Returns the point
    and the predictions table.
    """
    rows = _asked(rows, params.decodings[0], params)
    answers = _answer(inspector, rows, images, contract, params, params.decodings[0], EVEN_ODDS)
    point = choose_operating_point(_table(rows, answers, contract, params.decodings[0]), params, weights)
    judged = [answer.judged(point.threshold) for answer in answers]
    return point, _table(rows, judged, contract, params.decodings[0])


def answer_test_rows(
    inspector,
    rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    params: EvaluateParams,
    threshold: float = EVEN_ODDS,
) -> pd.DataFrame:
    """The predictions table of every test row that is asked, by generation.

    The first decoding of `params.decodings` answers every kind of prompt on the camera's captures, and those of
    `params.virtual_kinds` and of production on the virtual line's. The others, which are told beside it, answer
    production's kind on the camera's. threshold: see `model.generate`. Raises StageInputError when no row asks what
    production asks.
    """
    if not headline_rows(rows, params):
        raise StageInputError(
            f"data/chat/test.jsonl: none of its {len(rows)} rows is a zero-shot {params.kind} prompt on {params.view} "
            "composites; make evaluate.view and .kind one of chat.views and .kinds, and see that captures are tested"
        )
    tables_of = []
    for decoding in params.decodings:
        asked = _asked(rows, decoding, params)
        answers = _answer(inspector, asked, images, contract, params, decoding, threshold)
        tables_of.append(_table(asked, answers, contract, decoding))
    return pd.concat(tables_of, ignore_index=True)


def _asked(rows: Sequence[Row], decoding: str, params: EvaluateParams) -> list[Row]:
    if decoding != params.decodings[0]:
        return [row for row in rows if row["source"] == "camera" and row["kind"] == params.kind]
    kinds = {params.kind, *params.virtual_kinds}
    return [row for row in rows if row["source"] == "camera" or row["kind"] in kinds]


def _answer(
    inspector,
    rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    params: EvaluateParams,
    decoding: str,
    threshold: float,
) -> list[GeneratedAnswer]:
    from pinspect.model.generation import answer_rows

    with tqdm(total=len(rows), desc=f"answer ({decoding})", unit="answer") as bar:
        return answer_rows(
            inspector,
            rows,
            images,
            contract,
            batch_size=params.batch_size,
            constrained=decoding == CONSTRAINED,
            threshold=threshold,
            progress=bar.update,
        )


def _table(
    rows: Sequence[Row], answers: Sequence[GeneratedAnswer], contract: AnswerContract, decoding: str
) -> pd.DataFrame:
    return tables.table(
        [
            tables.from_generated(row, answer, contract, model=MODEL, decoding=decoding)
            for row, answer in zip(rows, answers, strict=True)
        ]
    )


def headline_rows(rows: Sequence[Row], params: EvaluateParams) -> list[Row]:
    """The rows on which a predictor without prompts is compared: each capture once, as production would ask."""
    return [row for row in rows if (row["view"], row["kind"], row["shot"]) == (params.view, params.kind, ZERO_SHOT)]
