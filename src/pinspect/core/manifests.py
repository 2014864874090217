"""Read the manifests of the stages' output folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pinspect.core.errors import StageInputError

MANIFEST = "manifest.csv"


def read_manifest(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns of a stage's manifest, every value as a string; an empty cell is an empty string.

    A stage writes its manifest last, so a folder without a manifest is not complete.

    Args:
        path: The manifest.
        columns: The columns to return.

    Raises:
        StageInputError: The manifest or a column is missing.
    """
    try:
        manifest = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro`, which makes it") from None
    except ValueError as error:
        raise StageInputError(f"{path}: not readable ({error}); run `dvc repro -f`, which makes it again") from None
    missing = [column for column in columns if column not in manifest]
    if missing:
        raise StageInputError(f"{path}: columns {missing} are missing; run `dvc repro -f`, which makes it again")
    return manifest.filter(items=list(columns))
