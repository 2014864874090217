"""Writes an evaluation to `reports/eval`: metrics, scores, plots, report. The same evaluation makes the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from pinspect.core.files import write_file
from pinspect.core.predictions import BASELINE, LOCALIZER, MODEL
from pinspect.core.prompts import ONE_SHOT, SHOTS, ZERO_SHOT
from pinspect.core.question import VIRTUAL
from pinspect.evaluation import metrics, plots, wording
from pinspect.evaluation.evaluation import Evaluation
from pinspect.evaluation.metrics import HEADLINE
from pinspect.evaluation.report import render_report
from pinspect.examination.results import ControlResult

_PLACES = 4

_BASELINES = {"baseline": BASELINE, "localizer": LOCALIZER}


def write_evaluation(evaluation: Evaluation, out: Path) -> dict:
    """Score an evaluation and write the files of `reports/eval`.

    The files are scores.csv, validation_scores.csv, controls.csv, evidence.csv, plots/*.csv, detail.json, report.html
    and, last, metrics.json.

    Args:
        evaluation: What to score.
        out: Folder of the files.

    Returns:
        The content of metrics.json.

    Raises:
        StageInputError: A picture that the report shows is missing.
    """
    examination, settings = evaluation.examination, evaluation.settings
    metrics.write_scores(evaluation.scores, out / "scores.csv")
    metrics.write_scores(evaluation.score(examination.validation), out / "validation_scores.csv")
    _write_csv(wording.checks_table(evaluation.controls, settings.confidence), out / "controls.csv")
    _write_csv(examination.evidence.table, out / "evidence.csv")
    for shot in SHOTS:
        plots.write_plot_tables(shot, evaluation.answers(shot), out / "plots")
    for name, model in _BASELINES.items():
        plots.write_plot_tables(name, evaluation.answers(model=model), out / "plots")
    _write_json(detail(evaluation), out / "detail.json")
    write_file(out / "report.html", render_report(evaluation))
    headline = headline_metrics(evaluation)
    _write_json(headline, out / "metrics.json")
    return headline


def headline_metrics(evaluation: Evaluation) -> dict:
    """Return the numbers that `dvc metrics show` prints and the README shows.

    The blocks `zero_shot`, `one_shot`, `baseline` and `localizer` hold the scores of production's question on the
    camera's test captures or, where there are none, on the virtual line's; `captures` is the number of the captures.
    The block `virtual` holds the exact match on the virtual line beside the camera's. A score that could not be
    measured, such as the overkill rate without passed captures, is left out.
    """
    blocks: dict = {name: _round(scores, HEADLINE) for name, scores in _headline_scores(evaluation).items()}
    blocks["captures"] = int(evaluation.answers()["file"].nunique())
    virtual = evaluation.answers(source=VIRTUAL)
    if evaluation.source != VIRTUAL and len(virtual):
        scores = _scores_of(evaluation, virtual)
        blocks["virtual"] = _round(scores, ("exact_match",)) | {"captures": int(virtual["file"].nunique())}
    return blocks


def detail(evaluation: Evaluation) -> dict:
    """Return the content of detail.json: all results for machines that metrics.json leaves out."""
    point = evaluation.operating_point
    examination = evaluation.examination
    confidence = evaluation.settings.confidence
    return {
        **evaluation.digests,
        "headline": asdict(evaluation.question),
        "source": evaluation.source,
        "operating_point": None if point is None else asdict(point),
        "confidence": confidence,
        "calibration_error": {
            name: _round(scores, ("ece",)).get("ece") for name, scores in _headline_scores(evaluation).items()
        },
        "virtual": {
            name: _round(scores, (*HEADLINE, "ece"))
            for name, scores in _headline_scores(evaluation, VIRTUAL).items()
            if evaluation.source != VIRTUAL
        },
        "against_baseline": {outcome: asdict(test) for outcome, test in evaluation.comparisons.items()},
        "controls": [_outcome(result, wording.CONTROLS[result.name], confidence) for result in examination.controls],
        "other_controls": {
            view: [_outcome(result, wording.CONTROLS[result.name], confidence) for result in results]
            for view, results in examination.other_controls.items()
        },
        "simple_questions": [
            _outcome(result, wording.SIMPLE_QUESTIONS[result.name], confidence)
            for result in examination.simple_questions
        ],
        "evidence": wording.evidence_summary(examination.evidence, evaluation.contract.layout, confidence),
        "answer_checks": wording.checks_summary(examination.answer_checks),
        "set_aside": dict(evaluation.set_aside),
    }


def _outcome(result: ControlResult, text: wording.ControlText, confidence: float) -> dict[str, object]:
    """Return a control or a simple question as detail.json has it."""
    return {
        "name": result.name,
        "held": result.held,
        "captures": result.captures,
        "expected": text.expected,
        "outcome": wording.control_outcome(result, confidence),
        "checks": [asdict(check) | {"held": check.held} for check in result.checks],
    }


def _headline_scores(evaluation: Evaluation, source: str = "") -> dict[str, pd.Series]:
    """Return the scores of production's question, metric -> value: of the model in both shots, and of the baselines."""
    groups = {ZERO_SHOT: (ZERO_SHOT, MODEL), ONE_SHOT: (ONE_SHOT, MODEL)}
    groups |= {name: (ZERO_SHOT, model) for name, model in _BASELINES.items()}
    answers = {name: evaluation.answers(shot, model=model, source=source) for name, (shot, model) in groups.items()}
    return {name: _scores_of(evaluation, rows) for name, rows in answers.items() if len(rows)}


def _scores_of(evaluation: Evaluation, answers: pd.DataFrame) -> pd.Series:
    """Return the scores of answers to production's question of one model, shot and source: metric -> value."""
    chosen = evaluation.scores[evaluation.scores["image_type"] == metrics.ALL]
    for column in metrics.GROUP[:-1]:
        chosen = chosen[chosen[column] == answers[column].iloc[0]]
    return chosen.set_index("metric")["value"].dropna()


def _round(scores: pd.Series, names: tuple[str, ...]) -> dict[str, float]:
    return {name: round(float(scores[name]), _PLACES) for name in names if name in scores}


def _write_json(content: Mapping, path: Path) -> None:
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    write_file(path, table.to_csv(index=False, lineterminator="\n"))
