"""Captures and the virtual line -> the raw folder.

    python -m stages.raw

Reads data/captures. Writes data/raw, and to data/splits.csv the split of each new capture, which never changes again.
"""

from pathlib import Path

from pinspect.captures.change import heal
from pinspect.captures.engines import load_engine
from pinspect.captures.raw import build_raw
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage

CAPTURES = Path("data/captures")


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    data = root / "data"
    report = build_raw(
        root / CAPTURES,
        data / "raw",
        data / "splits.csv",
        params.contract(),
        params.raw,
        engine=load_engine(root),
    )
    print(report.counts.to_string())
    print(f"{report.made} items processed, all others unchanged", *report.remarks, sep="\n")


if __name__ == "__main__":
    run(lambda: heal(CAPTURES))  # before the inputs are compared
    run_stage("raw", main)
