"""Scores of a predictions table, each with its number of rows and an interval.

How answers count:

* An answer that breaks the contract is wrong in every field.
* An unreadable answer to a defective capture is not an escape, since nobody would let the part pass because of it: it
  counts as *not answered*. An unreadable answer to a passed capture is not an overkill. Both are wrong for the balanced
  accuracy.
* Intervals of proportions are Wilson's. Where a group holds several rows of one capture (two views, two shots), its
  rows are not independent: the interval then uses the number of captures, which can only widen it.
* The interval of the balanced accuracy comes from resampling captures within each class (percentile bootstrap). Where a
  class has no error, or only errors, resampling shows no spread; then Wilson's intervals of the two recalls are
  combined instead (Donner and Zou's MOVER).
* The interval of the AUROC is Newcombe's (2006, method 5), which stays valid at 1.
* The expected calibration error (ECE) of P(defective) is never negative, and few captures bias it upwards. Its interval
  comes from resampling captures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve

from pinspect.core.answers import DEFECTIVE, FIELDS, PASSED
from pinspect.core.files import write_file
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.core.statistics import newcombe, wilson

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
BINS = 10  # of P(defective), equally wide, as is usual for the ECE


@dataclass(frozen=True)
class Estimate:
    """A score with its interval.

    Attributes:
        value: The score; None where there is nothing to score.
        n: Number of rows that the score is a share of.
        captures: Number of different captures among the rows.
        low: Lower bound; None where `value` is None.
        high: Upper bound; None where `value` is None.
    """

    value: float | None
    n: int
    captures: int
    low: float | None
    high: float | None


def score(
    predictions: pd.DataFrame, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> dict[str, Estimate]:
    """Compute every one of `METRICS`, in that order.

    Args:
        predictions: Predictions table.
        confidence: Coverage of the intervals, between 0 and 1.
        bootstrap_samples: Number of bootstrap draws.
        seed: Seed of the draws. The same rows and seed give the same numbers.

    Returns:
        Metric -> estimate.
    """
    rows = with_outcomes(predictions)
    defective, passed = rows[rows["is_defective"]], rows[~rows["is_defective"]]

    def share(counted: pd.DataFrame, outcome: str) -> Estimate:
        return _proportion(counted[outcome].to_numpy(), counted["file"].nunique(), confidence)

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
    """Compute the scores of every group of rows.

    Each model, decoding and source has a group of all its rows (`all`) and a group for each kind and shot, which is
    divided by view, and then by image type.

    Args:
        predictions: Predictions table.
        confidence: As in `score`.
        bootstrap_samples: As in `score`.
        seed: As in `score`.

    Returns:
        One row per group and metric: the columns of `GROUP`, then metric, value, n, captures, low, high.
    """
    lines = []
    for key, rows in _groups(predictions):
        scores = score(rows, confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed)
        lines += [(*key, name, *astuple(estimate)) for name, estimate in scores.items()]
    return pd.DataFrame(lines, columns=[*GROUP, "metric", "value", "n", "captures", "low", "high"])


def write_scores(scores: pd.DataFrame, path: Path) -> None:
    """Write a table of `score_table` as CSV, numbers with six decimals."""
    write_file(path, scores.to_csv(index=False, lineterminator="\n", float_format="%.6f"))


def confusion(predictions: pd.DataFrame, modes: Sequence[str]) -> pd.DataFrame:
    """Count expected (rows) against answered (columns) defect modes.

    Args:
        predictions: Predictions table.
        modes: The defect modes of the contract.

    Returns:
        int (modes + 1, modes + 2): both axes start with `passed`; the last column, `not answered`, counts answers that
        break the contract.
    """
    names = [PASSED, *modes]
    answered = predictions["found_defect_mode"].where(predictions["parses"].astype(bool), NOT_ANSWERED)
    counts = pd.crosstab(predictions["expected_defect_mode"], answered)
    return counts.reindex(index=names, columns=[*names, NOT_ANSWERED], fill_value=0)


def address_errors(predictions: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Count the address errors of each pin.

    Args:
        predictions: Predictions table.
        layout: Layout of the pins.

    Returns:
        One line per address (the index): `defective`, how often the pin was the defective one; `wrong`, how often the
        answer then named another address or none; `named`, how often the pin was named although it was not defective.
    """
    expected, answered = predictions["expected_defect_position"], predictions["found_defect_position"]
    missed = predictions[(expected != NO_ADDRESS) & (answered != expected)]
    named = predictions[(answered != expected) & ~answered.isin([NO_ADDRESS, ""])]
    addresses = [str(address) for address in layout.addresses]
    counts = {
        "defective": expected.value_counts(),
        "wrong": missed["expected_defect_position"].value_counts(),
        "named": named["found_defect_position"].value_counts(),
    }
    return pd.DataFrame({name: count.reindex(addresses, fill_value=0) for name, count in counts.items()})


