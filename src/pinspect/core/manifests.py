"""The manifests that stages leave for one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pinspect.core.errors import StageInputError

MANIFEST = "manifest.csv"


def read_manifest(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The `columns` of a stage's manifest, every value as the string that stands there (`NA` is a word here).

    A manifest is written last: where it is missing, its stage is not complete. Raises StageInputError for a missing
    manifest or column.
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
    return manifest[list(columns)]
