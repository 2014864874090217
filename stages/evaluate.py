"""The adapter -> its scores and the report.

    python stages/evaluate.py

Reads models/base, models/adapter, data/chat/test.jsonl and data/composited; for the baseline data/raw and data/dst.
Writes reports/eval: predictions.csv, scores.csv, detail.json, plots/*.csv, report.html and metrics.json.
"""

from pathlib import Path

from pinspect import quiet  # noqa: F401  before the libraries that read its settings
from pinspect.data.chat import read_chat
from pinspect.errors import run
from pinspect.evaluation import evaluate, predictions
from pinspect.evaluation.baseline import fit_baseline
from pinspect.model.loading import load_inspector
from pinspect.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    contract, images, out = params.contract(), root / "data/composited", root / "reports/eval"
    rows = read_chat(root / "data/chat/test.jsonl")
    subject = evaluate.read_subject(root, Path(params.train.base), root / "params.yaml")
    inspector = load_inspector(root / params.train.base, root / "models/adapter")
    answered = evaluate.answer_test_rows(inspector, rows, images, contract, params.evaluate)
    baseline = fit_baseline(root / "data/dst", root / "data/raw", contract)
    answered += baseline.predictions(evaluate.headline_rows(rows, params.evaluate), evaluate.BASELINE)
    headline = evaluate.write_evaluation(
        predictions.table(answered), rows, images, contract, params.evaluate, subject, out
    )
    for name, block in headline.items():
        print(name, block)
    print(f"report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    run(main)
