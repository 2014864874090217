"""The raw and the dst folder -> composites, the pictures that the model sees.

    python stages/composite.py

Reads data/raw and data/dst (their manifests); writes data/composited.
"""

from pathlib import Path

from pinspect.composites.composited import Style, build_composited
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.model.families import composite_cell


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    drawn = params.composite
    cell = composite_cell(params)
    style = Style(params.layout.layout(), cell, drawn.grid, drawn.jpeg_quality, params.raw.max_pixels)
    stacks = params.chat.kinds.get("stacked", 0)
    data = root / "data"
    counts = build_composited(data / "raw", data / "dst", data / "composited", style, stacks_per_capture=stacks)
    print(counts.to_string())


if __name__ == "__main__":
    run(main)
