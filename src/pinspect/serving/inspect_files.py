"""Image files inspected by a registered model, one record each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from pinspect.answers import DEFECTIVE
from pinspect.params import load_params
from pinspect.serving.inspection import empty_record
from pinspect.serving.registry import load_registered

ALL_PASSED, SOME_DEFECTIVE, SOME_NOT_INSPECTED = 0, 1, 2
BATCH = 16
_SHOWN = {
    "file": "file",
    "judgement": "judgement",
    "defect_mode": "mode",
    "defect_position": "position",
    "p_defective": "P(defective)",
    "error": "error",
}


def inspect_files(root: Path, files: Sequence[Path], alias: str, shape: str = "") -> Iterator[dict]:
    """One record per file, in order, by the model that has `alias` in the registry of the project in `root`.

    A record has file, `answers.FIELDS`, answer, `inspection.SCORES`, model_version and error: None, or the reason why
    this file could not be inspected; its other values are then None. Raises RegistryError when there is no such model.
    """
    model, version = load_registered(root, load_params(root / "params.yaml").register_, alias)
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        there = [path for path in part if path.is_file()]
        answered = iter(_predicted(model, there, shape) if there else [])
        for path in part:
            record = next(answered) if path in there else empty_record(str(path)) | {"error": f"{path}: not found"}
            yield record | {"model_version": version}


def exit_code(records: Sequence[dict]) -> int:
    """0 when all passed, 1 when some are defective, 2 when something could not be inspected."""
    if any(record["error"] for record in records):
        return SOME_NOT_INSPECTED
    return SOME_DEFECTIVE if any(record["judgement"] == DEFECTIVE for record in records) else ALL_PASSED


def print_records(records: Iterator[dict], *, as_json: bool) -> list[dict]:
    """Print records, as JSON lines while they come or as one table, and return them."""
    if as_json:
        told = []
        for record in records:
            print(json.dumps(record, ensure_ascii=False), flush=True)
            told.append(record)
        return told
    told = list(records)
    table = Table()
    for label in _SHOWN.values():
        table.add_column(label, overflow="fold")
    for record in told:
        table.add_row(*(_text(record[name]) for name in _SHOWN))
    Console().print(table)
    return told


def _predicted(model, files: Sequence[Path], shape: str) -> list[dict]:
    asked = pd.DataFrame({"inspected": [str(path) for path in files]})
    if shape:
        asked["shape"] = shape
    return model.predict(asked).to_dict("records")


def _text(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
