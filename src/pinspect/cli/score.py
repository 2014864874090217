"""The output of `pinspect score`: the scores, the confusion of judgements and the misses."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from pinspect.evaluation.folder_score import FolderScore, Miss
from pinspect.evaluation.score_names import SCORE_NAMES

_MISSES = 20  # that are printed; the page has all of them
_NAMED = 5  # training captures that are printed


def print_score(score: FolderScore, page: Path) -> None:
    """Print a score and the path of its page."""
    console = Console(markup=False, emoji=False, highlight=False)
    inspected, n = len(score.inspected), len(score.answered)
    console.print(_scores(score), _confusion(score))
    lines = [
        f"version {score.version} of {score.model} on {score.folder}: {inspected} of {n} captures inspected",
        *map(_miss, score.misses[:_MISSES]),
        *([f"{len(score.misses) - _MISSES} more misses: see the page"] if len(score.misses) > _MISSES else []),
        *(f"not inspected: {file}: {reason}" for file, reason in score.not_inspected.items()),
        *score.remarks,
        *([_trained_on(score)] if score.trained_on else []),
        f"page: {page}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _miss(miss: Miss) -> str:
    expected, answered = (" ".join(dict.fromkeys(each.values())) for each in (miss.expected, miss.answered))
    chance = "" if miss.p_defective is None else f", P(defective) {miss.p_defective:.3f}"
    pins = ", ".join(f"{pin} {share:.2f}" for pin, share in miss.suspicious_pins.items())
    return (
        f"{miss.outcome}: {miss.file}: expected {expected}, answered {answered or 'nothing'}{chance}"
        f"{'; most suspicious: ' if pins else ''}{pins}"
    )


def _trained_on(score: FolderScore) -> str:
    names = [*score.trained_on[:_NAMED], *(["..."] if len(score.trained_on) > _NAMED else [])]
    return (
        f"{len(score.trained_on)} of {len(score.answered)} captures are in the project's training split, so these "
        f"scores are too good; remove them from {score.folder}: {', '.join(names)}"
    )


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
    table = Table("expected", title="expected and answered modes", title_justify="left")
    counts = score.modes.loc[:, (score.modes > 0).any()]
    for answered in counts.columns:
        table.add_column(answered, justify="right", overflow="fold")
    for expected, row in counts.iterrows():
        table.add_row(str(expected), *map(str, row))
    return table
