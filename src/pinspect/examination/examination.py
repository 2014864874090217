"""Whether a model looks, and where: controls with known outcomes, and maps of what it attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pinspect.core.answers import AnswerContract
from pinspect.core.errors import ModelError
from pinspect.core.params import EvaluateParams
from pinspect.core.predictions import CONSTRAINED
from pinspect.evaluation.cases import shown_row_ids
from pinspect.examination.answering import headline_rows
from pinspect.examination.controls import ControlResult, run_controls

if TYPE_CHECKING:
    from pinspect.examination.evidence import EvidenceMap

Row = Mapping[str, object]


@dataclass(frozen=True)
class Examination:
    """What came of it. evidence: maps by row id. evidence_table, evidence_summary: their agreement with the defective
    pins of the zero-shot prompts that production asks, capture by capture and in words."""

    controls: Sequence[ControlResult] = ()
    evidence: Mapping[str, EvidenceMap] = field(default_factory=dict)
    evidence_table: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence_summary: str = ""


def examine(
    inspector,
    rows: Sequence[Row],
    answered: pd.DataFrame,
    validation_rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    params: EvaluateParams,
    threshold: float,
    confidence: float,
) -> Examination:
    """Examine the model on test rows that it has answered.

    rows: of the chat dataset; production's zero-shot prompts among them are examined, the camera's or, where it has
    none, the virtual line's; those that the report shows get maps, too. answered: the model's predictions by
    production's decoding. validation_rows: by which the layer to look at is chosen. A model that does not tell its
    attention has no maps, and the summary says why.
    """
    # Both bring torch along, which scoring a table again does not need.
    from pinspect.examination import evidence
    from pinspect.model.generation import answer_rows

    def answer(asked: Sequence[Row], folder: Path) -> list[str]:
        told = answer_rows(
            inspector,
            asked,
            folder,
            contract,
            batch_size=params.batch_size,
            constrained=params.decodings[0] == CONSTRAINED,
            threshold=threshold,
        )
        return [answer.text for answer in told]

    answers = dict(zip(answered["id"], answered["answer"], strict=True))
    controls = run_controls(
        rows, images, contract, answer, answers, view=params.view, kind=params.kind, confidence=confidence
    )
    asked = headline_rows(rows, params)
    explained = [row for row in asked if row["source"] == "camera"] or asked
    shown = set(shown_row_ids(answered, params.view, params.kind))
    try:
        layer = evidence.choose_layer(inspector, headline_rows(validation_rows, params), images, contract)
        own = evidence.attention_maps(inspector, explained, answers, images, contract, layer=layer)
        bare = evidence.attention_maps(inspector, explained, answers, images, contract, layer=layer, adapted=False)
        more = [row for row in rows if row["id"] in shown and row["id"] not in own]
        maps = own | evidence.attention_maps(inspector, more, answers, images, contract, layer=layer)
    except ModelError as error:
        return Examination(controls, {}, pd.DataFrame(columns=list(evidence.COLUMNS)), str(error))
    table, unadapted = (evidence.evidence_table(found, explained, contract) for found in (own, bare))
    summary = evidence.evidence_summary(table, contract.layout, confidence, unadapted)
    return Examination(controls, maps, table, summary)
