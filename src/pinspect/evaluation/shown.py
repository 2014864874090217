"""The numbers that the report's template shows, selected by shot, source, view and image type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pinspect.core.answers import DEFECTIVE
from pinspect.core.predictions import BASELINE, BASELINES, FREE, MODEL
from pinspect.core.prompts import ZERO_SHOT, PromptKind
from pinspect.core.question import CAMERA, VIRTUAL
from pinspect.core.statistics import wilson
from pinspect.evaluation import metrics
from pinspect.evaluation.cases import SHOT_NAMES
from pinspect.evaluation.evaluation import Evaluation
from pinspect.evaluation.metrics import ALL, BETTER_WHEN_LOW, Estimate
from pinspect.evaluation.wording import CONTROLS

METRIC_NAMES = {
    "exact_match": ("Exact match", "all five lines right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of passed and defective"),
    "escape_rate": ("Escape rate", "defective, judged passed; lower is better"),
    "overkill_rate": ("Overkill rate", "passed, judged defective; lower is better"),
    "address_on_defective": ("Address", "of defective captures"),
    "mode_on_defective": ("Defect mode", "of defective captures"),
    "parse_rate": ("Answers that parse", ""),
    "auroc": ("AUROC", "of P(defective)"),
    "ece": ("ECE", "expected calibration error of P(defective); lower is better"),
    "judgement_accuracy": ("Judgement", "passed or defective"),
    "image_type_accuracy": ("Image type", ""),
    "number_of_pins_accuracy": ("Number of pins", ""),
    "not_answered_rate": ("Not answered", "defective, unreadable answer; not an escape"),
}
HEADLINE = tuple(METRIC_NAMES)[:9]
FIELD_BY_FIELD = tuple(METRIC_NAMES)[9:]
WITHOUT_HITS = ("auroc", "balanced_accuracy", "ece")  # not shares of the answers: they have an n but no hits


@dataclass(frozen=True)
class Bound:
    """A bound of `settings.yaml` and the score of the zero-shot model.

    Attributes:
        name: Name of the metric.
        wanted: The bound in words, such as `≥ 0.97`.
        score: The score; None where there was nothing to score.
        held: Whether the score keeps the bound.
        proven: Whether its whole interval keeps the bound, or no interval could, because the bound is the end of the
            scale.
    """

    name: str
    wanted: str
    score: float | None
    held: bool
    proven: bool


@dataclass(frozen=True)
class Reached:
    """Escapes among defective and overkills among passed captures of one split, at the operating point."""

    split: str
    escapes: Estimate
    overkills: Estimate


@dataclass(frozen=True)
class PromptScores:
    """A kind of prompt, shot and view that was asked, with its scores by metric.

    Attributes:
        name: Kind of prompt.
        shot: `zero-shot` or `one-shot`.
        view: `RAW` or `DST`.
        production: Whether production asks it.
        scores: By production's decoding.
        free: By free generation.
        virtual: On the virtual line, beside the camera's.
    """

    name: str
    shot: str
    view: str
    production: bool
    scores: Mapping[str, Estimate]
    free: Mapping[str, Estimate]
    virtual: Mapping[str, Estimate]


class Shown:
    """Selects the numbers of one evaluation."""

    def __init__(self, evaluation: Evaluation):
        """Select from `evaluation`."""
        self.evaluation = evaluation
        self.question = evaluation.question
        self.source = evaluation.source
        self.sources = evaluation.sources
        answers = self.question.answers(evaluation.predictions, shot=None)
        self.shots = [shot for shot in SHOT_NAMES if shot in set(answers["shot"])]
        self.image_types = sorted(answers.loc[answers["source"] == self.source, "expected_image_type"].unique())
        self._groups: dict[tuple[str, ...], dict[str, Estimate]] = {}
        for line in evaluation.scores.to_dict("records"):
            value, low, high = (None if pd.isna(line[name]) else float(line[name]) for name in ("value", "low", "high"))
            estimate = Estimate(value, int(line["n"]), int(line["captures"]), low, high)
            self._groups.setdefault(tuple(line[name] for name in metrics.GROUP), {})[line["metric"]] = estimate

    def estimate(
        self, metric: str, shot: str = ZERO_SHOT, *, model: str = MODEL, source: str = "", image_type: str = ALL
    ) -> Estimate | None:
        """Return a score of production's question; None where no such group was answered."""
        question = self.question
        key = (model, question.decoding, source or self.source, question.kind, shot, question.view, image_type)
        return self._groups.get(key, {}).get(metric)

    def baseline(self, metric: str, name: str = BASELINE, *, source: str = "") -> Estimate | None:
        """Return a score of one of `BASELINES`, which know neither shots nor prompts; None where it was not run."""
        return self.estimate(metric, model=name, source=source)

    def bound(self, metric: str) -> Bound | None:
        """Return the bound of `metric`, or None where `settings.yaml` has none."""
        limit = next((limit for name, limit in self.evaluation.settings.bounds.items() if name == metric), None)
        if limit is None:
            return None
        low_is_better = metric in BETTER_WHEN_LOW
        name = METRIC_NAMES[metric][0]
        wanted = f"{'≤' if low_is_better else '≥'} {limit:g}"
        estimate = self.estimate(metric)
        if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
            return Bound(name, wanted, None, held=False, proven=False)
        if low_is_better:
            held, proven = estimate.value <= limit, estimate.high <= limit or limit == 0
        else:
            held, proven = estimate.value >= limit, estimate.low >= limit or limit == 1
        return Bound(name, wanted, estimate.value, held, proven)

    def is_measured(self, metric: str) -> bool:
        """Return whether `metric` was scored for the model or for a baseline."""
        estimates = [self.estimate(metric, shot) for shot in SHOT_NAMES]
        estimates += [self.baseline(metric, name) for name in BASELINES]
        return any(estimate and estimate.value is not None for estimate in estimates)

    def behind_baseline(self) -> list[str]:
        """Return the names of the scores in which the zero-shot model is worse than the baseline."""
        names = []
        for metric in HEADLINE:
            values = [estimate.value for estimate in (self.estimate(metric), self.baseline(metric)) if estimate]
            if len(values) == 2 and values[0] is not None and values[1] is not None:
                lead = values[1] - values[0]
                names += [METRIC_NAMES[metric][0]] if (-lead if metric in BETTER_WHEN_LOW else lead) > 0 else []
        return names

    def prompts(self) -> list[PromptScores]:
        """Return every prompt that was asked, production's first."""
        question = self.question
        groups = self.evaluation.model_answers[["kind", "shot", "view"]].drop_duplicates().itertuples(index=False)
        kinds = list(PromptKind)
        prompts = []
        for kind, shot, view in sorted(
            groups, key=lambda key: (kinds.index(key[0]), key[1] != ZERO_SHOT, key[2] != question.view)
        ):
            beside = VIRTUAL if self.source == CAMERA else ""
            scores, free, virtual = (
                self._groups.get((MODEL, decoding, source, kind, shot, view, ALL), {})
                for decoding, source in (
                    (question.decoding, self.source),
                    (FREE, self.source),
                    (question.decoding, beside),
                )
            )
            production = (kind, view) == (question.kind, question.view)
            prompts.append(PromptScores(kind_name(kind), SHOT_NAMES[shot], view, production, scores, free, virtual))
        return sorted(prompts, key=lambda prompt: not prompt.production)

    def confusion(self, shot: str) -> pd.DataFrame:
        """Return `metrics.confusion` of production's question."""
        return metrics.confusion(self.evaluation.answers(shot), self.evaluation.contract.defect_modes)

    def addresses(self, source: str) -> dict[tuple[str, int], dict[str, int]]:
        """Return the zero-shot counts of `metrics.address_errors` by row letter and column number."""
        layout = self.evaluation.contract.layout
        counts = metrics.address_errors(self.evaluation.answers(source=source), layout)
        by_address = {address: tuple(line) for address, *line in counts.itertuples()}
        names = [str(name) for name in counts.columns]
        return {
            (address.row, address.column): dict(zip(names, by_address[str(address)], strict=True))
            for address in layout.addresses
        }

    def reached(self) -> list[Reached]:
        """Return the effect of the operating point where it was chosen, and on the test split in every shot."""
        point = self.evaluation.operating_point
        if point is None:
            return []
        counts = [
            ("validation, where it was chosen", point.escape_rate, point.defective, point.overkill_rate, point.passed)
        ]
        for shot in self.shots:
            answers = self.evaluation.answers(shot)
            answers = answers[answers["p_defective"].notna()]
            defective = answers["expected_judgement"] == DEFECTIVE
            below = answers["p_defective"] < point.threshold
            escapes, overkills = below[defective], ~below[~defective]
            counts.append((f"test, {SHOT_NAMES[shot]}", escapes.mean(), len(escapes), overkills.mean(), len(overkills)))
        return [
            Reached(split, self._share(escaped, defective), self._share(overkilled, passed))
            for split, escaped, defective, overkilled, passed in counts
        ]

    def reached_point(self) -> tuple[float, float] | None:
        """Return overkill rate and caught rate of the zero-shot test answers at the operating point, if measured."""
        for reached in self.reached():
            escapes, overkills = reached.escapes.value, reached.overkills.value
            if reached.split == f"test, {SHOT_NAMES[ZERO_SHOT]}" and escapes is not None and overkills is not None:
                return overkills, 1 - escapes
        return None

    def verdict(self) -> str:
        """Return one plain sentence on whether the zero-shot model keeps the bounds and the controls."""
        exact = self.estimate("exact_match")
        if exact is None or exact.value is None or self.source != CAMERA:
            return "Nothing can be concluded about the line: the test split has no camera capture."
        bounds = [bound for metric in self.evaluation.settings.bounds if (bound := self.bound(metric))]
        sentence = _bounds_verdict([bound for bound in bounds if bound.score is not None], exact.captures)
        controls = self.evaluation.examination.controls
        failed = [CONTROLS[control.name].title for control in controls if control.held is False]
        if failed:
            sentence += f"; it fails {len(failed)} of {len(controls)} controls ({', '.join(failed)})"
        return f"{sentence}."

    def _share(self, value: float | None, n: int) -> Estimate:
        if not n or value is None:
            return Estimate(None, 0, 0, None, None)
        return Estimate(float(value), n, n, *wilson(value * n, n, self.evaluation.settings.confidence))


def kind_name(kind: str) -> str:
    """Return a kind of prompt as the report writes it, such as `two-image`."""
    return kind.replace("_", "-")


def _bounds_verdict(bounds: Sequence[Bound], captures: int) -> str:
    missed = [bound for bound in bounds if not bound.held]
    unproven = [bound for bound in bounds if bound.held and not bound.proven]
    if missed:
        names = ", ".join(f"{bound.name} {bound.score:.3f}, wanted {bound.wanted}" for bound in missed)
        return f"Not good enough: it misses {len(missed)} of the {len(bounds)} bounds of settings.yaml ({names})"
    if unproven:
        which = f"{len(unproven)} of them" if len(unproven) < len(bounds) else "any of them"
        return (
            f"It holds all {len(bounds)} bounds of settings.yaml, but {captures} captures are too few to prove "
            f"{which}: the intervals reach beyond the bounds"
        )
    if bounds:
        return f"It holds all {len(bounds)} bounds of settings.yaml, intervals included"
    return "settings.yaml sets no bounds for these scores"
