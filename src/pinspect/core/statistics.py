"""Intervals of proportions and of the AUROC."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from scipy.optimize import brentq  # pyright: ignore[reportUnknownVariableType]
from scipy.stats import norm


def wilson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of the proportion `hits / n`.

    Args:
        hits: Number of hits, 0 to n. A fraction is allowed.
        n: Number of trials, above 0.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        Lower and upper bound, 0..1.

    Raises:
        ValueError: `hits` or `n` is outside its range.
    """
    if not 0 <= hits <= n or n <= 0:
        raise ValueError(f"expected 0 <= hits <= n with n above 0, found hits={hits}, n={n}")
    z = float(norm.ppf(0.5 + confidence / 2))
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the exact bound is the share itself; rounding would move the bound slightly inside.
    return (0.0 if hits == 0 else max(0.0, center - half)), (1.0 if hits == n else min(1.0, center + half))


def newcombe(auroc: float, positive: int, negative: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval of an AUROC (2006, method 5), which stays valid at 0 and 1.

    Args:
        auroc: The area under the ROC, 0..1.
        positive: Number of positive cases, above 0.
        negative: Number of negative cases, above 0.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        Lower and upper bound, 0..1.
    """
    z = float(norm.ppf(0.5 + confidence / 2))
    mean_other = (positive + negative) / 2 - 1

    def spread(theta: float) -> float:
        shape = 1 + mean_other * (1 - theta) / (2 - theta) + mean_other * theta / (1 + theta)
        return z * sqrt(theta * (1 - theta) * shape / (positive * negative))

    # At 0 and 1 the spread is 0 and every bound is a root; just inside, the other root is found.
    inside = 1e-9
    low = 0.0 if auroc == 0 else _root(lambda theta: auroc - theta - spread(theta), 0.0, auroc * (1 - inside))
    high = 1.0 if auroc == 1 else _root(lambda theta: theta - auroc - spread(theta), auroc + (1 - auroc) * inside, 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(brentq(function, low, high))
