"""What production asks, and which captures count: one value and one rule for the whole product.

Production puts one zero-shot prompt to the model: one view, one kind of prompt, one decoding (`Question`). Its answers
make the headline of an evaluation, choose the operating point and decide about promotion.

Captures of the camera count. Where the camera has none, captures of the virtual line count instead
(`camera_else_virtual`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar, overload

import pandas as pd

from pinspect.core.params import EvaluateParams
from pinspect.core.predictions import CONSTRAINED, MODEL
from pinspect.core.prompts import ZERO_SHOT

CAMERA = "camera"
VIRTUAL = "virtual"
SOURCES = (CAMERA, VIRTUAL)  # in the order of preference

RowT = TypeVar("RowT", bound=Mapping[str, Any])


@dataclass(frozen=True)
class Question:
    """The prompt that production puts to the model, always zero-shot.

    Attributes:
        view: `RAW` or `DST`.
        kind: Kind of prompt, such as `two_image`.
        decoding: `constrained` or `free`.
    """

    view: str
    kind: str
    decoding: str

    @classmethod
    def of(cls, params: EvaluateParams) -> Question:
        """Return the question that `params` describes: its view, its kind and the first of its decodings."""
        return cls(view=params.view, kind=params.kind, decoding=params.decodings[0])

    @property
    def constrained(self) -> bool:
        """Return whether the grammar of the answer contract constrains the answer."""
        return self.decoding == CONSTRAINED

    def asks(self, row: Mapping[str, Any], shot: str = ZERO_SHOT) -> bool:
        """Return whether a row of the chat dataset asks the question in `shot`."""
        return (row["view"], row["kind"], row["shot"]) == (self.view, self.kind, shot)

    def rows(self, rows: Iterable[RowT]) -> list[RowT]:
        """Return the rows of the chat dataset that ask the question, each capture once."""
        return [row for row in rows if self.asks(row)]

    def answers(
        self, predictions: pd.DataFrame, *, model: str | None = MODEL, shot: str | None = ZERO_SHOT
    ) -> pd.DataFrame:
        """Return the rows of a predictions table that answer the question.

        Args:
            predictions: Table with the columns of `pinspect.core.predictions`.
            model: Value of the column `model`; None selects the rows of every model.
            shot: Value of the column `shot`: production's zero-shot answers by default; None selects every shot.
        """
        wanted = asdict(self) | {"shot": shot, "model": model}
        chosen = pd.Series(True, index=predictions.index)
        for column, value in wanted.items():
            chosen &= value is None or predictions[column] == value
        return predictions.loc[chosen]


def preferred_source(sources: Collection[str]) -> str | None:
    """Return the first of `SOURCES` that is among `sources`, or None where none is."""
    return next((source for source in SOURCES if source in sources), None)


@overload
def camera_else_virtual(rows: pd.DataFrame, enough: Callable[[pd.DataFrame], bool] = ...) -> pd.DataFrame: ...


@overload
def camera_else_virtual(rows: Sequence[RowT], enough: Callable[[list[RowT]], bool] = ...) -> list[RowT]: ...


def camera_else_virtual(rows: Any, enough: Callable[[Any], bool] = lambda chosen: len(chosen) > 0) -> Any:
    """Return the camera's rows if they are enough, else the virtual line's if they are enough, else no rows.

    Args:
        rows: Rows with a `source`: of the chat dataset, or a table of predictions.
        enough: Whether the rows of one source can be used. By default one row is enough.
    """
    for source in SOURCES:
        if isinstance(rows, pd.DataFrame):
            chosen: Any = rows[rows["source"] == source]
        else:
            chosen = [row for row in rows if row["source"] == source]
        if enough(chosen):
            return chosen
    return rows[:0]
