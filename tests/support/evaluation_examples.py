"""Predictions for tests: answers of the contract, right and wrong, to a few captures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from pinspect.core import predictions, prompts
from pinspect.core.answers import Answer, AnswerKind
from pinspect.core.params import load_params
from pinspect.core.predictions import BASELINE, MODEL
from pinspect.core.prompts import ONE_SHOT, PromptKind, answer_kind_of
from pinspect.core.question import Question
from pinspect.evaluation.settings import load_report_settings

_SHIPPED = load_params(Path(__file__).parents[2] / "params.yaml")
# The examples are of distance images, whatever production inspects.
PARAMS = _SHIPPED.model_copy(update={"evaluate": _SHIPPED.evaluate.model_copy(update={"view": "DST"})})
QUESTION = Question.of(PARAMS.evaluate)
CONTRACT = PARAMS.contract()
REPORT = load_report_settings(Path(__file__).parents[2])
ADDRESSES = CONTRACT.layout.addresses


def truth(number: int, view: str = "DST") -> Answer:
    """Return the label of capture `number`: odd captures are passed, the others cycle through modes and addresses."""
    shape = CONTRACT.shapes[number // 2 % len(CONTRACT.shapes)]
    if number % 2:
        return CONTRACT.passed(shape, view)
    mode = CONTRACT.defect_modes[number // 2 % len(CONTRACT.defect_modes)]
    return CONTRACT.defective(shape, view, mode, ADDRESSES[number // 2 % len(ADDRESSES)])


def chat_row(
    number: int,
    *,
    view: str = "DST",
    shot: str = "zero_shot",
    source: str = "camera",
    kind: str = "two_image",
) -> dict[str, object]:
    """Return the part of a chat row that scoring and the report read."""
    answer = truth(number, view)
    return {
        "id": f"{source}-{number}-{view}-{kind}-{shot}",
        "source": source,
        "shape": answer.shape,
        "view": view,
        "kind": kind,
        "shot": shot,
        "file": f"images/{source}/{number}.jpg",
        "answer": CONTRACT.render(answer, answer_kind_of(kind)),
    }


def messages(row: dict[str, object]) -> list[prompts.Message]:
    """The chat of a row, its expected answer last; the star of a one-shot prompt lies on the first pin."""
    view, answer = str(row["view"]), str(row["answer"])
    if row["kind"] == PromptKind.ONE_IMAGE:
        return prompts.one_image(view, answer)
    if row["kind"] == PromptKind.STACKED:
        return prompts.stacked(view, answer, answer if row["shot"] == ONE_SHOT else None)
    star = CONTRACT.render(CONTRACT.star(str(row["shape"]), view, ADDRESSES[0]), AnswerKind.STAR)
    return prompts.two_image(view, answer, star if row["shot"] == ONE_SHOT else None)


def right(row: dict[str, object]) -> str:
    return str(row["answer"])


def escaped(row: dict[str, object]) -> str:
    """Answer passed to every capture."""
    return _render(row, CONTRACT.passed(str(row["shape"]), str(row["view"])))


def overkilled(row: dict[str, object]) -> str:
    """Answer a bend at the first address to every capture."""
    return _render(row, CONTRACT.defective(str(row["shape"]), str(row["view"]), "bend", ADDRESSES[0]))


def moved(row: dict[str, object]) -> str:
    """Answer the right mode at the address after the right address."""
    answer = CONTRACT.parse(str(row["answer"]), answer_kind_of(str(row["kind"])))
    after = ADDRESSES[(CONTRACT.layout.index(answer.defect_position) + 1) % len(ADDRESSES)]
    return _render(row, CONTRACT.defective(answer.shape, answer.view, answer.defect_mode, after))


def unreadable(row: dict[str, object]) -> str:
    """Return an answer that stops in the middle of its third line."""
    return str(row["answer"])[:70]


def answered(
    rows: Iterable[dict[str, object]],
    answer=right,
    *,
    model: str = MODEL,
    decoding: str = "constrained",
    chance=None,
    shares=None,
) -> pd.DataFrame:
    """The predictions table of `rows`, each answered by `answer(row)`; if given, `chance(row)` is its P(defective) and
    `shares(row)` the probabilities of its addresses."""
    return predictions.table(
        [
            predictions.prediction(
                row,
                answer(row),
                CONTRACT,
                model=model,
                decoding=decoding,
                p_defective=chance(row) if chance else None,
                address_probabilities=shares(row) if shares else None,
            )
            for row in rows
        ]
    )


def baseline(rows: Iterable[dict[str, object]], answer=right, chance=None) -> pd.DataFrame:
    """Return `answered` as predictions of the per-pin baseline."""
    return answered(rows, answer, model=BASELINE, chance=chance)


def _render(row: dict[str, object], answer: Answer) -> str:
    return CONTRACT.render(answer, answer_kind_of(str(row["kind"])))
