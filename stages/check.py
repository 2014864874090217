"""The chat dataset -> the answer checks; a bad answer stops the pipeline here, before training.

    python -m stages.check

Reads data/chat, and the manifests of data/raw and data/composited, with whose labels the answers are compared. Writes
reports/answers/validation.json, also when the checks fail, and reports/answers/passed.json only when they pass.
Training depends on passed.json alone, which has no sentence of a check, so rewording a check trains nothing again.
"""

import json
from pathlib import Path

from pinspect.chat.checks import check_chat
from pinspect.core.files import write_file
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    report, gate = root / "reports/answers/validation.json", root / "reports/answers/passed.json"
    gate.unlink(missing_ok=True)
    result = check_chat(root / "data", params.contract(), minimum_rows=params.check.minimum_rows)
    write_file(report, result.to_json())
    result.require_success(
        "Correct the labels (data/captures/labels.csv) or the parameters that these rows come from, then run `dvc "
        f"repro`. Nothing was trained. All results: {report}"
    )
    write_file(gate, json.dumps({"passed": True, "rows": result.rows}) + "\n")
    print(f"{result.rows} rows keep all {len(result.expectations)} rules")


if __name__ == "__main__":
    run_stage("check", main)
