"""The adapter and the validation rows -> the operating point: from which P(defective) on a capture is defective. And
the line profile: how the line was when the model learnt from it.

    python stages/calibrate.py

Reads the base model, models/adapter, data/chat/validation.jsonl and data/composited, and for the profile data/raw and
data/dst. Writes models/operating_point.json, models/line_profile.json, and reports/validation: predictions.csv and
scores.csv, by which choices are made that the test split must not make.
"""

from pathlib import Path

from pinspect.core import environment, predictions
from pinspect.core.digests import weights_sha256
from pinspect.core.errors import run
from pinspect.core.operating_point import write_operating_point
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.evaluation import metrics
from pinspect.evaluation.settings import load_report_settings
from pinspect.examination.answering import answer_validation_rows
from pinspect.inspection.line_profile import make_profile, write_line_profile
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_inspector


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    asked, adapter, out = params.evaluate, root / "models/adapter", root / "reports/validation"
    rows, weights = read_chat(root / "data/chat/validation.jsonl"), weights_sha256(adapter)
    report = load_report_settings(root)
    inspector = load_inspector(checkpoint_of(params.model, root), adapter)
    point, answered = answer_validation_rows(
        inspector, rows, root / "data/composited", params.contract(), asked, weights
    )
    scores = metrics.score_table(
        answered, confidence=report.confidence, bootstrap_samples=report.bootstrap_samples, seed=report.seed
    )
    out.mkdir(parents=True, exist_ok=True)
    predictions.write(answered, out / "predictions.csv")
    metrics.write_scores(scores, out / "scores.csv")
    write_operating_point(point, root / "models/operating_point.json")
    profile = make_profile(root / "data/raw", root / "data/dst", answered, params)
    write_line_profile(profile, root / "models/line_profile.json")
    print(point.summary())
    print(profile.summary())


if __name__ == "__main__":
    environment.apply()
    run(main)
