"""Two predictors on the same captures: McNemar's exact test, and differences of scores with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from pinspect.core.answers import FIELDS
from pinspect.evaluation.metrics import HEADLINE, with_outcomes

SAME_ROW = ("file", "view", "kind", "shot")


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two predictors on the same rows.

    Attributes:
        n: Number of rows.
        only_first: Rows that only the first predictor answers right.
        only_second: Rows that only the second predictor answers right.
        p_value: The exact two-sided p-value.
    """

    n: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """A score of two predictors.

    Attributes:
        first: Score of the first predictor.
        second: Score of the second predictor.
        difference: `second - first`.
        low: Lower bound of the difference.
        high: Upper bound of the difference.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two predictors on the same rows.

    Attributes:
        n: Number of rows.
        captures: Number of different captures among the rows.
        mcnemar: McNemar's test by outcome: `exact_match` and `judgement`.
        differences: Difference by metric, for those of `HEADLINE` that both predictors have.
    """

    n: int
    captures: int
    mcnemar: Mapping[str, McNemar]
    differences: Mapping[str, Difference]


def mcnemar(
    first: pd.DataFrame,
    second: pd.DataFrame,
    outcome: str = "exact_match",
    on: Sequence[str] = SAME_ROW,
) -> McNemar:
    """Test two predictions tables on the same rows by McNemar's exact test.

    Args:
        first: Table of the first predictor.
        second: Table of the second predictor.
        outcome: `exact_match`, or a field of the answer such as `judgement`.
        on: The columns that identify a row in both tables. The column `file` alone compares with a predictor that knows
            no prompts.

    Raises:
        ValueError: A key occurs twice in one table, or in one table only.
    """
    right = [_outcome_by_key(table, outcome, list(on)) for table in (first, second)]
    unpaired = right[0].index.symmetric_difference(right[1].index)
    if len(unpaired):
        raise ValueError(
            f"both tables must answer the same rows; {len(unpaired)} are in one table only, such as {unpaired[0]}"
        )
    hits_first, hits_second = right[0].to_numpy(), right[1].reindex(right[0].index).to_numpy()
    only_first = int((hits_first & ~hits_second).sum())
    only_second = int((~hits_first & hits_second).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(len(hits_first), only_first, only_second, p_value)


def compare_predictions(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    on: Sequence[str] = SAME_ROW,
) -> Comparison:
    """Compare two predictors that answered the same rows.

    Intervals are percentiles of a paired bootstrap: whole captures are drawn, defective and passed captures separately,
    and both tables are scored on each draw. Where both predictors answer every capture alike, nothing can spread: the
    interval is 0 to 0 and allows no conclusion about other captures.

    Args:
        first: Table of the first predictor.
        second: Table of the second predictor.
        confidence: Coverage of the intervals.
        bootstrap_samples: Number of draws.
        seed: Seed of the draws.
        on: As in `mcnemar`.

    Raises:
        ValueError: As in `mcnemar`.
    """
    tests = {outcome: mcnemar(first, second, outcome, on) for outcome in ("exact_match", "judgement")}
    captures = sorted(set(first["file"]))
    both = [_ByCapture(with_outcomes(table), captures) for table in (first, second)]
    weights = _stratified_draws(both[0].defective, bootstrap_samples, np.random.default_rng(seed))
    differences = {}
    for metric in HEADLINE:
        # The first line of the weights counts every capture once; the others are the draws.
        before, after = (table.scores(metric, np.vstack([np.ones((1, len(captures))), weights])) for table in both)
        if before is None or after is None:
            continue
        spread = after - before
        low, high = np.quantile(spread[1:], [0.5 - confidence / 2, 0.5 + confidence / 2])
        differences[metric] = Difference(*map(float, (before[0], after[0], spread[0], low, high)))
    return Comparison(len(first), len(captures), tests, differences)


def _outcome_by_key(table: pd.DataFrame, outcome: str, on: list[str]) -> pd.Series:
    rows = with_outcomes(table)
    column = "exact" if outcome == "exact_match" else f"{outcome}_right"
    if column not in rows:
        raise ValueError(f"expected the outcome 'exact_match' or one of {list(FIELDS)}, found {outcome!r}")
    keyed = rows.set_index(on)[column]
    if keyed.index.has_duplicates:
        raise ValueError(f"a row occurs twice under {on}, such as {keyed.index[keyed.index.duplicated()][0]}")
    return keyed


def _stratified_draws(defective: np.ndarray, samples: int, random: np.random.Generator) -> np.ndarray:
    """Draw captures with replacement within their judgement: how often each is drawn, float64 (samples, captures)."""
    weights = np.zeros((samples, len(defective)))
    for stratum in (defective, ~defective):
        size = int(stratum.sum())
        if size:
            weights[:, stratum] = random.multinomial(size, np.full(size, 1 / size), size=samples)
    return weights


class _ByCapture:
    """The outcomes of a table, summed by capture, so that a draw of captures is a matrix product."""

    def __init__(self, rows: pd.DataFrame, captures: Sequence[str]) -> None:
        self._rows = rows.assign(place=pd.Categorical(rows["file"], categories=list(captures)).codes)
        self.defective = self._rows.groupby("place")["is_defective"].first().to_numpy(bool)

    def scores(self, metric: str, weights: np.ndarray) -> np.ndarray | None:
        """Return the score for each line of `weights` (samples, captures), float64 (samples,); None if undefined."""
        rows = self._rows
        defective, passed = rows["is_defective"], ~rows["is_defective"]
        if metric == "auroc":
            return self._auroc(weights)
        if metric == "balanced_accuracy":
            recalls = [self._share(rows[mask], "judgement_right", weights) for mask in (defective, passed)]
            return None if recalls[0] is None or recalls[1] is None else (recalls[0] + recalls[1]) / 2
        counted, outcome = {
            "exact_match": (rows, "exact"),
            "parse_rate": (rows, "parses"),
            "address_on_defective": (rows[defective], "defect_position_right"),
            "mode_on_defective": (rows[defective], "defect_mode_right"),
            "escape_rate": (rows[defective], "judged_passed"),
            "overkill_rate": (rows[passed], "judged_defective"),
        }[metric]
        return self._share(counted, outcome, weights)

    def _share(self, rows: pd.DataFrame, outcome: str, weights: np.ndarray) -> np.ndarray | None:
        if rows.empty:
            return None
        captures = weights.shape[1]
        hits = np.bincount(rows["place"], rows[outcome].astype(float), minlength=captures)
        return weights @ hits / (weights @ np.bincount(rows["place"], minlength=captures))

    def _auroc(self, weights: np.ndarray) -> np.ndarray | None:
        """Return the share of pairs in which the defective row has the higher probability; ties count half."""
        rows, captures = self._rows, weights.shape[1]
        if rows["p_defective"].isna().any() or rows["is_defective"].nunique() < 2:
            return None
        defective, passed = rows[rows["is_defective"]], rows[~rows["is_defective"]]
        gaps = defective["p_defective"].to_numpy()[:, None] - passed["p_defective"].to_numpy()
        wins = np.zeros((captures, captures))
        np.add.at(wins, (defective["place"].to_numpy()[:, None], passed["place"].to_numpy()), (np.sign(gaps) + 1) / 2)
        sizes = [np.bincount(part["place"], minlength=captures) for part in (defective, passed)]
        return ((weights @ wins) * weights).sum(axis=1) / ((weights @ sizes[0]) * (weights @ sizes[1]))
