"""The evaluation report: one HTML file that stands alone, on a screen, in an e-mail and on paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pinspect.core.answers import DEFECTIVE, AnswerContract
from pinspect.core.predictions import CONSTRAINED, FREE
from pinspect.core.prompts import ZERO_SHOT, Message, PromptKind
from pinspect.evaluation import cases, metrics, plots
from pinspect.evaluation.cases import SHOT_NAMES, Casebook, production_rows
from pinspect.evaluation.metrics import ALL, BETTER_WHEN_LOW, Estimate

if TYPE_CHECKING:
    from pinspect.core.operating_point import OperatingPoint
    from pinspect.examination.controls import ControlResult
    from pinspect.examination.evidence import EvidenceMap

# Columns of benchmarks/results/ablations.csv besides its scores, which are named `<metric> <shot> <view>`.
ABLATION_COLUMNS = ("name", "differs", "parameters", "steps", "captures", "date")
METRIC_NAMES = {
    "exact_match": ("Exact match", "all five lines right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of passed and defective"),
    "escape_rate": ("Escape rate", "defective, judged passed; lower is better"),
    "overkill_rate": ("Overkill rate", "passed, judged defective; lower is better"),
    "address_on_defective": ("Address", "of defective captures"),
    "mode_on_defective": ("Defect mode", "of defective captures"),
    "parse_rate": ("Answers that parse", ""),
    "auroc": ("AUROC", "of P(defective)"),
    "ece": ("ECE", "of P(defective), expected calibration error; lower is better"),
    "judgement_accuracy": ("Judgement", "passed or defective"),
    "image_type_accuracy": ("Image type", ""),
    "number_of_pins_accuracy": ("Number of pins", ""),
    "not_answered_rate": ("Not answered", "defective, unreadable answer; no escape"),
}
HEADLINE = tuple(METRIC_NAMES)[:9]
FIELD_BY_FIELD = tuple(METRIC_NAMES)[9:]
NO_COUNT = ("auroc", "balanced_accuracy", "ece")  # no share of the answers: they have an n and no hits


@dataclass(frozen=True)
class ReportInput:
    """All that a report tells. What stands here with a default may be missing; the report then says that it was not
    measured.

    predictions, scores: the tables of `evaluation.predictions` and of `metrics.score_table`. model, baseline: the
    names in the column `model`; decoding: the one that the headline is about. view, kind: what production inspects
    with. images, messages, evidence: for each row id of the chat dataset the pictures shown, relative to
    `images_folder`, the chat, and where the answer's address tokens attended; `evidence_summary` is a sentence over
    all of them. comparisons: McNemar's test of the model against the baseline by outcome. bounds: what the project
    asks of a metric, at least, or at most where lower is better. reliability: `metrics.reliability` of the headline
    answers. ablations: benchmarks/results/ablations.csv. facts and provenance: label -> text. set_aside: name of a
    capture -> why it was not asked about. names: file -> the name that its user gave it.
    """

    title: str
    date: str
    predictions: pd.DataFrame
    scores: pd.DataFrame
    contract: AnswerContract
    model: str
    baseline: str
    decoding: str
    view: str
    kind: str
    confidence: float
    images: Mapping[str, Sequence[str]]
    images_folder: Path
    learning_curve: pd.DataFrame
    messages: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    comparisons: Mapping[str, metrics.McNemar] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    operating_point: OperatingPoint | None = None
    reliability: pd.DataFrame | None = None
    controls: Sequence[ControlResult] = ()
    evidence: Mapping[str, EvidenceMap] = field(default_factory=dict)
    evidence_summary: str = ""
    ablations: pd.DataFrame | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    params: str = ""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def render_report(given: ReportInput) -> str:
    """The report as HTML text. Raises StageInputError when a picture of a capture that it shows is missing."""
    shown = _Shown(given)
    book = Casebook(given.images, given.messages, given.evidence, given.names)
    misses = book.misses(shown.answered, (given.view, given.kind))
    camera = [miss for miss in misses if miss.source == "camera"]
    virtual = [miss for miss in misses if (miss.source, miss.view, miss.kind) == ("virtual", given.view, given.kind)]
    hits = book.hits(production_rows(shown.answered, given.view, given.kind))
    pictures, kept = cases.embed_pictures([*camera, *hits], virtual, given.images_folder)
    production = [miss for miss in camera if (miss.view, miss.kind) == (given.view, given.kind)]
    rows = shown.rows(ZERO_SHOT, shown.main_source())
    return _template().render(
        given=given,
        shown=shown,
        verdict=verdict(shown),
        misses=production,
        other_misses=camera[len(production) :],
        virtual_misses=kept,
        left_out=len(virtual) - len(kept),
        hits=hits,
        pictures=pictures,
        roc=plots.roc_figure(shown.series(), shown.reached_point()),
        separation=plots.separation_figure(rows, given.operating_point and given.operating_point.threshold),
        reliability="" if given.reliability is None else plots.reliability_figure(given.reliability),
        learning_curve=plots.learning_curve_figure(given.learning_curve),
    )


def verdict(shown: _Shown) -> str:
    """One plain sentence on whether the zero-shot model does what the project asks of it, also when it does not."""
    exact = shown.estimate("exact_match", ZERO_SHOT)
    if exact is None or exact.value is None:
        return "Nothing can be said about the line: no camera capture stands in the test split."
    broken = [control.title for control in shown.given.controls if control.held is False]
    bounds = [Bound.of(metric, asked, shown) for metric, asked in shown.given.bounds.items()]
    bounds = [bound for bound in bounds if bound.found is not None]
    sentence = _bounds_verdict(bounds, exact.captures)
    if not broken:
        return f"{sentence}."
    return f"{sentence}; it fails {len(broken)} of {len(shown.given.controls)} controls ({', '.join(broken)})."


def _bounds_verdict(bounds: Sequence[Bound], captures: int) -> str:
    missed = [bound for bound in bounds if not bound.held]
    unproven = [bound for bound in bounds if bound.held and not bound.proven]
    if missed:
        named = ", ".join(f"{bound.name} {_figure(bound.found)}, asked {bound.asked}" for bound in missed)
        return f"Not good enough: it misses {len(missed)} of the {len(bounds)} bounds that the project sets ({named})"
    if unproven:
        which = f"{len(unproven)} of them" if len(unproven) < len(bounds) else "any of them"
        return (
            f"It holds all {len(bounds)} bounds that the project sets, but {captures} captures are too few to prove "
            f"{which}: the intervals reach beyond"
        )
    if bounds:
        return f"It holds all {len(bounds)} bounds that the project sets, intervals included"
    return "The project sets no bounds for these figures"


@dataclass(frozen=True)
class Bound:
    """What the project asks of a metric beside what the zero-shot model reaches. `asked`: in words, such as `≥ 0.97`.

    held: the score keeps the bound. proven: so does its whole interval, or no interval could, since the bound is the
    end of the scale. found is None where there was nothing to score.
    """

    name: str
    asked: str
    found: float | None
    held: bool
    proven: bool

    @classmethod
    def of(cls, metric: str, asked: float, shown: _Shown) -> Bound:
        """The bound `asked` of `metric`, on the camera's captures or, where there are none, on the virtual line's."""
        low = metric in BETTER_WHEN_LOW
        name = METRIC_NAMES[metric][0] if metric in METRIC_NAMES else metric
        words = f"{'≤' if low else '≥'} {asked:g}"
        found = shown.estimate(metric, ZERO_SHOT, source=shown.main_source())
        if found is None or found.value is None:
            return cls(name, words, None, False, False)
        if low:
            return cls(name, words, found.value, found.value <= asked, found.high <= asked or asked == 0)
        return cls(name, words, found.value, found.value >= asked, found.low >= asked or asked == 1)


@dataclass(frozen=True)
class Reached:
    """What one threshold does on one split: counts of escapes among defective captures and overkills among passed."""

    split: str
    escapes: Estimate
    overkills: Estimate


@dataclass(frozen=True)
class Prompt:
    """A kind of prompt, shot and view that captures of the camera were asked in, with the scores of both decodings."""

    name: str
    shot: str
    view: str
    production: bool
    scores: Mapping[str, Estimate]
    free: Mapping[str, Estimate]
    virtual: Mapping[str, Estimate]


class _Shown:
    """What the template asks for: figures of a group, chosen by shot, source, view and image type."""

    def __init__(self, given: ReportInput):
        self.given = given
        self._by_group = {key: rows.set_index("metric") for key, rows in given.scores.groupby(list(metrics.GROUP))}
        rows = given.predictions
        self.answered = rows[(rows["model"] == given.model) & (rows["decoding"] == given.decoding)]

    def estimate(
        self, metric: str, shot: str, *, source: str = "camera", view: str | None = None, image_type: str = ALL
    ) -> Estimate | None:
        """A score of the model; None where no such group was answered."""
        given = self.given
        key = (given.model, given.decoding, source, given.kind, shot, view or given.view, image_type)
        return self._of(key, metric)

    def baseline(self, metric: str, *, source: str = "camera", image_type: str = ALL) -> Estimate | None:
        """A score of the baseline, which knows neither shots nor prompts; None where it was not run."""
        given = self.given
        return self._of((given.baseline, CONSTRAINED, source, given.kind, ZERO_SHOT, given.view, image_type), metric)

    def bound(self, metric: str) -> Bound | None:
        """The bound of `metric`, or None where the project sets none."""
        return Bound.of(metric, self.given.bounds[metric], self) if metric in self.given.bounds else None

    def measured(self, metric: str) -> bool:
        """Whether anything was scored by `metric`, by the model or by the baseline."""
        source = self.main_source()
        found = [self.estimate(metric, shot, source=source) for shot in SHOT_NAMES]
        return any(score and score.value is not None for score in (*found, self.baseline(metric, source=source)))

    def behind(self) -> list[str]:
        """The names of the scores in which the zero-shot model falls behind the baseline, on the camera's captures."""
        names = []
        for metric in HEADLINE:
            ours, theirs = self.estimate(metric, ZERO_SHOT), self.baseline(metric)
            if ours and theirs and None not in (ours.value, theirs.value):
                lead = theirs.value - ours.value
                names += [METRIC_NAMES[metric][0]] if (-lead if metric in BETTER_WHEN_LOW else lead) > 0 else []
        return names

    def rows(self, shot: str, source: str = "camera") -> pd.DataFrame:
        """The model's headline predictions of one shot and source."""
        rows = production_rows(self.answered, self.given.view, self.given.kind, source)
        return rows[rows["shot"] == shot]

    def baseline_rows(self, source: str = "camera") -> pd.DataFrame:
        rows = self.given.predictions
        return rows[(rows["model"] == self.given.baseline) & (rows["source"] == source)]

    def series(self) -> dict[str, pd.DataFrame]:
        """What the ROC shows, by the name in its legend."""
        named = {name: self.rows(shot, self.main_source()) for shot, name in SHOT_NAMES.items()}
        return named | {self.given.baseline: self.baseline_rows(self.main_source())}

    def sources(self) -> list[str]:
        return sorted(self.answered["source"].unique())

    def shots(self) -> list[str]:
        """The shots in which production's prompt was asked."""
        asked = self.answered[(self.answered["view"] == self.given.view) & (self.answered["kind"] == self.given.kind)]
        return [shot for shot in SHOT_NAMES if shot in set(asked["shot"])]

    def main_source(self) -> str:
        """What the figures are about: the camera, or the virtual line where no camera capture was tested."""
        return "camera" if "camera" in self.sources() else "virtual"

    def image_types(self) -> list[str]:
        """The image types of production's view."""
        rows = production_rows(self.answered, self.given.view, self.given.kind, self.main_source())
        return sorted(rows["expected_image_type"].unique())

    def prompts(self) -> list[Prompt]:
        """Every prompt that was asked, production's first."""
        given = self.given
        asked = self.answered[["kind", "shot", "view"]].drop_duplicates().itertuples(index=False)
        order = list(PromptKind)
        prompts = []
        asked = sorted(asked, key=lambda key: (order.index(key[0]), key[1] != ZERO_SHOT, key[2] != given.view))
        for kind, shot, view in asked:
            scores, free, virtual = (
                self._group((given.model, decoding, source, kind, shot, view, ALL))
                for decoding, source in ((given.decoding, "camera"), (FREE, "camera"), (given.decoding, "virtual"))
            )
            production = (kind, view) == (given.kind, given.view)
            prompts.append(Prompt(kind_name(kind), SHOT_NAMES[shot], view, production, scores, free, virtual))
        return sorted(prompts, key=lambda prompt: not prompt.production)

    def confusion(self, shot: str) -> pd.DataFrame:
        return metrics.confusion(self.rows(shot, self.main_source()), self.given.contract.defect_modes)

    def addresses(self, shot: str, source: str) -> dict[tuple[str, int], pd.Series]:
        """Counts of `metrics.address_errors` by row letter and column number."""
        counts = metrics.address_errors(self.rows(shot, source), self.given.contract.layout)
        return {(a.row, a.column): counts.loc[str(a)] for a in self.given.contract.layout.addresses}

    def reached(self) -> list[Reached]:
        """What the operating point's threshold does where it was chosen, and on the test split in every shot."""
        point = self.given.operating_point
        if point is None:
            return []
        counts = [
            ("validation, where it was chosen", point.escape_rate, point.defective, point.overkill_rate, point.passed)
        ]
        for shot in self.shots():
            rows = self.rows(shot, self.main_source())
            rows = rows[rows["p_defective"].notna()]
            defective = rows["expected_judgement"] == DEFECTIVE
            below = rows["p_defective"] < point.threshold
            escapes, overkills = below[defective], ~below[~defective]
            counts.append((f"test, {SHOT_NAMES[shot]}", escapes.mean(), len(escapes), overkills.mean(), len(overkills)))
        return [
            Reached(split, self._share(escaped, defective), self._share(overkilled, passed))
            for split, escaped, defective, overkilled, passed in counts
        ]

    def reached_point(self) -> tuple[float, float] | None:
        """Overkill rate and caught rate of the zero-shot answers at the operating point; None where not measured."""
        for reached in self.reached():
            if reached.split == "test, zero-shot" and None not in (reached.escapes.value, reached.overkills.value):
                return reached.overkills.value, 1 - reached.escapes.value
        return None

    def ablations(self) -> tuple[list[str], list[str], list[dict]]:
        """The ablation table: the counts that differ between its rows, its scores, its rows; None where it is blank."""
        table = self.given.ablations
        if table is None or table.empty:
            return [], [], []
        counts = [name for name in ("parameters", "steps", "captures") if name in table]
        differing = [name for name in counts if name == "parameters" or table[name].nunique(dropna=False) > 1]
        scores = [column for column in table.columns if column not in ABLATION_COLUMNS]
        return differing, scores, table.astype(object).where(table.notna(), None).to_dict("records")

    def _share(self, value: float | None, n: int) -> Estimate:
        if not n or value is None:
            return Estimate(None, 0, 0, None, None)
        return Estimate(float(value), n, n, *metrics.wilson(value * n, n, self.given.confidence))

    def _group(self, key: tuple[str, ...]) -> dict[str, Estimate]:
        names = self._by_group[key].index if key in self._by_group else ()
        return {metric: self._of(key, metric) for metric in names}

    def _of(self, key: tuple[str, ...], metric: str) -> Estimate | None:
        if key not in self._by_group or metric not in self._by_group[key].index:
            return None
        found = self._by_group[key].loc[metric]
        if pd.isna(found["value"]):
            return Estimate(None, int(found["n"]), int(found["captures"]), None, None)
        low, high = (None if pd.isna(found[end]) else float(found[end]) for end in ("low", "high"))
        return Estimate(float(found["value"]), int(found["n"]), int(found["captures"]), low, high)


