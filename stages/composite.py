"""The raw and the dst folder -> composites, the pictures that the model sees.

    python -m stages.composite

Reads data/raw and data/dst. Writes data/composited.
"""

from pathlib import Path

from pinspect.captures.engines import load_engine
from pinspect.composites.composited import build_composited
from pinspect.composites.views import Style
from pinspect.core.params import load_params
from pinspect.core.stage import run_stage
from pinspect.model.families import composite_cell


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    data = root / "data"
    counts = build_composited(
        data / "raw",
        data / "dst",
        data / "composited",
        Style.of(params, composite_cell(params)),
        stacks_per_capture=params.chat.kinds.get("stacked", 0),
        engine=load_engine(root),
        shards=params.raw.shards,
    )
    print(counts.to_string())


if __name__ == "__main__":
    run_stage("composite", main)
