"""A small line for the tests of the chat and check stages: manifests as the earlier stages write them, and composites
(small, but real JPEG files) drawn by the project's own imaging."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from pinspect.composites import drawing as composite
from pinspect.core.answers import VIEWS
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.params import Params, load_params

PROJECT = Path(__file__).resolve().parents[2]
CELL = 16
MODES = ("passed", "bend", "passed", "retract", "passed", "missing")
SPLITS = ("train", "train", "train", "train", "test", "test", "validation", "validation")


def make_line(root: Path, *, inspected: int = 16, references: int = 5, stacked: bool = False) -> Params:
    """Write params.yaml, data/raw, data/dst and data/composited below `root`: two shapes of a camera line, and of each
    `references` references and `inspected` inspected captures. The same numbers give the same files, and more captures
    leave those of fewer as they are."""
    root.mkdir(parents=True, exist_ok=True)
    settings = yaml.safe_load((PROJECT / "params.yaml").read_text())
    settings["model"]["precision"] = "float32"  # two ways to one result differ in its last digits only
    if not stacked:
        settings["chat"]["kinds"] = {"two_image": 3}
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    params = load_params(root / "params.yaml")
    raw = [
        row
        for shape in params.answers.shapes
        for row in (
            *(_capture(params, shape, "reference", number) for number in range(references)),
            *(_capture(params, shape, "inspected", number) for number in range(inspected)),
        )
    ]
    write_manifest(root, "raw", raw)
    write_manifest(root, "dst", [_dst_row(row) for row in raw])
    write_manifest(root, "composited", [row for capture in raw for row in _composites(root, params, capture)])
    if stacked:
        add_stacked(root)
    return params


def write_manifest(root: Path, stage: str, rows: list[dict]) -> None:
    folder = root / "data" / stage
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)


def manifest(root: Path, stage: str) -> list[dict]:
    return pd.read_csv(root / "data" / stage / "manifest.csv", dtype=str, keep_default_na=False).to_dict("records")


def change_row(root: Path, stage: str, file: str, **values: str) -> None:
    """Change the row of `file` in the manifest of a stage."""
    rows = manifest(root, stage)
    (row,) = [row for row in rows if row["file"] == file]
    row.update(values)
    write_manifest(root, stage, rows)


def files(root: Path, *, role: str = "inspected", shape: str = "CYLN", split: str | None = None) -> list[str]:
    return [
        row["file"]
        for row in manifest(root, "raw")
        if row["role"] == role and row["shape"] == shape and split in (None, row["split"])
    ]


def add_stacked(root: Path) -> None:
    """Add a stacked composite of every inspected capture below each reference of its shape."""
    captures = {row["file"]: row for row in manifest(root, "raw")}
    rows = manifest(root, "composited")
    singles = {(row["raw_file"], row["view"]): row["file"] for row in rows if row["kind"] == "single"}
    for (below, view), single in list(singles.items()):
        for above in files(root, role="reference", shape=captures[below]["shape"]):
            if captures[below]["role"] == "inspected":
                folder = root / "data/composited"
                name = f"{single.removesuffix('.jpg')}-{Path(above).stem}.jpg"
                pictures = [np.asarray(Image.open(folder / file)) for file in (singles[above, view], single)]
                Image.fromarray(composite.stacked(*pictures)).save(folder / name)
                rows.append(_composite_row(name, below, "stacked", view, reference_file=above))
    write_manifest(root, "composited", rows)


def _capture(params: Params, shape: str, role: str, number: int) -> dict:
    sha256 = hashlib.sha256(f"{shape} {role} {number}".encode()).hexdigest()
    mode = "passed" if role == "reference" else MODES[number % len(MODES)]
    addresses = params.layout.layout().addresses
    return {
        "file": f"images/{sha256[:2]}/{sha256[:20]}.jpg",
        "sha256": sha256,
        "source": "camera",
        "capture": f"{shape}_{role}_{number}.jpg",
        "shape": shape,
        "judgement": "passed" if mode == "passed" else "defective",
        "defect_mode": mode,
        "defect_position": NO_ADDRESS if mode == "passed" else str(addresses[number % len(addresses)]),
        "role": role,
        "split": "train" if role == "reference" else SPLITS[number % len(SPLITS)],
    }


def _dst_row(capture: dict) -> dict:
    score = 0.9 + int(capture["sha256"][:4], 16) / 16**4 / 10
    return {"file": capture["file"], "alignment_score": score, "error": ""}


def _composites(root: Path, params: Params, capture: dict) -> list[dict]:
    layout = params.layout.layout()
    generator = np.random.default_rng(int(capture["sha256"][:8], 16))
    rows = []
    for view in VIEWS:
        field = generator.integers(0, 255, (len(layout.rows) * CELL, layout.columns * CELL, 3), np.uint8)
        picture = composite.single(field, layout, CELL)
        name = f"{capture['file'].removesuffix('.jpg')}-{view}"
        rows.append(_composite_row(f"{name}.jpg", capture["file"], "single", view))
        _save(root / "data/composited" / rows[-1]["file"], picture)
        if capture["role"] == "reference":
            address = layout.addresses[generator.integers(layout.pins)]
            rows.append(_composite_row(f"{name}-star.jpg", capture["file"], "star", view, star_position=str(address)))
            starred = composite.draw_star(picture, address, layout, CELL)
            _save(root / "data/composited" / rows[-1]["file"], starred)
    return rows


def _composite_row(
    file: str, raw_file: str, kind: str, view: str, *, star_position: str = "", reference_file: str = ""
) -> dict:
    return {
        "file": file,
        "raw_file": raw_file,
        "kind": kind,
        "view": view,
        "star_position": star_position,
        "reference_file": reference_file,
    }


def _save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