def kind_name(kind: str) -> str:
    """A kind of prompt as the report writes it, such as `two-image`."""
    return kind.replace("_", "-")


@cache
def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "interval": _interval,
        "count": _count,
        "hits": _hits,
        "p_value": _p_value,
        "kind_name": kind_name,
        "score_name": _score_name,
        "data_uri": _data_uri,
        "glow": _glow,
    }
    environment.globals |= {
        "metric_names": METRIC_NAMES,
        "headline": HEADLINE,
        "field_by_field": FIELD_BY_FIELD,
        "no_count": NO_COUNT,
        "shot_names": SHOT_NAMES,
        "inspected_cell": cases.inspected_cell,
    }
    return environment.get_template("report.html.j2")


def _figure(value: float | str | None) -> str:
    """Three places; a dash where nothing was scored. Text stays as it is."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.2f}–{estimate.high:.2f}"


def _hits(estimate: Estimate) -> int:
    return round(estimate.value * estimate.n)


def _count(estimate: Estimate) -> str:
    return f"{_hits(estimate)}/{estimate.n}"


def _p_value(value: float) -> str:
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def _score_name(column: str) -> Markup:
    """The heading of an ablation's score column: `<metric> <shot> <view>`, or any other words as they are."""
    metric, *where = column.split(" ")
    if metric not in METRIC_NAMES:
        return Markup("{}").format(column[:1].upper() + column[1:])
    shots = [SHOT_NAMES.get(word, word) for word in where]
    return Markup("{}<small>{}</small>").format(METRIC_NAMES[metric][0], " ".join(shots))


def _glow(evidence: EvidenceMap) -> list[tuple[float, float, float, float, float]]:
    """The tiles of an evidence map that can be seen: left, top, width and height as shares of the picture, opacity."""
    rows, columns = evidence.weights.shape
    opacity = 0.6 * evidence.weights / evidence.weights.max()
    return [
        (column / columns, row / rows, 1 / columns, 1 / rows, opacity[row, column])
        for row, column in np.argwhere(opacity >= 0.03)
    ]


def _data_uri(picture: np.ndarray) -> str:
    """uint8 RGB (H, W, 3) as the text of a JPEG that stands in the page."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    image.thumbnail((480, 480))
    image.save(buffer, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
