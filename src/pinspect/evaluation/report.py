"""The evaluation report: one HTML file that needs no network, for the screen, for e-mail and for paper."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pinspect.core.predictions import BASELINE, BASELINES
from pinspect.core.question import CAMERA
from pinspect.evaluation import cases, figures, wording
from pinspect.evaluation.cases import SHOT_NAMES
from pinspect.evaluation.evaluation import Evaluation
from pinspect.evaluation.metrics import Estimate
from pinspect.evaluation.shown import FIELD_BY_FIELD, HEADLINE, METRIC_NAMES, WITHOUT_HITS, Shown, kind_name
from pinspect.examination.results import EvidenceMap


def render_report(evaluation: Evaluation) -> str:
    """Return the report as HTML text; the same evaluation gives the same text.

    Raises:
        StageInputError: A picture that the report shows is missing.
    """
    shown, question = Shown(evaluation), evaluation.question
    misses, hits = cases.find_misses(evaluation), cases.find_hits(evaluation)
    by_production = [miss for miss in misses if (miss.view, miss.kind) == (question.view, question.kind)]
    camera = [miss for miss in misses if miss.source == CAMERA]
    virtual = [miss for miss in by_production if miss.source != CAMERA]
    pictures, kept = cases.embed_pictures([*camera, *hits], virtual, evaluation.images)
    production = [miss for miss in camera if miss in by_production]
    confidence, examination, point = evaluation.settings.confidence, evaluation.examination, evaluation.operating_point
    series = {name: evaluation.answers(shot) for shot, name in SHOT_NAMES.items()}
    series |= {name: evaluation.answers(model=name) for name in BASELINES}
    return template("report.html.j2").render(
        evaluation=evaluation,
        examination=examination,
        shown=shown,
        misses=production,
        other_misses=[miss for miss in camera if miss not in production],
        virtual_misses=kept,
        left_out=len(virtual) - len(kept),
        hits=hits,
        pictures=pictures,
        roc=figures.roc_figure(series, shown.reached_point()),
        separation=figures.separation_figure(evaluation.answers(), point and point.threshold),
        reliability=figures.reliability_figure(evaluation.reliability),
        learning_curve=figures.learning_curve_figure(evaluation.learning_curve),
        controls={
            view: [
                (control, wording.CONTROLS[control.name], wording.control_outcome(control, confidence))
                for control in results
            ]
            for view, results in evaluation.controls.items()
        },
        simple_questions=[
            (result, wording.SIMPLE_QUESTIONS[result.name], wording.control_outcome(result, confidence))
            for result in examination.simple_questions
        ],
        evidence_summary=wording.evidence_summary(examination.evidence, evaluation.contract.layout, confidence),
        answer_checks=[
            ("Chat dataset, before training", evaluation.dataset_checks),
            ("Model, answers to the test split", examination.answer_checks),
        ],
    )


@cache
def template(name: str) -> Template:
    """Return a template of this room, with the filters and names that its pages share."""
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
        "expectation_text": wording.expectation_text,
        "unexpected_values": wording.unexpected_values,
        "glow": _glow,
    }
    environment.globals |= {
        "baseline_name": BASELINE,
        "baselines": BASELINES,
        "metric_names": METRIC_NAMES,
        "headline": HEADLINE,
        "field_by_field": FIELD_BY_FIELD,
        "without_hits": WITHOUT_HITS,
        "shot_names": SHOT_NAMES,
        "inspected_cell": cases.inspected_cell,
        "checks_summary": wording.checks_summary,
    }
    return environment.get_template(name)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.2f}–{estimate.high:.2f}"


def _hits(estimate: Estimate) -> int:
    return round((estimate.value or 0) * estimate.n)


def _count(estimate: Estimate) -> str:
    return f"{_hits(estimate)}/{estimate.n}"


def _p_value(value: float) -> str:
    return "p\u00a0<\u00a00.001" if value < 0.001 else f"p\u00a0=\u00a0{value:.3f}"


def _glow(evidence: EvidenceMap) -> list[tuple[float, float, float, float, float]]:
    """Return the visible tiles of a map: left, top, width and height as shares of the picture, opacity."""
    rows, columns = evidence.weights.shape
    opacity = 0.6 * evidence.weights / evidence.weights.max()
    return [
        (column / columns, row / rows, 1 / columns, 1 / rows, opacity[row, column])
        for row, column in np.argwhere(opacity >= 0.03)
    ]
