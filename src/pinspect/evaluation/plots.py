"""Figures of an evaluation: tables that `dvc plots show` draws, and SVG for the report."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from pinspect.evaluation import metrics

_INKS = ("#1f3a5f", "#b3541e", "#6b7280", "#3d7a57")
_STYLE = {
    "svg.fonttype": "none",  # the page's own typeface
    "svg.hashsalt": "pinspect",  # the same figure is the same text
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.6,
    "axes.labelcolor": "#222222",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
}


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


def roc_figure(series: Mapping[str, pd.DataFrame]) -> str:
    """The ROC curves of several predictions tables, by their names, as SVG; empty where none has probabilities."""
    curves = {name: metrics.roc(rows) for name, rows in series.items()}
    curves = {name: curve for name, curve in curves.items() if len(curve)}
    if not curves:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=0.7, linestyle=(0, (4, 3)))
        for (name, curve), ink in zip(curves.items(), _INKS, strict=False):
            axes.plot(curve["overkill_rate"], curve["caught_rate"], color=ink, linewidth=1.4, label=name, clip_on=False)
        axes.set(xlabel="overkill rate", ylabel="caught rate (1 − escape rate)", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        axes.legend(loc="lower right", fontsize=8, handlelength=1.4)
        return _svg(figure)


def learning_curve_figure(curve: pd.DataFrame) -> str:
    """Loss over training steps, as SVG: every step faint, their running mean strong; validation losses as dots.

    curve: columns step, loss and, where there was a validation split, validation_loss (empty at most steps).
    """
    if curve.empty:
        return ""
    smooth = curve["loss"].rolling(max(1, len(curve) // 20), min_periods=1, center=True).mean()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(curve["step"], curve["loss"], color=_INKS[0], linewidth=0.6, alpha=0.35)
        axes.plot(curve["step"], smooth, color=_INKS[0], linewidth=1.4)
        if "validation_loss" in curve and curve["validation_loss"].notna().any():
            checked = curve[curve["validation_loss"].notna()]
            axes.plot(
                checked["step"], checked["validation_loss"], "o", color=_INKS[1], markersize=3, label="validation"
            )
            axes.plot([], [], color=_INKS[0], linewidth=1.4, label="training")
            axes.legend(loc="upper right", fontsize=8, handlelength=1.4)
        axes.set(xlabel="training step", ylabel="loss on answer tokens", xlim=(0, None), ylim=(0, None))
        return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element that scales with its place; ids are unique to this figure's content."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)
    prefix = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    return re.sub(r'(href="|url\()#', rf"\1#{prefix}", text)


def _write(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False, lineterminator="\n")
    return path
