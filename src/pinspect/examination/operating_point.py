"""The operating point: from which P(defective) on a capture is called defective.

It is chosen on validation captures, never on test captures: of all thresholds that let at most the wanted share of the
defective ones escape, one with the least overkill. Where even odds are such a threshold they stay: nothing speaks for
another one. Else it lies in the middle, in logits, of the gap between the captures at both sides of it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.params import EvaluateParams
from pinspect.core.prompts import ZERO_SHOT

NOTHING = "nothing"
EVEN_ODDS = 0.5
_LEAST = 1e-9  # that a capture is surer than one in a thousand million means nothing: beyond, all are alike


def choose_operating_point(predictions: pd.DataFrame, params: EvaluateParams, weights: str) -> OperatingPoint:
    """Choose by a predictions table of validation captures; only its rows of production's prompt are looked at.

    weights: sha256 of the adapter that answered. The camera's captures decide where they have both judgements, else the
    virtual line's.
    """
    asked = {"view": params.view, "kind": params.kind, "shot": ZERO_SHOT, "decoding": params.decodings[0]}
    for column, value in asked.items():
        predictions = predictions[predictions[column] == value]
    told = {"view": params.view, "kind": params.kind, "wanted_escape_rate": params.wanted_escape_rate}
    told["weights_sha256"] = weights
    for source in ("camera", "virtual"):
        rows = predictions[(predictions["source"] == source) & predictions["p_defective"].notna()]
        defective = (rows["expected_judgement"] == DEFECTIVE).to_numpy()
        if not defective.any() or defective.all():
            continue
        chances = rows["p_defective"].to_numpy()
        threshold = choose_threshold(chances, defective, params.wanted_escape_rate)
        called = chances >= threshold
        return OperatingPoint(
            threshold=threshold,
            escape_rate=float((~called[defective]).mean()),
            overkill_rate=float(called[~defective].mean()),
            defective=int(defective.sum()),
            passed=int((~defective).sum()),
            chosen_on=source,
            **told,
        )
    return OperatingPoint(
        EVEN_ODDS, escape_rate=None, overkill_rate=None, defective=0, passed=0, chosen_on=NOTHING, **told
    )


def choose_threshold(p_defective: np.ndarray, defective: np.ndarray, wanted_escape_rate: float) -> float:
    """The threshold with the least overkill among those that let at most `wanted_escape_rate` escape; where several
    have it, the one that lets fewer escape.

    p_defective: float (n,), 0..1. defective: bool (n,), both values in it. Between two neighbouring probabilities
    every threshold judges alike: even odds are returned where they lie in that gap, else its middle, in logits. 0,
    which calls everything defective, is the last resort.
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
