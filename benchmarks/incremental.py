"""Measure what ten captures more cost on 1,000: `python benchmarks/incremental.py [captures]`.

The stages raw, dst, composite and chat run on captures of the virtual line, each stage in this process: a clean run,
then with ten captures more, then clean on all of them. Writes benchmarks/results/incremental.json and incremental.md.
One core; about three minutes for 1,000 captures.
"""

import contextlib
import csv
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
from threadpoolctl import threadpool_limits

from pinspect.captures.raw import build_raw
from pinspect.chat.dataset import build_chat, write_chat
from pinspect.composites.composited import build_composited
from pinspect.composites.views import Style
from pinspect.core.params import Params, VirtualParams, load_params
from pinspect.model.families import composite_cell
from pinspect.nsoartc.dst import Reading, build_dst
from pinspect.virtual_line import VirtualCapture, render_line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
REFERENCES, ADDED = 10, 10  # references: of each shape
LABELS = ("file", "shape", "judgement", "defect_mode", "defect_position", "role")


def main() -> None:
    cv2.setNumThreads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    params = load_params(ROOT / "params.yaml")
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the progress bars
        threadpool_limits(1),
    ):
        measured = measure(Path(folder), count, params)
    measured["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one used; Python {platform.python_version()}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "incremental.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "incremental.md").write_text(as_markdown(measured), encoding="utf-8")
    print(as_markdown(measured))


def measure(folder: Path, count: int, params: Params) -> dict:
    """Return seconds of each stage, clean and with `ADDED` captures more, and whether a clean run gives the same."""
    contract = params.contract()
    virtual = VirtualParams(train=count + ADDED, test=0, references=REFERENCES, defective_share=0.5, seed=31)
    captures = list(render_line(contract.layout, contract.shapes, contract.drawings, virtual))
    drop(folder / "captures", captures[:-ADDED])
    clean = run_stages(folder / "captures", folder / "growing", params)
    drop(folder / "captures", captures)
    added = run_stages(folder / "captures", folder / "growing", params)
    (folder / "again").mkdir()
    shutil.copy(folder / "growing/splits.csv", folder / "again")  # a committed file: no capture ever changes its split
    run_stages(folder / "captures", folder / "again", params)
    return {
        "captures": count,
        "clean_s": clean,
        "ten_more_s": added,
        "share": {name: round(added[name] / clean[name], 4) for name in clean},
        "identical_to_a_clean_run": contents(folder / "growing") == contents(folder / "again"),
    }


def drop(folder: Path, captures: Sequence[VirtualCapture]) -> None:
    """Write captures and labels.csv as a user does."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for capture in captures:
        path = folder / "images" / capture.name
        if not path.exists():
            path.write_bytes(capture.jpeg)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(LABELS)
        values = ("name", *LABELS[1:])
        writer.writerows([getattr(capture, value) for value in values] for capture in captures)


def run_stages(captures: Path, data: Path, params: Params) -> dict[str, float]:
    """Run the stages from raw to chat; return the seconds of each, and of all."""
    virtual = params.raw.virtual.model_copy(update={"train": 0, "validation": 0, "test": 0})
    raw_params = params.raw.model_copy(update={"virtual": virtual})
    contract, reading = params.contract(), Reading(params.layout.layout(), params.dst, params.raw.max_pixels)
    style, stacks = Style.of(params, composite_cell(params)), params.chat.kinds.get("stacked", 0)
    shards = raw_params.shards
    raw, dst, composited = data / "raw", data / "dst", data / "composited"
    stages = {
        "raw": lambda: build_raw(captures, raw, data / "splits.csv", contract, raw_params, workers=1),
        "dst": lambda: build_dst(raw, dst, reading, shards=shards, workers=1),
        "composite": lambda: build_composited(
            raw, dst, composited, style, stacks_per_capture=stacks, shards=shards, workers=1
        ),
        "chat": lambda: write_chat(build_chat(raw, dst, composited, contract, params.chat), data / "chat"),
    }
    seconds: dict[str, float] = {}
    for name, stage in stages.items():
        start = time.process_time()
        stage()
        seconds[name] = round(time.process_time() - start, 2)
    return seconds | {"all": round(sum(seconds.values()), 2)}


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".states.sqlite")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def as_markdown(measured: dict) -> str:
    equality = "byte for byte those" if measured["identical_to_a_clean_run"] else "NOT those"
    rows = [
        f"| {name} | {measured['clean_s'][name]} | {measured['ten_more_s'][name]} | {measured['share'][name]:.1%} |"
        for name in measured["clean_s"]
    ]
    return "\n".join(
        [
            f"# Ten captures more on {measured['captures']:,}",
            "",
            f"Made by `python benchmarks/incremental.py` on {measured['machine']}. Seconds of process time.",
            "",
            "| stage | clean run | ten more | share |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"All folders are {equality} of a clean run.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
