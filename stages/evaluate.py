"""The adapter -> its scores and the report.

    python stages/evaluate.py

Reads the base model, models/adapter, models/operating_point.json, data/chat/{validation,test}.jsonl and
data/composited; for the baseline data/raw and data/dst. Writes reports/eval: predictions.csv, scores.csv, controls.csv,
evidence.csv, answer_checks.json (Great Expectations on what the model answered), detail.json, plots/*.csv, report.html
and metrics.json.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from pinspect.chat.checks import check_model_answers
from pinspect.core import environment, predictions
from pinspect.core.errors import run
from pinspect.core.operating_point import read_operating_point
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.evaluation import evaluate
from pinspect.evaluation.settings import load_report_settings
from pinspect.examination.answering import answer_test_rows, headline_rows
from pinspect.examination.baseline import fit_baseline
from pinspect.examination.examination import examine
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_inspector


def main(root: Path = Path()) -> None:
    report = load_report_settings(root)
    params = load_params(root / "params.yaml")
    asked, contract, images = params.evaluate, params.contract(), root / "data/composited"
    validation, rows = (read_chat(root / f"data/chat/{split}.jsonl") for split in ("validation", "test"))
    base, adapter = checkpoint_of(params.model, root), root / "models/adapter"
    subject = evaluate.read_subject(root, base.source, root / "params.yaml")
    point = read_operating_point(root / "models/operating_point.json", adapter)
    inspector = load_inspector(base, adapter)
    answered = answer_test_rows(inspector, rows, images, contract, asked, point.threshold)
    own = evaluate.own_predictions(answered, asked)
    checked = check_model_answers(own, contract)
    kept = f"{checked.rows - checked.failing_rows} of {checked.rows} answers keep all {len(checked.expectations)} rules"
    subject = replace(subject, facts={**subject.facts, "Answer checks": kept})
    found = examine(inspector, rows, own, validation, images, contract, asked, point.threshold, report.confidence)
    baseline = fit_baseline(root / "data/dst", root / "data/raw", contract)
    compared = predictions.table(baseline.predictions(headline_rows(rows, asked), evaluate.BASELINE))
    answered = pd.concat([answered, compared], ignore_index=True)
    out = root / "reports/eval"
    headline = evaluate.write_evaluation(answered, rows, images, contract, asked, report, subject, out, point, found)
    (out / "answer_checks.json").write_text(checked.to_json(), encoding="utf-8")
    for name, block in headline.items():
        print(name, block)
    print(f"report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    environment.apply()
    run(main)
