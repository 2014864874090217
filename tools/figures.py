"""Write the README's figures from the last evaluation: `make figures`, or `python tools/figures.py`."""

import json
import re
from pathlib import Path

from pinspect.cli.summary import BLOCKS, score_rows

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)


def table(metrics: dict) -> str:
    """The scores of `reports/eval/metrics.json` as a Markdown table."""
    captures = metrics["zero_shot"]["captures"]
    lines = [["", *BLOCKS.values()], ["---"] * (len(BLOCKS) + 1), *score_rows(metrics)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    virtual = score_rows(metrics.get("virtual", {}))
    told = f"\nOn {captures} captures."
    if virtual:
        told += (
            f" Exact match on {metrics['virtual']['zero_shot']['captures']} virtual ones, zero-shot: {virtual[0][1]}."
        )
    return f"{rows}\n{told}\n"


def readme(text: str, metrics: dict) -> str:
    """The README's `text` with its figures renewed."""
    return BLOCK.sub(lambda _: table(metrics), text)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(), json.loads((ROOT / "reports/eval/metrics.json").read_text())))