def roc(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compute the ROC of `p_defective`.

    Args:
        predictions: Predictions table.

    Returns:
        Columns threshold, overkill_rate and caught_rate (1 - escape rate), 0..1. Empty where the rows have no
        probability or one judgement only.
    """
    rows = predictions[predictions["p_defective"].notna()]
    truth = rows["expected_judgement"] == DEFECTIVE
    if truth.nunique() < 2:
        return pd.DataFrame(columns=["threshold", "overkill_rate", "caught_rate"], dtype=float)
    overkill, caught, threshold = roc_curve(truth, rows["p_defective"])
    return pd.DataFrame({"threshold": threshold, "overkill_rate": overkill, "caught_rate": caught})


def reliability(predictions: pd.DataFrame, bins: int = BINS) -> pd.DataFrame:
    """Compare P(defective) with the share of defective captures, in equally wide bins of P(defective).

    Args:
        predictions: Predictions table. Rows without a probability are ignored.
        bins: Number of bins.

    Returns:
        One line per bin that has rows: low and high (its bounds), n (rows), mean_probability, defective_share.
    """
    rows = with_outcomes(predictions[predictions["p_defective"].notna()])
    rows = rows.assign(bin=_bin(rows["p_defective"].to_numpy(), bins))
    binned = rows.groupby("bin").agg(
        n=("bin", "size"), mean_probability=("p_defective", "mean"), defective_share=("is_defective", "mean")
    )
    edges = {"low": binned.index.to_numpy() / bins, "high": (binned.index.to_numpy() + 1) / bins}
    return binned.assign(**edges).reset_index()[["low", "high", "n", "mean_probability", "defective_share"]]


def _groups(predictions: pd.DataFrame):
    for (model, decoding, source), rows in predictions.groupby(["model", "decoding", "source"], sort=True):
        yield (model, decoding, source, ALL, ALL, ALL, ALL), rows
        for (kind, shot), prompted in rows.groupby(["kind", "shot"], sort=True):
            head = (model, decoding, source, kind, shot)
            yield (*head, ALL, ALL), prompted
            for view, viewed in prompted.groupby("view", sort=True):
                yield (*head, view, ALL), viewed
                for image_type, typed in viewed.groupby("expected_image_type", sort=True):
                    yield (*head, view, image_type), typed


def with_outcomes(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a predictions table with boolean columns added.

    These are `<field>_right` for each field of the answer, exact, not_answered, is_defective, judged_passed and
    judged_defective. An answer that breaks the contract is right in nothing.

    Args:
        predictions: Predictions table.
    """
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
    recalls = [float(rows["judgement_right"].mean()) for rows in (defective, passed)]
    value = sum(recalls) / 2
    if any(recall in (0.0, 1.0) for recall in recalls):
        sizes = [rows["file"].nunique() for rows in (defective, passed)]
        ends = [wilson(recall * size, size, confidence) for recall, size in zip(recalls, sizes, strict=True)]
        low = value - sqrt(sum((recall - end[0]) ** 2 for recall, end in zip(recalls, ends, strict=True))) / 2
        high = value + sqrt(sum((end[1] - recall) ** 2 for recall, end in zip(recalls, ends, strict=True))) / 2
        return Estimate(value, n, captures, max(0.0, low), min(1.0, high))
    random = np.random.default_rng(seed)
    resampled = (_resampled_recall(defective, samples, random) + _resampled_recall(passed, samples, random)) / 2
    low, high = np.quantile(resampled, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(value, n, captures, float(low), float(high))


def _resampled_recall(rows: pd.DataFrame, samples: int, random: np.random.Generator) -> np.ndarray:
    """Return the share of right judgements in each draw of whole captures with replacement: float64 (samples,)."""
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
    low, high = newcombe(value, int(captures[True]), int(captures[False]), confidence)
    return Estimate(value, n, int(captures.sum()), low, high)


def _ece(rows: pd.DataFrame, confidence: float, samples: int, seed: int) -> Estimate:
    """Estimate the expected calibration error of P(defective).

    It is the mean over equally wide bins of |share of defective captures - mean probability|, weighted by rows. The
    bins hold the probability of the positive class, as in Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML
    2017, bin the probability of the predicted class.
    """
    scored = rows[rows["p_defective"].notna()]
    n, captures = len(scored), scored["file"].nunique()
    if not n:
        return Estimate(None, 0, 0, None, None)
    # |share - mean probability| x rows of a bin is |sum of (defective - probability)|, which captures add up to.
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
    """Return the number of each probability's bin, int64 (n,); probability 1 lies in the last bin."""
    return np.minimum((probabilities * bins).astype(int), bins - 1)
