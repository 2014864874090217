"""Exports the history of results: JSON lines, CSV for a spreadsheet, or Parquet for a data platform."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy as sa

from pinspect.core.errors import PinspectError
from pinspect.core.files import atomic_path
from pinspect.station import results_tables as tables
from pinspect.station.results import Correction, Inspection

CSV, PARQUET = ".csv", ".parquet"
_ROWS_AT_ONCE = 1000
_INSPECTION = [field.name for field in fields(Inspection) if field.name != "correction"]
_CORRECTION = [field.name for field in fields(Correction)]
COLUMNS = [*_INSPECTION, *(f"correction_{name}" for name in _CORRECTION)]


class ExportError(PinspectError):
    """Results cannot be written to this file."""


def write_json(inspections: Iterable[Inspection], file: TextIO) -> None:
    """Write one JSON object per line, as `GET /results/{id}` returns it."""
    file.writelines(json.dumps(inspection.to_dict(), ensure_ascii=False) + "\n" for inspection in inspections)


def write_csv(inspections: Iterable[Inspection], file: TextIO) -> int:
    """Write a table with `COLUMNS`, texts `without_formula`, values per pin as JSON lists; return how many rows."""
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    count = 0
    for row in map(_row, inspections):
        writer.writerow({name: _cell(value) for name, value in row.items()})
        count += 1
    return count


def without_formula(text: str) -> str:
    """Return a text with an apostrophe in front if a spreadsheet would take its first letter for that of a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def write_file(inspections: Iterable[Inspection], path: Path) -> int:
    """Write results to a file, which appears complete or not at all.

    Args:
        inspections: The results.
        path: `*.csv` (UTF-8 with a byte order mark, as spreadsheets expect) or `*.parquet`.

    Returns:
        How many results were written.

    Raises:
        ExportError: The suffix is another one, the file cannot be written, or pyarrow is not installed.
    """
    if path.suffix not in (CSV, PARQUET):
        raise ExportError(f"{path}: expected a file name that ends with {CSV} or {PARQUET}")
    try:
        with atomic_path(path) as partial:
            if path.suffix == PARQUET:
                return _write_parquet(inspections, partial)
            with partial.open("w", encoding="utf-8-sig", newline="") as file:
                return write_csv(inspections, file)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written: {error.strerror or error}") from None


def _write_parquet(inspections: Iterable[Inspection], path: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise ExportError(f"{path.suffix}: pyarrow is not installed; run pip install pyarrow, or write {CSV}") from None
    types = {
        sa.BigInteger: pa.int64(),
        sa.Double: pa.float64(),
        sa.Boolean: pa.bool_(),
        sa.JSON: pa.list_(pa.float64()),
        tables.Utc: pa.timestamp("us", tz="UTC"),
    }
    columns = {name: tables.inspections.c[name] for name in _INSPECTION}
    columns |= {f"correction_{name}": tables.corrections.c[name] for name in _CORRECTION}
    schema = pa.schema([(name, types.get(type(column.type), pa.string())) for name, column in columns.items()])
    rows, count = map(_row, inspections), 0
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(part, schema))
            count += len(part)
    return count


def _row(inspection: Inspection) -> dict[str, Any]:
    row = {name: getattr(inspection, name) for name in _INSPECTION}
    verdict = inspection.correction
    return row | {f"correction_{name}": getattr(verdict, name) if verdict else None for name in _CORRECTION}


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, str):
        return without_formula(value)
    return value.isoformat() if hasattr(value, "isoformat") else value
