"""Scores of a predictions table, each with the number it rests on and an interval.

What counts how:

* An answer that breaks the contract is wrong in every field.
* An unreadable answer to a defective capture is no escape, since no one would let the part pass on it: it is counted
  as *not answered*. Nor is one to a passed capture an overkill. Both are wrong for the balanced accuracy.
* Intervals of proportions are Wilson's. Where a group holds several rows of one capture (two views, two shots) those
  rows are not independent: the interval then rests on the number of captures, which can only widen it.
* The interval of the balanced accuracy comes from resampling captures within each class (percentile bootstrap). Where
  a class has no error, or nothing else, resampling shows no spread at all; then Wilson's intervals of the two recalls
  are combined instead (Donner and Zou's MOVER).
* The interval of the AUROC is Newcombe's (2006, method 5), which stays honest at 1.
* The calibration error (ECE) of P(defective) is never negative, and few captures make it larger than it is. Its
  interval comes from resampling captures.
* Two predictors are compared on the same captures only, by McNemar's exact test and by resampling captures, each time
  the same ones for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from pinspect.core.answers import DEFECTIVE, FIELDS, PASSED
from pinspect.core.layout import NO_ADDRESS, Layout

ALL = "all"
NOT_ANSWERED = "not answered"
GROUP = ("model", "decoding", "source", "kind", "shot", "view", "image_type")
METRICS = (
    "exact_match",
    *(f"{field}_accuracy" for field in FIELDS),
    "address_on_defective",
    "mode_on_defective",
    "balanced_accuracy",
    "escape_rate",
    "overkill_rate",
    "not_answered_rate",
    "parse_rate",
    "auroc",
    "ece",
)
HEADLINE = (
    *("exact_match", "balanced_accuracy", "address_on_defective", "mode_on_defective"),
    *("escape_rate", "overkill_rate", "parse_rate", "auroc"),
)
BETTER_WHEN_LOW = ("escape_rate", "overkill_rate", "not_answered_rate", "ece")
BINS = 10  # of P(defective), equally wide: what the ECE is usually told for
SAME_ROW = ("file", "view", "kind", "shot")


@dataclass(frozen=True)
class Estimate:
    """A score with its interval. `value`, `low` and `high` are None where there is nothing to score.

    n: rows that it is a share of. captures: different captures among them.
    """

    value: float | None
    n: int
    captures: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class McNemar:
    """Two predictors on the same rows: how often only one of them is right, and the exact two-sided p-value."""

    n: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """A score of two predictors: `difference` is second - first, and `low` to `high` its interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two predictors on the same rows. mcnemar: by outcome (`exact_match`, `judgement`). differences: by metric, those
    of `HEADLINE` that both can be scored by."""

    n: int
    captures: int
    mcnemar: Mapping[str, McNemar]
    differences: Mapping[str, Difference]


def wilson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the proportion `hits / n`. Raises ValueError unless 0 <= hits <= n and n > 0."""
    if not 0 <= hits <= n or n <= 0:
        raise ValueError(f"expected 0 <= hits <= n with n above 0, found hits={hits}, n={n}")
    z = norm.ppf(0.5 + confidence / 2)
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is the share itself; rounding would put it a hair inside.
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == n else min(1.0, centre + half))


