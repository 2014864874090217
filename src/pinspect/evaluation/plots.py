"""The tables that `dvc plots show` draws."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pinspect.core.files import write_file
from pinspect.evaluation import metrics


def write_plot_tables(name: str, answers: pd.DataFrame, folder: Path) -> None:
    """Write confusion_<name>.csv, roc_<name>.csv and reliability_<name>.csv.

    Args:
        name: Name of the series, such as `zero_shot`.
        answers: Its predictions.
        folder: Folder of the files, usually `reports/eval/plots`.
    """
    answered = answers["found_defect_mode"].where(answers["parses"].astype(bool), metrics.NOT_ANSWERED)
    tables = {
        "confusion": pd.DataFrame({"expected": answers["expected_defect_mode"], "found": answered}),
        "roc": metrics.roc(answers),
        "reliability": metrics.reliability(answers),
    }
    for kind, table in tables.items():
        write_file(folder / f"{kind}_{name}.csv", table.to_csv(index=False, lineterminator="\n"))
