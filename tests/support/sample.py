"""Captures for tests: pictures of the virtual line, in folders as a user provides them."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import yaml

from pinspect.captures.table import COLUMNS
from pinspect.core.params import Params, VirtualParams, load_params
from pinspect.core.yaml_file import SETTINGS_FILE, SETTINGS_SECTIONS
from pinspect.virtual_line import VirtualCapture, render_line

ROOT = Path(__file__).parents[2]


def params() -> Params:
    """Return the shipped parameters."""
    return load_params(ROOT / "params.yaml")


def stage_process(stage: str, root: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m stages.<stage>` of this checkout in the project folder `root`."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    return subprocess.run(command, cwd=root, env=stage_environment(**environment), capture_output=True, text=True)


def stage_environment(**values: str) -> dict[str, str]:
    """Return an environment in which this checkout's `stages` run from any folder."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | values


def set_values(root: Path, section: str, **values: object) -> None:
    """Change values in a section of `params.yaml` or `settings.yaml`, depending on which file has the section."""
    path = root / (SETTINGS_FILE if section in SETTINGS_SECTIONS else "params.yaml")
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@lru_cache
def line(seed: int = 1, train: int = 12, references: int = 2, shapes: tuple[str, ...] = ("CYLN", "SQUR")):
    """Return captures of a small virtual line: the references of each shape, then the inspected captures."""
    virtual = VirtualParams(train=train, test=0, references=references, defective_share=0.5, seed=seed)
    contract = params().contract()
    return tuple(render_line(contract.layout, shapes, contract.drawings, virtual))


def row(capture: VirtualCapture) -> dict[str, str]:
    """Return the row of `labels.csv` for a capture."""
    return {
        "file": capture.name,
        "shape": capture.shape,
        "judgement": capture.judgement,
        "defect_mode": capture.defect_mode,
        "defect_position": capture.defect_position,
        "role": capture.role,
    }


def drop(folder: Path, captures: Iterable[VirtualCapture]) -> Path:
    """Add captures and their labels to `folder`, after the existing rows."""
    captures = list(captures)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for capture in captures:
        (folder / "images" / capture.name).write_bytes(capture.jpeg)
    write_labels(folder, [*read_labels(folder), *map(row, captures)])
    return folder


def read_labels(folder: Path) -> list[dict[str, str]]:
    """Return the rows of `labels.csv`; empty if the file does not exist."""
    path = folder / "labels.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_labels(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write `labels.csv` with the columns of the rows."""
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below `folder` with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
