"""The charts of the report."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, log10

import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.charts import BLUE, GREEN, INK, RED, RULE, Axis, Chart
from pinspect.evaluation import metrics

_LARGEST_LOGIT = 9.0  # probabilities nearer to 0 or 1 than 1 in 8000 are drawn at this place
_SERIES = ((BLUE, ""), (RED, "6 3"), (GREEN, "2 2"), (INK, "1 3"))
_SHARES = [(share, f"{share:g}") for share in (0, 0.2, 0.4, 0.6, 0.8, 1)]


def roc_figure(series: Mapping[str, pd.DataFrame], operating_point: tuple[float, float] | None = None) -> str:
    """Draw the ROC curves of several predictions tables.

    Args:
        series: Name in the legend -> predictions.
        operating_point: Overkill rate and caught rate that the chosen threshold reaches on the same rows.

    Returns:
        SVG; empty where no table has probabilities of both judgements.
    """
    curves = {name: metrics.roc(rows) for name, rows in series.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return ""
    chart = Chart(
        Axis(-0.03, 1.03, _SHARES, "overkill rate"),
        Axis(-0.03, 1.05, _SHARES, "caught rate (1 − escape rate)"),
        "ROC of P(defective)",
    )
    chart.line([0, 1], [0, 1], RULE, width=0.8, dash="4 3")
    # The first curve is the widest and lies below: where curves agree, all of them can still be seen.
    for number, ((name, curve), (color, dash)) in enumerate(zip(curves.items(), _SERIES, strict=False)):
        xs, ys = curve["overkill_rate"].tolist(), curve["caught_rate"].tolist()
        chart.line(xs, ys, color, width=3.4 - 0.8 * number, dash=dash, label=name)
    if operating_point:
        chart.dots(
            [operating_point[0]], [operating_point[1]], INK, radii=6, hollow=True, label="operating point, zero-shot"
        )
    return chart.svg()


def separation_figure(answers: pd.DataFrame, threshold: float | None = None) -> str:
    """Draw P(defective) of every answer as a dot, on a log-odds axis, one band per expected judgement.

    The figure shows what a perfect ROC cannot: how far apart the nearest captures of both judgements are.

    Args:
        answers: Predictions.
        threshold: The operating point.

    Returns:
        SVG; empty without probabilities.
    """
    answers = answers[answers["p_defective"].notna()]
    if answers.empty:
        return ""
    limit = _LARGEST_LOGIT + 0.5
    ticks = [(_log_odds(share), f"{share:g}") for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)]
    chart = Chart(
        Axis(-limit, limit, ticks, "P(defective)"),
        Axis(-0.6, 1.8, [(0, PASSED), (1, DEFECTIVE)]),
        "P(defective) of every answer",
    )
    for height, (judgement, color) in enumerate(((PASSED, BLUE), (DEFECTIVE, RED))):
        chances = answers.loc[answers["expected_judgement"] == judgement, "p_defective"].sort_values()
        # Spread by rank, so that dots in one place do not hide how many they are.
        heights = height + 0.5 * ((np.arange(len(chances)) * 0.618) % 1 - 0.5)
        chart.dots([_log_odds(chance) for chance in chances], heights.tolist(), color, opacity=0.55)
    if threshold is not None:
        place = _log_odds(threshold)
        chart.line([place, place], [-0.6, 1.58], INK, width=1, dash="4 2")
        chart.text(place, 1.68, f"threshold {threshold:.3g}")
    return chart.svg()


def reliability_figure(bins: pd.DataFrame) -> str:
    """Draw predicted against observed shares of defective captures, one dot per bin with its count.

    Args:
        bins: Columns n, mean_probability and defective_share. The area of a dot grows with n.

    Returns:
        SVG; empty without bins.
    """
    bins = bins[bins["n"] > 0]
    if bins.empty:
        return ""
    chart = Chart(
        Axis(-0.06, 1.06, _SHARES, "P(defective), mean of a bin"),
        Axis(-0.08, 1.08, _SHARES, "share of defective captures"),
        "Reliability of P(defective)",
    )
    chart.line([0, 1], [0, 1], RULE, width=0.8, dash="4 3")
    xs, ys = bins["mean_probability"].tolist(), bins["defective_share"].tolist()
    chart.line(xs, ys, BLUE, width=0.8, opacity=0.5)
    chart.dots(xs, ys, BLUE, radii=[(6 + 60 * n / bins["n"].max()) ** 0.5 for n in bins["n"]], opacity=0.75)
    step, before = 0, (-1.0, -1.0)
    for x, y, n in zip(xs, ys, bins["n"], strict=True):
        anchor, shift = ("start", 12) if x < 0.5 else ("end", -12)
        # Below or above the label of a dot that is near.
        step = step + 1 if x - before[0] < 0.2 and abs(y - before[1]) < 0.1 else 0
        chart.text(x, y + (0.07 if y < 0.5 else -0.07) * step, f"n = {n}", anchor=anchor, shift=shift)
        before = x, y
    return chart.svg()


def learning_curve_figure(curve: pd.DataFrame) -> str:
    """Draw the loss over training steps: every step faint, the running mean strong, validation losses as dots.

    Args:
        curve: Columns step, loss and, where there was a validation split, validation_loss (empty at most steps).

    Returns:
        SVG; empty without steps. The loss has a logarithmic axis where all losses are above 0.
    """
    if curve.empty:
        return ""
    smooth = curve["loss"].rolling(max(1, len(curve) // 20), min_periods=1, center=True).mean()
    checked = curve[curve["validation_loss"].notna()] if "validation_loss" in curve else curve[:0]
    losses = pd.concat([curve["loss"], checked["validation_loss"] if len(checked) else curve["loss"][:0]])
    chart = Chart(
        Axis(0, float(curve["step"].max()), _step_ticks(float(curve["step"].max())), "training step"),
        _loss_axis(float(losses.min()), float(losses.max())),
        "Learning curve",
    )
    steps = curve["step"].tolist()
    chart.line(steps, curve["loss"].tolist(), BLUE, width=0.7, opacity=0.4)
    chart.line(steps, smooth.tolist(), BLUE, width=1.7, label="training, running mean")
    if len(checked):
        chart.dots(checked["step"].tolist(), checked["validation_loss"].tolist(), RED, label="validation")
    return chart.svg(legend="top right")


def _loss_axis(low: float, high: float) -> Axis:
    label = "loss on answer tokens"
    if low <= 0 or low == high:
        return Axis(min(low, 0), max(high, 1e-9), [(0, "0"), (high, f"{high:.2g}")], label)
    ticks = [10.0**power for power in range(-9, 6) if low <= 10.0**power <= high]
    if len(ticks) < 2:
        ticks = [low, high]
    return Axis(low, high, [(tick, f"{tick:.2g}") for tick in ticks], label, scale=log10)


def _step_ticks(last: float) -> list[tuple[float, str]]:
    step = next((size for size in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if last / size <= 6), last / 5)
    return [(tick, f"{tick:g}") for tick in np.arange(0, last + 1e-9, step)]


def _log_odds(probability: float) -> float:
    share = min(max(float(probability), 1e-12), 1 - 1e-12)
    return min(max(log(share / (1 - share)), -_LARGEST_LOGIT), _LARGEST_LOGIT)
