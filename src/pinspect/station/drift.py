"""Drift: whether the station's latest captures differ from the captures that the model was trained on.

Five quantities are tested separately:

    brightness, dst_background   of all captures, see `inspection.line_facts`
    p_defective                  P(defective) of the captures that the model judged passed
    uncertain                    share of captures with P(defective) between 0.05 and 0.95
    set_aside                    share of captures that cannot be aligned to the unit space

A line has few defects and a training set has many, so P(defective) over all captures would differ on every good day.
Therefore passed captures are compared with passed captures, and the share of uncertain captures is compared with the
share that the same mix of judgements had in validation. Neither depends on the number of defective captures.

A quantity has changed if three conditions hold. The difference is statistically significant: two-sample
Kolmogorov-Smirnov test; for shares, which count only if they rise, an exact test within each judgement; Bonferroni over
the quantities. The difference is at least `minimum_effect`. And the training set does not contain such captures: this
condition ends the warning after a retraining, because old captures stay in the training set and its distribution never
becomes that of the changed line. It also allows a day of production to be more uniform than the training set.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, ks_2samp

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.inspection.line_facts import LINE_FACTS
from pinspect.inspection.line_profile import PLACES, LineProfile, Sample
from pinspect.station.settings import DriftSettings

COLUMNS = ("judgement", "p_defective", "brightness", "dst_background", "error", "model_version")
QUANTITIES = (*LINE_FACTS, "p_defective", "uncertain", "set_aside")
SHARES = ("uncertain", "set_aside")
SURE = 0.05  # P(defective) between this value and its complement is uncertain

_NAMES = {
    "en": {
        "brightness": "image brightness",
        "dst_background": "DST background",
        "p_defective": "P(defective) of passed captures",
        "uncertain": "uncertain judgements",
        "set_aside": "captures that cannot be inspected",
    },
    "ja": {
        "brightness": "画像の明るさ",
        "dst_background": "DST の背景",
        "p_defective": "良品判定の P(defective)",
        "uncertain": "確信度の低い判定",
        "set_aside": "検査できない画像",
    },
}
_VALUES = {
    "en": "{name}: median {now:.2g}, {known:.2g} in {place}",
    "ja": "{name}: 中央値 {now:.2g}（{place} {known:.2g}）",
}
_SHARES = {"en": "{name}: {now:.0%}, {known:.0%} in {place}", "ja": "{name}: {now:.0%}（{place} {known:.0%}）"}
_PLACES = {"en": ("training", "validation"), "ja": ("学習時", "検証時")}
_FROM_VALIDATION = ("p_defective", "uncertain")


@dataclass(frozen=True)
class Change:
    """Test result of one quantity.

    Attributes:
        quantity: Name of the quantity, one of `QUANTITIES`.
        changed: Whether it has changed.
        captures: Number of the latest captures that have the quantity.
        known: Number of training or validation captures that have it.
        distance: Kolmogorov-Smirnov distance, 0..1; for a share, its rise, -1..1. None if there are too few captures.
        p: Probability of such a difference by chance; None if there are too few captures.
        now: Median, or share, of the latest captures; None if there are none.
        before: Median, or share, of the training or validation captures; None if there are none.
    """

    quantity: str
    changed: bool
    captures: int
    known: int
    distance: float | None = None
    p: float | None = None
    now: float | None = None
    before: float | None = None

    def summary(self, language: str = "en") -> str:
        """Describe the change in words. `language` is `en` or `ja`."""
        text = (_SHARES if self.quantity in SHARES else _VALUES)[language]
        place = _PLACES[language][self.quantity in _FROM_VALIDATION]
        return text.format(name=_NAMES[language][self.quantity], now=self.now, known=self.before, place=place)


@dataclass(frozen=True)
class DriftReport:
    """Test results of all quantities.

    Attributes:
        quantities: One result per quantity; empty if there is a problem.
        captures: Number of the latest captures that were compared.
        problem: Why drift cannot be measured; None if it can.
    """

    quantities: tuple[Change, ...]
    captures: int
    problem: str | None = None

    @property
    def changed(self) -> bool:
        """Whether any quantity has changed."""
        return any(change.changed for change in self.quantities)

    def summary(self, language: str = "en") -> str:
        """Describe all changes in words; empty if there are none. `language` is `en` or `ja`."""
        changes = [change.summary(language) for change in self.quantities if change.changed]
        return {"en": "; ", "ja": "、"}[language].join(changes)

    def to_dict(self) -> dict:
        """Return the report for JSON, with `changed` and a `summary` in each language."""
        return asdict(self) | {
            "quantities": [asdict(change) for change in self.quantities],
            "changed": self.changed,
            "summary": {language: self.summary(language) for language in _NAMES},
        }


@dataclass(frozen=True)
class _Stratum:
    """Captures of one judgement, and how many of them count: `known` before, `captures` now."""

    known: int
    known_counted: int
    captures: int
    counted: int


def measure_drift(profile: LineProfile | Mapping, latest: pd.DataFrame, settings: DriftSettings) -> DriftReport:
    """Compare the latest captures with the line profile of the version that inspects.

    Args:
        profile: The line profile, or its dict (`LineProfile.to_dict`).
        latest: `COLUMNS` of the results table, the newest capture first. Rows beyond `settings.window` are ignored. Of
            rows of another version than the newest capture's, only brightness and background count.
        settings: Window and thresholds.
    """
    rows: Any = latest[list(COLUMNS)].head(settings.window)
    if not isinstance(profile, LineProfile):
        try:
            profile = LineProfile.from_dict(profile)
        except ValueError as error:
            problem = (
                f"the line profile of this version cannot be read ({error}); run dvc repro and promote the new version"
            )
            return DriftReport((), len(rows), problem)
    # Rounded as in the profile, so that 0.99999 and 1 are equal.
    numbers = rows[["p_defective", *LINE_FACTS]].astype(float).round(PLACES)
    newest = rows["model_version"].dropna().head(1)
    answered = rows["model_version"].isin(newest)
    judged = {
        judgement: numbers.loc[answered & (rows["judgement"] == judgement), "p_defective"].dropna().to_numpy()
        for judgement in (PASSED, DEFECTIVE)
    }
    uncertain = [
        _Stratum(len(sample.values), _unsure(sample.values), len(judged[judgement]), _unsure(judged[judgement]))
        for judgement, sample in ((PASSED, profile.p_passed), (DEFECTIVE, profile.p_defective))
    ]
    lost = numbers["brightness"].isna() & rows["error"].notna()
    changes = (
        *(_compare(name, getattr(profile, name), numbers[name].dropna().to_numpy(), settings) for name in LINE_FACTS),
        _compare("p_defective", profile.p_passed, judged[PASSED], settings),
        _compare_shares("uncertain", uncertain, settings),
        _compare_shares("set_aside", [_set_aside(profile, lost)], settings),
    )
    return DriftReport(changes, len(rows))


def _compare(name: str, known: Sample, values: np.ndarray, settings: DriftSettings) -> Change:
    before = np.array(known.values)
    medians = {"now": _median(values), "before": _median(before)}
    if len(values) < settings.minimum or not len(before):
        return Change(name, False, len(values), known.captures, **medians)
    test: Any = ks_2samp(before, values)
    distance, p = float(test.statistic), float(test.pvalue)
    changed = _matters(distance, p, settings) and not _is_learnt(before, values, settings.minimum)
    return Change(name, changed, len(values), known.captures, round(distance, 4), p, **medians)


def _compare_shares(name: str, strata: Sequence[_Stratum], settings: DriftSettings) -> Change:
    """Test whether more captures count than in the same mix of strata before.

    If nothing has changed, the number of counted captures among the latest is hypergeometric within a stratum; over all
    strata it is the sum. A stratum without captures on one side is ignored.
    """
    shared = [stratum for stratum in strata if stratum.known and stratum.captures]
    captures, known = sum(stratum.captures for stratum in shared), sum(stratum.known for stratum in shared)
    if captures < settings.minimum:
        return Change(name, False, captures, known)
    counted = sum(stratum.counted for stratum in shared)
    expected = sum(stratum.captures * stratum.known_counted / stratum.known for stratum in shared)
    distribution = np.ones(1)
    for stratum in shared:
        total, total_counted = stratum.known + stratum.captures, stratum.known_counted + stratum.counted
        number = np.arange(stratum.captures + 1)
        distribution = np.convolve(distribution, hypergeom.pmf(number, total, total_counted, stratum.captures))
    p = float(min(1.0, distribution[counted:].sum()))
    distance = (counted - expected) / captures
    changed = _matters(distance, p, settings)
    return Change(name, changed, captures, known, round(distance, 4), p, counted / captures, expected / captures)


def _matters(distance: float, p: float, settings: DriftSettings) -> bool:
    return distance >= settings.minimum_effect and p < settings.significance / len(QUANTITIES)


def _is_learnt(known: np.ndarray, values: np.ndarray, minimum: int) -> bool:
    """Whether the known captures contain `minimum` captures like the latest.

    In each quarter of the latest values, without their outer 5 %, there must be a quarter of `minimum`.
    """
    edges = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    inside = [np.count_nonzero((known >= low) & (known <= high)) for low, high in itertools.pairwise(edges)]
    return bool(min(inside) >= minimum / len(inside))


def _set_aside(profile: LineProfile, lost: pd.Series) -> _Stratum:
    share, measured = profile.set_aside_share, profile.brightness.captures
    if share is None or share == 1:
        return _Stratum(0, 0, len(lost), int(lost.sum()))
    total = round(measured / (1 - share))
    return _Stratum(total, total - measured, len(lost), int(lost.sum()))


def _unsure(probabilities: Sequence[float] | np.ndarray) -> int:
    probabilities = np.asarray(probabilities)
    return int(np.count_nonzero((probabilities > SURE) & (probabilities < 1 - SURE)))


def _median(values: np.ndarray) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
