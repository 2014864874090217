"""The output of `pinspect score`: the scores, the confusion of judgements and the misses."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from pinspect.evaluation.folder_score import FolderScore
from pinspect.evaluation.score_names import SCORE_NAMES

_MISSES = 20  # that are printed; the page has all of them


def print_score(score: FolderScore, page: Path) -> None:
    """Print a score and the path of its page."""
    console = Console(markup=False, emoji=False)
    inspected, n = len(score.inspected), len(score.answered)
    console.print(f"version {score.version} of {score.model} on {score.folder}: {inspected} of {n} captures inspected")
    console.print(_scores(score), _confusion(score))
    for miss in score.misses[:_MISSES]:
        expected, answered = (" ".join(dict.fromkeys(each.values())) for each in (miss.expected, miss.answered))
        chance = "" if miss.p_defective is None else f", P(defective) {miss.p_defective:.3f}"
        pins = ", ".join(f"{pin} {share:.2f}" for pin, share in miss.suspicious_pins.items())
        pins = f"; most suspicious: {pins}" if pins else ""
        console.print(
            f"{miss.outcome}: {miss.file}: expected {expected}, answered {answered or 'nothing'}{chance}{pins}"
        )
    if len(score.misses) > _MISSES:
        console.print(f"{len(score.misses) - _MISSES} more misses: see the page")
    for file, reason in score.not_inspected.items():
        console.print(f"not inspected: {file}: {reason}")
    for remark in score.remarks:
        console.print(remark)
    for file in score.trained_on:
        console.print(
            f"{file}: the project trains on this capture, so it proves nothing; remove it from {score.folder}"
        )
    console.print(f"page: {page}", soft_wrap=True)


def _scores(score: FolderScore) -> Table:
    table = Table()
    for label in ("score", "value", f"{score.settings.confidence:.0%} interval", "n"):
        table.add_column(label, justify="left" if label == "score" else "right")
    for name, label in SCORE_NAMES.items():
        estimate = score.scores[name]
        if estimate.value is not None:
            table.add_row(label, f"{estimate.value:.3f}", f"{estimate.low:.3f} - {estimate.high:.3f}", str(estimate.n))
    return table


def _confusion(score: FolderScore) -> Table:
    table = Table("expected \\ answered")
    counts = score.modes.loc[:, (score.modes > 0).any()]
    for answered in counts.columns:
        table.add_column(answered, justify="right")
    for expected, row in counts.iterrows():
        table.add_row(str(expected), *map(str, row))
    return table
