"""Figures of an evaluation: tables that `dvc plots show` draws, and SVG for the report."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.evaluation import metrics

# Each ink becomes the page's own colour of that name, so that a figure follows the page into the dark.
INK, SOFT, RULE, BLUE, RED, GREEN = "#1b1d21", "#646a73", "#c9ccd1", "#1f3a5f", "#a63a1e", "#3d7a57"
_COLOURS = {INK: "ink", SOFT: "soft", RULE: "rule", BLUE: "blue", RED: "red", GREEN: "green"}
_SERIES = ({"color": BLUE}, {"color": RED, "linestyle": (0, (5, 2))}, {"color": GREEN, "linestyle": (0, (1, 1.4))})
_STYLE = {
    "svg.fonttype": "none",  # the page's own typeface
    "svg.hashsalt": "pinspect",  # the same figure is the same text
    "font.size": 9,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.2,
}
_SIZE = (4.4, 3.3)
_LARGEST_LOGIT = 9.0  # a probability nearer to 0 or 1 than 1 in 8000 is drawn there


def write_plot_tables(shown: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write what `dvc plots show` draws and return the files.

    shown: predictions by the name of the series, such as `zero_shot`. Each makes `confusion_<name>.csv` (one line per
    answer: expected, found mode) and, where it has probabilities, `roc_<name>.csv`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in shown.items():
        found = rows["found_defect_mode"].where(rows["parses"].astype(bool), metrics.NOT_ANSWERED)
        pairs = pd.DataFrame({"expected": rows["expected_defect_mode"], "found": found})
        written += [
            _write(pairs, folder / f"confusion_{name}.csv"),
            _write(metrics.roc(rows), folder / f"roc_{name}.csv"),
        ]
    return written


def roc_figure(series: Mapping[str, pd.DataFrame], operating_point: tuple[float, float] | None = None) -> str:
    """The ROC curves of several predictions tables, by their names, as SVG; empty where none has probabilities.

    operating_point: overkill rate and caught rate that the chosen threshold reaches on the same rows.
    """
    curves = {name: metrics.roc(rows) for name, rows in series.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=0.8, linestyle=(0, (4, 3)))
        # The first curve is the widest and lies below: where curves agree, all of them can still be seen.
        for number, ((name, curve), style) in enumerate(zip(curves.items(), _SERIES, strict=False)):
            width = 3.2 - number
            axes.plot(curve["overkill_rate"], curve["caught_rate"], linewidth=width, label=name, **style)
        if operating_point:
            axes.scatter(*operating_point, s=80, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=3)
            axes.scatter([], [], s=50, facecolors="none", edgecolors=INK, linewidths=1.3, label="operating point")
        axes.set(xlabel="overkill rate", ylabel="caught rate (1 − escape rate)", xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
        axes.legend(loc="lower right")
        return _svg(figure)


def separation_figure(rows: pd.DataFrame, threshold: float | None = None) -> str:
    """P(defective) of every answer as one mark, on a log-odds scale, the truth above one another, as SVG.

    Says what a perfect ROC cannot: how far the nearest captures of both sides lie apart. Empty without probabilities.
    """
    rows = rows[rows["p_defective"].notna()]
    if rows.empty:
        return ""
    names = {DEFECTIVE: RED, PASSED: BLUE}
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for height, (judgement, ink) in enumerate(reversed(names.items())):
            found = rows.loc[rows["expected_judgement"] == judgement, "p_defective"].sort_values()
            # Spread by rank, so that marks at one place do not hide how many they are.
            spread = height + 0.5 * ((np.arange(len(found)) * 0.618) % 1 - 0.5)
            axes.plot(_log_odds(found), spread, "o", color=ink, markersize=4, alpha=0.55, markeredgewidth=0)
        if threshold is not None:
            axes.vlines(_log_odds(threshold), -0.6, 1.58, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            axes.text(_log_odds(threshold), 1.62, f"threshold {threshold:.3g}", ha="center", va="bottom", fontsize=8)
        ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
        axes.set_xticks(_log_odds(ticks), [f"{tick:g}" for tick in ticks], fontsize=8)
        axes.set_yticks([1, 0], list(names))
        axes.tick_params(axis="y", length=0)
        limit = _LARGEST_LOGIT + 0.5
        axes.set(xlabel="P(defective)", xlim=(-limit, limit), ylim=(-0.6, 1.75))
        return _svg(figure)


def reliability_figure(bins: pd.DataFrame) -> str:
    """Predicted against observed share of defective captures, one dot a bin with its count beside it, as SVG.

    bins: columns n, mean_probability and defective_share. A dot's area grows with n. Empty without bins.
    """
    bins = bins[bins["n"] > 0]
    if bins.empty:
        return ""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=RULE, linewidth=0.8, linestyle=(0, (4, 3)))
        area = 20 + 180 * bins["n"] / bins["n"].max()
        axes.plot(bins["mean_probability"], bins["defective_share"], color=BLUE, linewidth=0.8, alpha=0.5)
        axes.scatter(bins["mean_probability"], bins["defective_share"], s=area, color=BLUE, alpha=0.75, linewidths=0)
        for row in bins.itertuples():
            right = row.mean_probability < 0.5
            axes.annotate(
                f"n = {row.n}",
                (row.mean_probability, row.defective_share),
                xytext=(10 if right else -10, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
            )
        axes.set(xlabel="P(defective), mean of a bin", ylabel="share that is defective")
        axes.set(xlim=(-0.06, 1.06), ylim=(-0.08, 1.08))
        return _svg(figure)


def learning_curve_figure(curve: pd.DataFrame) -> str:
    """Loss over training steps, as SVG: every step faint, their running mean strong; validation losses as dots.

    curve: columns step, loss and, where there was a validation split, validation_loss (empty at most steps). The loss
    has a logarithmic axis: it falls by orders of magnitude.
    """
    if curve.empty:
        return ""
    smooth = curve["loss"].rolling(max(1, len(curve) // 20), min_periods=1, center=True).mean()
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        axes.plot(curve["step"], curve["loss"], color=BLUE, linewidth=0.6, alpha=0.35)
        axes.plot(curve["step"], smooth, color=BLUE, linewidth=1.6, label="training, running mean")
        if "validation_loss" in curve and curve["validation_loss"].notna().any():
            checked = curve[curve["validation_loss"].notna()]
            axes.plot(checked["step"], checked["validation_loss"], "o", color=RED, markersize=4, label="validation")
        axes.legend(loc="upper right")
        if (curve["loss"] > 0).all():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="training step", ylabel="loss on answer tokens", xlim=(0, None))
        return _svg(figure)


def _axes():
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.subplots()


def _log_odds(probability: float | Sequence[float] | pd.Series) -> np.ndarray:
    share = np.clip(np.asarray(probability, np.float64), 1e-12, 1 - 1e-12)
    return np.clip(np.log(share / (1 - share)), -_LARGEST_LOGIT, _LARGEST_LOGIT)


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with its place; ids are unique to this figure's content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)
    for ink, name in _COLOURS.items():
        text = text.replace(ink, f"var(--{name}, {ink})")
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    return re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)


def _write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False, lineterminator="\n")
    return path
