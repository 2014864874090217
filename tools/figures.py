"""Write the figures of the last evaluations: `make figures`, or `python tools/figures.py`.

The README's table comes from `reports/eval/metrics.json`. `benchmarks/results/line_scores.csv` and `line_controls.csv`
have what the sample line and the series line reach in each view: the model, the baselines, controls, simple questions.
A line that was not evaluated on this machine keeps its rows.
"""

import json
import re
from pathlib import Path

import pandas as pd

from pinspect.cli.summary import BLOCKS, score_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
BLOCK = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)
LINES = {"sample": ROOT, "series": ROOT / "lines/series"}
SCORES = (
    *("exact_match", "judgement_accuracy", "address_on_defective", "mode_on_defective"),
    *("escape_rate", "overkill_rate", "auroc"),
)


def table(metrics: dict) -> str:
    """The scores of `reports/eval/metrics.json` as a Markdown table."""
    captures = metrics["captures"]
    lines = [["", *BLOCKS.values()], ["---"] * (len(BLOCKS) + 1), *score_rows(metrics)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    virtual = metrics.get("virtual")
    sentence = f"\nOn {captures} captures."
    if virtual:
        sentence += (
            f" Exact match on {virtual['captures']} captures of the virtual line, zero-shot: "
            f"{virtual['exact_match']:.3f}."
        )
    return f"{rows}\n{sentence}\n"


def readme(text: str, metrics: dict) -> str:
    """The README's `text` with its figures renewed."""
    return BLOCK.sub(lambda _: table(metrics), text)


def scores_of(evaluation: Path) -> pd.DataFrame:
    """The scores of two-image prompts of each model, source, shot and view: value, its interval, number of answers."""
    scores = pd.read_csv(evaluation / "scores.csv")
    chosen = (scores["kind"] == "two_image") & (scores["decoding"] == "constrained") & scores["metric"].isin(SCORES)
    chosen &= (scores["image_type"] == "all") & (scores["shot"] != "all") & (scores["view"] != "all")
    return scores.loc[chosen, ["model", "source", "shot", "view", "metric", "value", "low", "high", "n"]]


def controls_of(evaluation: Path) -> pd.DataFrame:
    """The counts of the controls in each view, and of the simple questions in the view that production asks about."""
    detail = json.loads((evaluation / "detail.json").read_text())
    questions = [
        {"view": detail["headline"]["view"], "control": question["name"], "check": check["name"]}
        | {name: check[name] for name in ("hits", "n", "at_least", "bound", "held")}
        for question in detail["simple_questions"]
        for check in question["checks"]
    ]
    controls = pd.read_csv(evaluation / "controls.csv", dtype=object)
    return pd.concat([controls, pd.DataFrame(questions, dtype=object)])[
        ["view", "control", "check", "hits", "n", "at_least", "bound", "held"]
    ]


def renew(path: Path, rows: dict[str, pd.DataFrame]) -> None:
    """Replace the rows of these lines in a table; rows of other lines stay."""
    known = pd.read_csv(path, dtype=object) if path.exists() else pd.DataFrame({"line": []})
    parts = {line: part.drop(columns="line") for line, part in known.groupby("line")} | rows
    renewed = pd.concat([parts[line].assign(line=line) for line in LINES if line in parts])
    columns = ["line", *(column for column in renewed if column != "line")]
    renewed[columns].to_csv(path, index=False, lineterminator="\n")


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(), json.loads((ROOT / "reports/eval/metrics.json").read_text())))
    evaluations = {line: root / "reports/eval" for line, root in LINES.items()}
    evaluated = {line: folder for line, folder in evaluations.items() if (folder / "scores.csv").exists()}
    renew(RESULTS / "line_scores.csv", {line: scores_of(folder) for line, folder in evaluated.items()})
    renew(RESULTS / "line_controls.csv", {line: controls_of(folder) for line, folder in evaluated.items()})
