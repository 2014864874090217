"""Measures how well the grid finder finds pin fields without any field box.

    python benchmarks/grid.py [--series lines/series]

Three tests: the synthetic looks of tests/support/looks.py (true places known), the sample line (true places from the
field boxes in labels.csv), and the series line (boxes.csv has the box around the pins' tops). Writes
benchmarks/results/grid.json and grid.md. Distances are shares of the pitch; the goal is 0.15 at most.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from line_captures import BOX, Group, read_line

from pinspect.core.layout import Layout
from pinspect.core.params import load_params
from pinspect.nsoartc.grid import PinGrid, find_grid
from tests.support.looks import LOOKS, draw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=ROOT / "lines/series", help="folder of the series line")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    params = load_params(ROOT / "params.yaml")
    rows = [look_row(name) for name in LOOKS] + [nonsense_row(name) for name in ("noise", "wood", "stripes")]
    for group in read_line(ROOT / "data/captures", params):
        grid, duration = timed(group.space.mean, group.space.layout)
        distance = np.linalg.norm(grid.centers - group.space.pin_centers, axis=1).max() / group.space.pitch
        rows.append(row(f"sample line, {group.name}", grid, distance, duration))
    boxes = pd.read_csv(arguments.series / "boxes.csv").set_index("file")
    for group in read_line(arguments.series, params):
        grid, duration = timed(group.space.mean, group.space.layout)
        rows.append(
            row(f"series line, {group.name} (edges of the field)", grid, edge_error(group, grid, boxes), duration)
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "grid.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "grid.md").write_text(as_markdown(rows), encoding="utf-8")
    print(as_markdown(rows))


def timed(image: np.ndarray, layout: Layout) -> tuple[PinGrid, float]:
    start = time.process_time()
    return find_grid(image, layout), time.process_time() - start


def row(name: str, grid: PinGrid, distance: float | None, duration: float) -> dict:
    largest = None if distance is None else round(float(distance), 3)
    return {
        "image": name,
        "largest_distance": largest,
        "confidence": round(grid.confidence, 2),
        "s": round(duration, 2),
    }


def look_row(name: str) -> dict:
    look = LOOKS[name]
    image, centers = draw(look)
    grid, duration = timed(image, look.layout)
    return row(name, grid, np.linalg.norm(grid.centers - centers, axis=1).max() / look.pitch, duration)


def nonsense_row(name: str) -> dict:
    noise = np.random.default_rng(0).random((260, 640), np.float32)
    image = {
        "noise": noise,
        "wood": cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 1, cv2.NORM_MINMAX),
        "stripes": np.tile((np.sin(np.arange(640) / 8) > 0).astype(np.float32), (260, 1)),
    }[name]
    grid, duration = timed(image, Layout(("U", "C", "D"), 9))
    return row(f"no pins: {name}", grid, None, duration)


def edge_error(group: Group, grid: PinGrid, boxes: pd.DataFrame) -> float:
    """The largest distance of the found field's four edges from the references' true ones, in pitches."""
    edges = []
    for file, place, is_reference in zip(group.table["file"], group.places, group.is_reference, strict=True):
        if is_reference:
            x0, y0, x1, y1 = boxes.loc[file, BOX].astype(float)
            corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) @ place.matrix[:, :2].T + place.matrix[:, 2]
            left, right = corners[[0, 3], 0].mean(), corners[[1, 2], 0].mean()
            edges.append((left, corners[:2, 1].mean(), right, corners[2:, 1].mean()))
    radius = grid.diameter / 2
    found = (*(grid.centers.min(axis=0) - radius), *(grid.centers.max(axis=0) + radius))
    return float(np.abs(np.median(edges, axis=0) - found).max() / grid.pitch)


def as_markdown(rows: list[dict]) -> str:
    table = [
        f"| {each['image']} | {'' if each['largest_distance'] is None else each['largest_distance']} | "
        f"{each['confidence']} | {each['s']} |"
        for each in rows
    ]
    return "\n".join(
        [
            "# The grid finder: figures",
            "",
            "Made by `python benchmarks/grid.py`. No field box is given. Largest distance of a found pin center from",
            "the true one, in pitches (goal: 0.15); on the series line, where only the field's box is known, the",
            "largest distance of one of its four edges. A confidence below 0.6 stops the dst stage.",
            "",
            "| image | largest distance | confidence | s |",
            "| --- | --- | --- | --- |",
            *table,
            "",
        ]
    )


if __name__ == "__main__":
    main()
