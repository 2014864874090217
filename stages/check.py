"""The chat dataset -> the answer checks; a bad answer stops the pipeline here, before training.

    python stages/check.py

Reads data/chat; writes reports/answers/validation.json and reports/answers/docs/index.html (Data Docs), also when
the checks fail.
"""

from pathlib import Path

from pinspect.chat.checks import check_chat
from pinspect.core.errors import run
from pinspect.core.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    reports = root / "reports/answers"
    result = check_chat(
        root / "data/chat", params.contract(), minimum_rows=params.check.minimum_rows, docs=reports / "docs"
    )
    (reports / "validation.json").write_text(result.to_json(), encoding="utf-8")
    result.require_success(
        "Correct the labels (data/captures/labels.csv) or the parameters that these rows come from, then run `dvc "
        f"repro`. Nothing was trained. All results: {reports / 'validation.json'}, {reports / 'docs/index.html'}"
    )
    print(f"{result.rows} rows keep all {len(result.expectations)} rules")


if __name__ == "__main__":
    run(main)
