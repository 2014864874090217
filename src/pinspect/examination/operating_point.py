"""The operating point: from which P(defective) on a capture is called defective.

It is chosen on validation captures, never on test captures: of all thresholds that let at most the wanted share of the
defective ones escape, one with the least overkill. Where even odds are such a threshold they stay: nothing speaks for
another one. Else it lies in the middle, in logits, of the gap between the captures at both sides of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE
from pinspect.core.digests import weights_sha256
from pinspect.core.errors import StageInputError
from pinspect.core.params import EvaluateParams
from pinspect.core.prompts import ZERO_SHOT

NOTHING = "nothing"
EVEN_ODDS = 0.5
_LEAST = 1e-9  # that a capture is surer than one in a thousand million means nothing: beyond, all are alike


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it rests on.

    threshold: P(defective) at and above it is defective, 0..1. escape_rate, overkill_rate: those that it reaches on the
    `defective` and `passed` validation captures of `chosen_on`: `camera`, `virtual`, or `nothing` where neither has
    both judgements; the threshold is then even odds and the rates are None. view, kind: the zero-shot prompt that was
    asked. weights_sha256: of the adapter that it was chosen for.
    """

    threshold: float
    wanted_escape_rate: float
    escape_rate: float | None
    overkill_rate: float | None
    defective: int
    passed: int
    chosen_on: str
    view: str
    kind: str
    weights_sha256: str

    def told(self) -> str:
        """The point in one line."""
        if self.escape_rate is None:
            return f"threshold {self.threshold:g}: no validation captures of both judgements to choose it on"
        return (
            f"threshold {self.threshold:.4g}: {self.escape_rate:.1%} of {self.defective} defective captures escape, "
            f"{self.overkill_rate:.1%} of {self.passed} passed ones are called defective (validation, {self.chosen_on})"
        )


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


def write_operating_point(point: OperatingPoint, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(point), indent=2) + "\n", encoding="utf-8")


def read_operating_point(path: Path, adapter: Path | None = None) -> OperatingPoint:
    """Read what `write_operating_point` wrote.

    Raises StageInputError when the file is missing or broken, or when it was chosen for other weights than those of
    `adapter`.
    """
    again = "run dvc repro calibrate"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; {again}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageInputError(f"{path}: no JSON ({error}); {again}") from None
    names = {field.name for field in fields(OperatingPoint)}
    if not isinstance(found, dict) or set(found) != names:
        raise StageInputError(f"{path}: expected the keys {', '.join(sorted(names))}; {again}")
    if not isinstance(found["threshold"], float) or not 0 <= found["threshold"] < 1:
        raise StageInputError(
            f"{path}: threshold: expected a number between 0 and 1, found {found['threshold']!r}; {again}"
        )
    point = OperatingPoint(**found)
    if adapter is not None and point.weights_sha256 != weights_sha256(adapter):
        raise StageInputError(f"{path}: chosen for another adapter than {adapter}; {again}")
    return point


def _logit(p_defective: np.ndarray) -> np.ndarray:
    inside = np.clip(p_defective, _LEAST, 1 - _LEAST)
    return np.log(inside / (1 - inside))
