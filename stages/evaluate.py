"""The model's answers -> scores, plots and the report. Asks no model and takes seconds.

    python -m stages.evaluate

Reads reports/predictions, reports/answers/validation.json, models/operating_point.json, models/adapter,
data/chat, the pictures of data/composited, data/raw/manifest.csv and data/dst/manifest.csv. Writes reports/eval:
metrics.json, detail.json, scores.csv, validation_scores.csv, controls.csv, evidence.csv, plots/*.csv and report.html.
"""

from pathlib import Path

from pinspect.core.stage import run_stage
from pinspect.evaluation.evaluation import read_evaluation
from pinspect.evaluation.writing import write_evaluation


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    out = root / "reports/eval"
    for name, value in write_evaluation(read_evaluation(root), out).items():
        print(name, value)
    print(f"report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    run_stage("evaluate", main)
