"""Has the line changed? The station's latest captures, held against those that the model learnt from.

Five quantities are judged, each by itself:

    brightness, dst_background   of all captures, see `imaging.line_facts`
    p_defective                  P(defective) of the captures that the model judged passed
    uncertain                    the share of captures about which it is unsure: P(defective) between 0.05 and 0.95
    set_aside                    the share of captures that cannot be laid over the unit space

A line has few defects and a training set has many, so that P(defective) over all captures would differ on every good
day. Passed captures are therefore compared with passed ones, and the share of uncertain ones is held against that which
the same mix of judgements would have had in validation. Neither hangs on how many captures are defective.

A quantity has changed when chance would hardly explain the difference (a two-sample Kolmogorov-Smirnov test; for
shares, which only count when they rise, an exact test within each judgement; Bonferroni over the quantities), when the
difference is large enough to matter, and when the model has not learnt from such captures. The last condition is what
ends the warning after a retraining: old captures stay in the training set, so that its distribution never becomes that
of the changed line. It also lets a day of production be more uniform than a training set that was gathered over months.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

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
SURE = 0.05  # P(defective) between this and its complement is uncertain

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
_ASKED_OF_VALIDATION = ("p_defective", "uncertain")


@dataclass(frozen=True)
class Change:
    """What one quantity came to.

    captures, known: how many of the latest captures, and of those that the model knows, tell of it. distance: the
    Kolmogorov-Smirnov distance, 0..1; of a share, by how much it has risen, -1..1. p: the probability that chance alone
    makes such a difference. now, before: the medians, or the shares. distance and p are None where either side tells
    too little, and so are now and before where it tells nothing.
    """

    quantity: str
    changed: bool
    captures: int
    known: int
    distance: float | None = None
    p: float | None = None
    now: float | None = None
    before: float | None = None

    def told(self, language: str = "en") -> str:
        """The change in words. language: en or ja."""
        text = (_SHARES if self.quantity in SHARES else _VALUES)[language]
        place = _PLACES[language][self.quantity in _ASKED_OF_VALIDATION]
        return text.format(name=_NAMES[language][self.quantity], now=self.now, known=self.before, place=place)


@dataclass(frozen=True)
class DriftReport:
    """Whether the line has changed. captures: how many of the latest were looked at. problem: why nothing can be
    judged, if it cannot."""

    quantities: tuple[Change, ...]
    captures: int
    problem: str | None = None

    @property
    def changed(self) -> bool:
        return any(one.changed for one in self.quantities)

    def told(self, language: str = "en") -> str:
        """What has changed, in words; empty where nothing has. language: en or ja."""
        return {"en": "; ", "ja": "、"}[language].join(one.told(language) for one in self.quantities if one.changed)

    def to_dict(self) -> dict:
        """As JSON has it, with what has changed in words."""
        return asdict(self) | {
            "quantities": [asdict(one) for one in self.quantities],
            "changed": self.changed,
            "told": {language: self.told(language) for language in _NAMES},
        }


@dataclass(frozen=True)
class _Stratum:
    """How many captures of one judgement there are, and how many of them count, then and now."""

    known: int
    known_counted: int
    captures: int
    counted: int


def judge_drift(profile: LineProfile | Mapping, latest: pd.DataFrame, settings: DriftSettings) -> DriftReport:
    """Hold the latest captures against the profile of the version that inspects.

    profile: also as `LineProfile.to_dict` tells it. latest: `COLUMNS` of the results table, the newest first; more than
    `settings.window` are not looked at. Answers of another version than the newest capture's tell nothing about this
    one: of those only light and background count.
    """
    latest = latest[list(COLUMNS)].head(settings.window)
    if not isinstance(profile, LineProfile):
        try:
            profile = LineProfile.from_dict(profile)
        except ValueError as error:
            problem = f"the line profile of this version cannot be read ({error}); run dvc repro answer"
            return DriftReport((), len(latest), problem)
    # To the profile's places: surer than sure is no difference.
    numbers = latest[["p_defective", *LINE_FACTS]].astype(float).round(PLACES)
    newest = latest["model_version"].dropna().head(1)
    answered = latest["model_version"].isin(newest)
    judged = {
        judgement: numbers.loc[answered & (latest["judgement"] == judgement), "p_defective"].dropna().to_numpy()
        for judgement in (PASSED, DEFECTIVE)
    }
    uncertain = [
        _Stratum(len(sample.values), _unsure(sample.values), len(judged[judgement]), _unsure(judged[judgement]))
        for judgement, sample in ((PASSED, profile.p_passed), (DEFECTIVE, profile.p_defective))
    ]
    lost = numbers["brightness"].isna() & latest["error"].notna()
    found = (
        *(_compare(name, getattr(profile, name), numbers[name].dropna().to_numpy(), settings) for name in LINE_FACTS),
        _compare("p_defective", profile.p_passed, judged[PASSED], settings),
        _compare_shares("uncertain", uncertain, settings),
        _compare_shares("set_aside", [_set_aside(profile, lost)], settings),
    )
    return DriftReport(found, len(latest))


def _compare(name: str, known: Sample, values: np.ndarray, settings: DriftSettings) -> Change:
    before = np.array(known.values)
    medians = {"now": _median(values), "before": _median(before)}
    if len(values) < settings.minimum or not len(before):
        return Change(name, False, len(values), known.captures, **medians)
    distance, p = map(float, ks_2samp(before, values)[:2])
    changed = _matters(distance, p, settings) and not _is_learnt(before, values, settings.minimum)
    return Change(name, changed, len(values), known.captures, round(distance, 4), p, **medians)


def _compare_shares(name: str, strata: Sequence[_Stratum], settings: DriftSettings) -> Change:
    """Whether more of the captures count than the same mix of strata had before.

    Within a stratum, how many of those that count are among the latest is hypergeometric if nothing has changed; over
    all strata it is the sum. A stratum that only one side has tells nothing.
    """
    told = [one for one in strata if one.known and one.captures]
    captures, known = sum(one.captures for one in told), sum(one.known for one in told)
    if captures < settings.minimum:
        return Change(name, False, captures, known)
    counted = sum(one.counted for one in told)
    expected = sum(one.captures * one.known_counted / one.known for one in told)
    chances = np.ones(1)
    for one in told:
        both, of_both = one.known + one.captures, one.known_counted + one.counted
        chances = np.convolve(chances, hypergeom.pmf(np.arange(one.captures + 1), both, of_both, one.captures))
    p = float(min(1.0, chances[counted:].sum()))
    distance = (counted - expected) / captures
    changed = _matters(distance, p, settings)
    return Change(name, changed, captures, known, round(distance, 4), p, counted / captures, expected / captures)


def _matters(distance: float, p: float, settings: DriftSettings) -> bool:
    return distance >= settings.minimum_effect and p < settings.significance / len(QUANTITIES)


def _is_learnt(known: np.ndarray, values: np.ndarray, minimum: int) -> bool:
    """Whether the known captures hold `minimum` like the latest: in each quarter of the latest values, their outer
    twentieths aside, a quarter of that number."""
    edges = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    inside = [np.count_nonzero((known >= low) & (known <= high)) for low, high in itertools.pairwise(edges)]
    return min(inside) >= minimum / len(inside)


def _set_aside(profile: LineProfile, lost: pd.Series) -> _Stratum:
    share, measured = profile.set_aside_share, profile.brightness.captures
    if share is None or share == 1:
        return _Stratum(0, 0, len(lost), int(lost.sum()))
    asked = round(measured / (1 - share))
    return _Stratum(asked, asked - measured, len(lost), int(lost.sum()))


def _unsure(chances: Sequence[float] | np.ndarray) -> int:
    chances = np.asarray(chances)
    return int(np.count_nonzero((chances > SURE) & (chances < 1 - SURE)))


def _median(values: np.ndarray) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None
