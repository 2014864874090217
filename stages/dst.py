"""The raw folder -> unit spaces and DST views.

    python -m stages.dst

Reads data/raw. Writes data/dst: the unit space of every line, the aligned DST view and the pin scores of every capture,
and the double-eye of every connector with a left and a right view.
"""

from pathlib import Path

from pinspect.captures.engines import load_engine
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage
from pinspect.nsoartc.dst import Reading, build_dst
from pinspect.nsoartc.set_aside import SET_ASIDE


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    reading = Reading(params.layout.layout(), params.dst, params.raw.max_pixels)
    report = build_dst(
        root / "data/raw", root / "data/dst", reading, shards=params.raw.shards, engine=load_engine(root)
    )
    print(report.counts.to_string())
    print(f"{report.made} captures compared, all others unchanged")
    for name in report.outliers:
        print(
            f"reference {name} differs from the other references and was left out of the unit space: look at it, then "
            "take it again, or remove its role 'reference' in labels.csv"
        )
    for name, reason in report.set_aside.items():
        print(f"{name}: set aside: {reason}")
    if report.pictures:
        print(f"pictures of the captures that were set aside: {root / 'data/dst' / SET_ASIDE}")
    for remark in report.remarks:
        print(remark)


if __name__ == "__main__":
    run_stage("dst", main)
