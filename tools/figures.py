"""Write the README's figures from the last evaluation: `make figures`, or `python tools/figures.py`."""

import json
import re
from pathlib import Path

from pinspect.cli.summary import BLOCKS, score_rows

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)


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


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(), json.loads((ROOT / "reports/eval/metrics.json").read_text())))
