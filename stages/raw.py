"""Captures and the virtual line -> the raw folder.

    python stages/raw.py

Reads data/captures; writes data/raw, and into data/splits.csv which split each capture belongs to for good.
"""

from pathlib import Path

from pinspect.captures.raw import build_raw
from pinspect.core.errors import run
from pinspect.core.params import load_params


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    data = root / "data"
    report = build_raw(data / "captures", data / "raw", data / "splits.csv", params.contract(), params.raw)
    print(report.counts.to_string())
    print(f"{report.made} pieces of work done, the rest was there", *report.remarks, sep="\n")


if __name__ == "__main__":
    run(main)
