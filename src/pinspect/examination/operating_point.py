"""The operating point: the threshold on P(defective) at and above which a capture is judged defective.

Validation captures decide, never test captures. Of all thresholds that let at most the wanted share of the defective
captures escape, one with the least overkill is chosen: even odds where they are such a threshold, else the middle, in
logits, of the gap between the two neighboring captures.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.params import EvaluateParams
from pinspect.core.question import Question, camera_else_virtual, preferred_source
from pinspect.model.generated_answer import EVEN_ODDS

NOTHING = "nothing"
_LEAST = 1e-9  # probabilities nearer to 0 or 1 than this count as equal


def choose_operating_point(predictions: pd.DataFrame, params: EvaluateParams, weights: str) -> OperatingPoint:
    """Choose the threshold by the answers to production's question on validation captures.

    The camera's captures decide if they have both judgements, else the virtual line's.

    Args:
        predictions: Predictions table of validation captures.
        params: Section `evaluate` of `params.yaml`.
        weights: sha256 of the adapter that answered.
    """
    question = Question.of(params)
    answers = question.answers(predictions, model=None)
    answers = camera_else_virtual(answers[answers["p_defective"].notna()], enough=_both_judgements)
    defective = (answers["expected_judgement"] == DEFECTIVE).to_numpy()
    threshold, rates = EVEN_ODDS, (None, None)
    if len(answers):
        chances = answers["p_defective"].to_numpy()
        threshold = choose_threshold(chances, defective, params.wanted_escape_rate)
        called = chances >= threshold
        rates = float((~called[defective]).mean()), float(called[~defective].mean())
    return OperatingPoint(
        threshold=threshold,
        wanted_escape_rate=params.wanted_escape_rate,
        escape_rate=rates[0],
        overkill_rate=rates[1],
        defective=int(defective.sum()),
        passed=int((~defective).sum()),
        chosen_on=preferred_source(set(answers["source"])) or NOTHING,
        view=question.view,
        kind=question.kind,
        weights_sha256=weights,
    )


def _both_judgements(answers: pd.DataFrame) -> bool:
    return (answers["expected_judgement"] == DEFECTIVE).nunique() == 2


def choose_threshold(p_defective: np.ndarray, defective: np.ndarray, wanted_escape_rate: float) -> float:
    """Return the threshold with the least overkill among those that let at most `wanted_escape_rate` escape.

    Of several such thresholds, the one that lets fewer captures escape is taken. All thresholds between two
    neighboring probabilities judge alike: even odds are returned where they lie in that gap, else the middle of the
    gap in logits. The last resort is 0, which judges everything defective.

    Args:
        p_defective: float (n,), 0..1.
        defective: bool (n,), with both values.
        wanted_escape_rate: 0..1.
    """
    logits = _logit(p_defective)
    known = np.unique(logits)
    candidates = np.concatenate([[-np.inf], (known[1:] + known[:-1]) / 2])
    called = logits[:, None] >= candidates
    escapes, overkills = (~called[defective]).mean(axis=0), called[~defective].mean(axis=0)
    admissible = np.flatnonzero(escapes <= wanted_escape_rate)
    best = admissible[np.lexsort((escapes[admissible], overkills[admissible]))[0]]
    if best and known[best - 1] < 0 < known[best]:
        return EVEN_ODDS
    return float(1 / (1 + np.exp(-candidates[best])))


def _logit(p_defective: np.ndarray) -> np.ndarray:
    inside = np.clip(p_defective, _LEAST, 1 - _LEAST)
    return np.log(inside / (1 - inside))