def score(
    predictions: pd.DataFrame, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Every one of `METRICS` for the rows given, in that order. The same rows and seed give the same figures."""
    rows = _with_outcomes(predictions)
    defective, passed = rows[rows["is_defective"]], rows[~rows["is_defective"]]

    def share(of: pd.DataFrame, outcome: str) -> Estimate:
        return _proportion(of[outcome].to_numpy(), of["file"].nunique(), confidence)

    return {
        "exact_match": share(rows, "exact"),
        **{f"{field}_accuracy": share(rows, f"{field}_right") for field in FIELDS},
        "address_on_defective": share(defective, "defect_position_right"),
        "mode_on_defective": share(defective, "defect_mode_right"),
        "balanced_accuracy": _balanced_accuracy(defective, passed, confidence, bootstrap_samples, seed),
        "escape_rate": share(defective, "judged_passed"),
        "overkill_rate": share(passed, "judged_defective"),
        "not_answered_rate": share(defective, "not_answered"),
        "parse_rate": share(rows, "parses"),
        "auroc": _auroc(rows, confidence),
        "ece": _ece(rows, confidence, bootstrap_samples, seed),
    }


def score_table(
    predictions: pd.DataFrame, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Scores of every group, one row per group and metric: columns `GROUP`, metric, value, n, captures, low, high.

    Within each model, decoding and source there is a group for everything (`all`), for each kind and shot, and within
    those for each view and each image type.
    """
    lines = []
    for key, rows in _groups(predictions):
        scores = score(rows, confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed)
        lines += [
            (*key, name, found.value, found.n, found.captures, found.low, found.high) for name, found in scores.items()
        ]
    return pd.DataFrame(lines, columns=[*GROUP, "metric", "value", "n", "captures", "low", "high"])


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write a table of `score_table` as CSV."""
    scores.to_csv(path, index=False, lineterminator="\n", float_format="%.6f")


def mcnemar(
    first: pd.DataFrame,
    second: pd.DataFrame,
    outcome: str = "exact_match",
    on: Sequence[str] = SAME_ROW,
) -> McNemar:
    """McNemar's exact test of two predictions tables on the same rows.

    outcome: `exact_match`, or a field of the answer such as `judgement`. on: the columns that make a row the same row
    in both tables; the file alone compares with a predictor that knows no prompts. Raises ValueError when a key
    stands twice in a table or in one of them only.
    """
    right = [_outcome_by_key(table, outcome, list(on)) for table in (first, second)]
    apart = right[0].index.symmetric_difference(right[1].index)
    if len(apart):
        raise ValueError(f"both tables must answer the same rows; {len(apart)} stand in one only, such as {apart[0]}")
    ours, theirs = right[0].to_numpy(), right[1].reindex(right[0].index).to_numpy()
    only_first, only_second = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    apart = only_first + only_second
    p_value = float(binomtest(only_first, apart, 0.5).pvalue) if apart else 1.0
    return McNemar(len(ours), only_first, only_second, p_value)


def compare_predictions(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
    on: Sequence[str] = SAME_ROW,
) -> Comparison:
    """Compare two predictors by two tables that answer the same rows.

    Intervals are percentiles of a paired bootstrap: whole captures are drawn, defective and passed ones apart, and both
    tables are scored on each draw. Where both answer every capture alike there is nothing that could spread: the
    interval is then 0 to 0 and says nothing about other captures. Raises ValueError as `mcnemar` does.
    """
    tests = {outcome: mcnemar(first, second, outcome, on) for outcome in ("exact_match", "judgement")}
    captures = sorted(set(first["file"]))
    both = [_ByCapture(_with_outcomes(table), captures) for table in (first, second)]
    weights = _stratified_draws(both[0].defective, bootstrap_samples, np.random.default_rng(seed))
    differences = {}
    for metric in HEADLINE:
        values = [table.scores(metric, np.ones((1, len(captures)))) for table in both]
        if any(value is None for value in values):
            continue
        spread = both[1].scores(metric, weights) - both[0].scores(metric, weights)
        low, high = np.quantile(spread, [0.5 - confidence / 2, 0.5 + confidence / 2])
        (ours,), (theirs,) = values
        differences[metric] = Difference(float(ours), float(theirs), float(theirs - ours), float(low), float(high))
    return Comparison(len(first), len(captures), tests, differences)


def confusion(predictions: pd.DataFrame, modes: Sequence[str]) -> pd.DataFrame:
    """Counts of expected (rows) against found (columns) defect mode; both start with `passed`.

    The last column, `not answered`, counts answers that break the contract.
    """
    names = [PASSED, *modes]
    found = predictions["found_defect_mode"].where(predictions["parses"].astype(bool), NOT_ANSWERED)
    counts = pd.crosstab(predictions["expected_defect_mode"], found)
    return counts.reindex(index=names, columns=[*names, NOT_ANSWERED], fill_value=0)


def address_errors(predictions: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """For each pin of the layout (index: address): `defective`, how often the defect was expected there; `wrong`, how
    often another answer was given; `named`, how often the pin was named although the defect was not there.
    """
    expected, found = predictions["expected_defect_position"], predictions["found_defect_position"]
    missed = predictions[(expected != NO_ADDRESS) & (found != expected)]
    named = predictions[(found != expected) & ~found.isin([NO_ADDRESS, ""])]
    addresses = [str(address) for address in layout.addresses]
    counts = {
        "defective": expected.value_counts(),
        "wrong": missed["expected_defect_position"].value_counts(),
        "named": named["found_defect_position"].value_counts(),
    }
    return pd.DataFrame({name: count.reindex(addresses, fill_value=0) for name, count in counts.items()})


def roc(predictions: pd.DataFrame) -> pd.DataFrame:
    """The ROC of `p_defective`: columns threshold, overkill_rate (false alarms) and caught_rate (1 - escapes).

    Empty where the rows hold no probability or one judgement only.
    """
    rows = predictions[predictions["p_defective"].notna()]
    truth = rows["expected_judgement"] == DEFECTIVE
    if truth.nunique() < 2:
        return pd.DataFrame(columns=["threshold", "overkill_rate", "caught_rate"], dtype=float)
    overkill, caught, threshold = roc_curve(truth, rows["p_defective"])
    return pd.DataFrame({"threshold": threshold, "overkill_rate": overkill, "caught_rate": caught})


def reliability(predictions: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """How often captures of one P(defective) are defective: a line for each of `bins` equally wide bins that has rows.

    Columns low, high (of the bin), n (rows), mean_probability, defective_share. Rows without a probability are out.
    """
    rows = _with_outcomes(predictions[predictions["p_defective"].notna()])
    rows = rows.assign(bin=_bin(rows["p_defective"].to_numpy(), bins))
    found = rows.groupby("bin").agg(
        n=("bin", "size"), mean_probability=("p_defective", "mean"), defective_share=("is_defective", "mean")
    )
    edges = {"low": found.index.to_numpy() / bins, "high": (found.index.to_numpy() + 1) / bins}
    return found.assign(**edges).reset_index()[["low", "high", "n", "mean_probability", "defective_share"]]


def _groups(predictions: pd.DataFrame):
    for (model, decoding, source), rows in predictions.groupby(["model", "decoding", "source"], sort=True):
        yield (model, decoding, source, ALL, ALL, ALL, ALL), rows
        for (kind, shot), asked in rows.groupby(["kind", "shot"], sort=True):
            head = (model, decoding, source, kind, shot)
            yield (*head, ALL, ALL), asked
            for view, seen in asked.groupby("view", sort=True):
                yield (*head, view, ALL), seen
                for image_type, typed in seen.groupby("expected_image_type", sort=True):
                    yield (*head, view, image_type), typed


def _with_outcomes(predictions: pd.DataFrame) -> pd.DataFrame:
    parses = predictions["parses"].astype(bool)
    right = {
        f"{field}_right": parses & (predictions[f"found_{field}"] == predictions[f"expected_{field}"])
        for field in FIELDS
    }
    return predictions.assign(
        parses=parses,
        not_answered=~parses,
        exact=parses & (predictions["answer"] == predictions["expected"]),
        is_defective=predictions["expected_judgement"] == DEFECTIVE,
        judged_passed=parses & (predictions["found_judgement"] == PASSED),
        judged_defective=parses & (predictions["found_judgement"] == DEFECTIVE),
        **right,
    )


def _outcome_by_key(table: pd.DataFrame, outcome: str, on: list[str]) -> pd.Series:
    rows = _with_outcomes(table)
    column = "exact" if outcome == "exact_match" else f"{outcome}_right"
    if column not in rows:
        raise ValueError(f"expected the outcome 'exact_match' or one of {list(FIELDS)}, found {outcome!r}")
    keyed = rows.set_index(on)[column]
    if keyed.index.has_duplicates:
        raise ValueError(f"a row stands twice under {on}, such as {keyed.index[keyed.index.duplicated()][0]}")
    return keyed


def _proportion(hits: np.ndarray, captures: int, confidence: float) -> Estimate:
    n = len(hits)
    if n == 0:
        return Estimate(None, 0, 0, None, None)
    share = float(hits.mean())
    low, high = wilson(share * captures, captures, confidence)
    return Estimate(share, n, captures, low, high)


def _balanced_accuracy(
    defective: pd.DataFrame, passed: pd.DataFrame, confidence: float, samples: int, seed: int
) -> Estimate:
    n, captures = len(defective) + len(passed), defective["file"].nunique() + passed["file"].nunique()
    if defective.empty or passed.empty:
        return Estimate(None, n, captures, None, None)
    recalls = [
        _proportion(rows["judgement_right"].to_numpy(), rows["file"].nunique(), confidence)
        for rows in (defective, passed)
    ]
    value = (recalls[0].value + recalls[1].value) / 2
    if any(recall.value in (0.0, 1.0) for recall in recalls):
        low = value - sqrt(sum((recall.value - recall.low) ** 2 for recall in recalls)) / 2
        high = value + sqrt(sum((recall.high - recall.value) ** 2 for recall in recalls)) / 2
        return Estimate(value, n, captures, max(0.0, low), min(1.0, high))
    random = np.random.default_rng(seed)
    resampled = (_resampled_recall(defective, samples, random) + _resampled_recall(passed, samples, random)) / 2
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(value, n, captures, float(low), float(high))


def _resampled_recall(rows: pd.DataFrame, samples: int, random: np.random.Generator) -> np.ndarray:
    """Share of right judgements in `samples` draws of whole captures with replacement: float64 (samples,)."""
    by_capture = rows.groupby("file")["judgement_right"].agg(["sum", "count"]).to_numpy(float)
    captures = len(by_capture)
    draws = random.multinomial(captures, np.full(captures, 1 / captures), size=samples) @ by_capture
    return draws[:, 0] / draws[:, 1]


def _auroc(rows: pd.DataFrame, confidence: float) -> Estimate:
    scored = rows[rows["p_defective"].notna()]
    captures = scored.groupby("is_defective")["file"].nunique()
    n = len(scored)
    if len(captures) < 2:
        return Estimate(None, n, int(captures.sum()), None, None)
    value = float(roc_auc_score(scored["is_defective"], scored["p_defective"]))
    low, high = _newcombe(value, int(captures[True]), int(captures[False]), confidence)
    return Estimate(value, n, int(captures.sum()), low, high)


def _newcombe(auroc: float, defective: int, passed: int, confidence: float) -> tuple[float, float]:
    z = norm.ppf(0.5 + confidence / 2)
    mean_other = (defective + passed) / 2 - 1

    def spread(theta: float) -> float:
        shape = 1 + mean_other * (1 - theta) / (2 - theta) + mean_other * theta / (1 + theta)
        return z * sqrt(theta * (1 - theta) * shape / (defective * passed))

    # At 0 and 1 the spread is 0 and every bound a root: a hair inside, the other root is found.
    hair = 1e-9
    low = 0.0 if auroc == 0 else brentq(lambda theta: auroc - theta - spread(theta), 0.0, auroc * (1 - hair))
    high = 1.0 if auroc == 1 else brentq(lambda theta: theta - auroc - spread(theta), auroc + (1 - auroc) * hair, 1.0)
    return low, high


def _ece(rows: pd.DataFrame, confidence: float, samples: int, seed: int) -> Estimate:
    """The expected calibration error of P(defective): over equally wide bins, the mean of |share of defective captures
    - mean probability|, each bin weighted by its rows.

    Naeini, Cooper and Hauskrecht, AAAI 2015, who bin the probability of the positive class as is done here; Guo et al.,
    ICML 2017, bin the probability of the predicted class instead.
    """
    scored = rows[rows["p_defective"].notna()]
    n, captures = len(scored), scored["file"].nunique()
    if not n:
        return Estimate(None, 0, 0, None, None)
    # |share - mean probability| x rows of a bin is |sum of (defective - probability)|: sums of captures, so to add up.
    surplus = np.zeros((captures, BINS))
    place = pd.factorize(scored["file"])[0]
    gaps = (scored["is_defective"] - scored["p_defective"]).to_numpy(float)
    np.add.at(surplus, (place, _bin(scored["p_defective"].to_numpy(), BINS)), gaps)
    counts = np.bincount(place).astype(float)
    draws = np.random.default_rng(seed).multinomial(captures, np.full(captures, 1 / captures), size=samples)
    resampled = np.abs(draws @ surplus).sum(axis=1) / (draws @ counts)
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float(np.abs(surplus.sum(axis=0)).sum() / n), n, captures, float(low), float(high))


def _bin(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """The number of each probability's bin: int64 (n,); 1 itself lies in the last one."""
    return np.minimum((probabilities * bins).astype(int), bins - 1)


def _stratified_draws(defective: np.ndarray, samples: int, random: np.random.Generator) -> np.ndarray:
    """How often each capture is drawn, with replacement among those of its judgement: float64 (samples, captures)."""
    weights = np.zeros((samples, len(defective)))
    for stratum in (defective, ~defective):
        size = int(stratum.sum())
        if size:
            weights[:, stratum] = random.multinomial(size, np.full(size, 1 / size), size=samples)
    return weights


class _ByCapture:
    """The outcomes of a table, added up by capture, so that drawing captures is a product of matrices.

    rows: with outcomes. captures: the files, in the order of the weights.
    """

    def __init__(self, rows: pd.DataFrame, captures: Sequence[str]) -> None:
        self._rows = rows.assign(place=pd.Categorical(rows["file"], categories=captures).codes)
        self.defective = self._rows.groupby("place")["is_defective"].first().to_numpy(bool)

    def scores(self, metric: str, weights: np.ndarray) -> np.ndarray | None:
        """The score for each line of `weights` (samples, captures): float64 (samples,); None where there is none."""
        rows = self._rows
        defective, passed = rows["is_defective"], ~rows["is_defective"]
        if metric == "auroc":
            return self._auroc(weights)
        if metric == "balanced_accuracy":
            recalls = [self._share(rows[one], "judgement_right", weights) for one in (defective, passed)]
            return None if any(recall is None for recall in recalls) else (recalls[0] + recalls[1]) / 2
        of, outcome = {
            "exact_match": (rows, "exact"),
            "parse_rate": (rows, "parses"),
            "address_on_defective": (rows[defective], "defect_position_right"),
            "mode_on_defective": (rows[defective], "defect_mode_right"),
            "escape_rate": (rows[defective], "judged_passed"),
            "overkill_rate": (rows[passed], "judged_defective"),
        }[metric]
        return self._share(of, outcome, weights)

    def _share(self, rows: pd.DataFrame, outcome: str, weights: np.ndarray) -> np.ndarray | None:
        if rows.empty:
            return None
        captures = weights.shape[1]
        hits = np.bincount(rows["place"], rows[outcome].astype(float), minlength=captures)
        return weights @ hits / (weights @ np.bincount(rows["place"], minlength=captures))

    def _auroc(self, weights: np.ndarray) -> np.ndarray | None:
        """Of all pairs of a defective and a passed row, the share in which the defective one has the higher
        probability; ties count half."""
        rows, captures = self._rows, weights.shape[1]
        if rows["p_defective"].isna().any() or rows["is_defective"].nunique() < 2:
            return None
        defective, passed = rows[rows["is_defective"]], rows[~rows["is_defective"]]
        gaps = defective["p_defective"].to_numpy()[:, None] - passed["p_defective"].to_numpy()
        wins = np.zeros((captures, captures))
        np.add.at(wins, (defective["place"].to_numpy()[:, None], passed["place"].to_numpy()), (np.sign(gaps) + 1) / 2)
        sizes = [np.bincount(part["place"], minlength=captures) for part in (defective, passed)]
        return ((weights @ wins) * weights).sum(axis=1) / ((weights @ sizes[0]) * (weights @ sizes[1]))
