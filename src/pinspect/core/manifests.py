"""Read and write the manifests of the stages' output folders.

Without shards (`raw.shards: 0`) a manifest is one table, `manifest.csv`. With shards it is one Parquet file for each
shard, `manifest/<shard>.parquet`, and `manifest.csv` lists them with their hashes. So `manifest.csv` changes whenever a
row changes, and DVC's stages depend on it in both forms. A stage writes it last: a folder without it is not complete.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from pinspect.core.errors import StageInputError

MANIFEST = "manifest.csv"
PARTS = "manifest"
WINDOW = 8192  # rows that a stage holds at once, if a shard has fewer
_PART_COLUMNS = ("part", "rows", "sha256")
_AGAIN = "run `dvc repro -f`, which makes it again"

Window = tuple[str, ...]  # shards; a table without shards is one window with the empty name
WHOLE: Window = ("",)


def read_manifest(path: Path, columns: Sequence[str], window: Window | None = None) -> pd.DataFrame:
    """Read columns of a stage's manifest, every value as a string; an empty cell is an empty string.

    Args:
        path: The manifest.
        columns: The columns to return.
        window: Read the rows of these shards only, from `manifest_windows`; by default all rows.

    Raises:
        StageInputError: The manifest, one of its parts or a column is missing.
    """
    manifest = read_table(path)
    if tuple(manifest) == _PART_COLUMNS:
        names = [name for name in manifest["part"] if window is None or name in window]
        parts = [read_part(path.parent / part_file(name), columns) for name in names]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns), dtype=str)
    _require(path, columns, [str(name) for name in manifest])
    return manifest.filter(items=list(columns))


def manifest_windows(path: Path, rows: int = WINDOW) -> list[Window]:
    """Return the shards of a manifest in groups of neighbors, so that a stage reads and holds one group at a time.

    Args:
        path: The manifest.
        rows: Rows of a group; a larger shard is a group by itself.

    Raises:
        StageInputError: The manifest is missing or not readable.
    """
    manifest = read_table(path)
    if tuple(manifest) != _PART_COLUMNS:
        return [WHOLE]
    return group_shards(dict(zip(manifest["part"], manifest["rows"].astype(int), strict=True)), rows)


def group_shards(sizes: Mapping[str, int], rows: int = WINDOW) -> list[Window]:
    """Group neighboring shards to windows of at most `rows` rows, or of one larger shard.

    Args:
        sizes: Shard -> its number of rows.
        rows: Rows of a window.
    """
    windows: list[list[str]] = []
    total = 0
    for shard in sorted(sizes):
        if not windows or total + sizes[shard] > rows:
            windows.append([])
            total = 0
        windows[-1].append(shard)
        total += sizes[shard]
    return [tuple(window) for window in windows]


def iterate_manifest(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield the rows of a manifest window by window, see `read_manifest`."""
    for window in manifest_windows(path):
        yield read_manifest(path, columns, window)


def gather_rows(parts: Iterable[pd.DataFrame], mask: Callable[[pd.DataFrame], pd.Series[bool]]) -> pd.DataFrame:
    """Return the rows of all parts of a raw manifest that a mask selects, in the order of a manifest without shards."""
    selected: list[pd.DataFrame] = [part[mask(part)] for part in parts]
    return pd.concat(selected).sort_values(["source", "capture"], kind="stable", ignore_index=True)


def tabulate_counts(counted: Mapping[tuple[str, ...], int], names: Sequence[str]) -> pd.DataFrame:
    """Return counts of rows as a table.

    Args:
        counted: The values of some columns -> the number of rows with them.
        names: The names of these columns; the last one's values are the columns of the table.
    """
    table = pd.DataFrame([(*key, count) for key, count in sorted(counted.items())], columns=[*names, "rows"])
    return table.set_index(list(names))["rows"].unstack(fill_value=0)


def part_file(shard: str) -> str:
    """Return the file of a manifest's part, relative to the stage's folder."""
    return f"{PARTS}/{shard}.parquet"


def encode_part(rows: pd.DataFrame) -> bytes:
    """Return rows as Parquet, every value as the string that a CSV file has; equal rows give equal bytes."""
    words = pd.read_csv(io.StringIO(rows.to_csv(index=False)), dtype=str, keep_default_na=False)  # as without shards
    content = io.BytesIO()
    words.to_parquet(content, engine="pyarrow", compression="zstd", index=False)
    return content.getvalue()


def encode_list(parts: Mapping[str, tuple[int, str]]) -> str:
    """Return the list of a manifest's parts as CSV.

    Args:
        parts: Shard -> number of rows and sha256 of its file.
    """
    rows = [f"{shard},{count},{sha256}\n" for shard, (count, sha256) in sorted(parts.items())]
    return f"{','.join(_PART_COLUMNS)}\n{''.join(rows)}"


def sha256_of(content: bytes) -> str:
    """Return the sha256 of a part."""
    return hashlib.sha256(content).hexdigest()


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file, every value as a string.

    Raises:
        StageInputError: The file is missing or not readable.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run `dvc repro`, which makes it") from None
    except ValueError as error:
        raise StageInputError(f"{path}: not readable ({error}); {_AGAIN}") from None


def read_part(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read columns of a part of a manifest, by default all, every value as a string.

    Raises:
        StageInputError: The part or a column is missing, or the part is not readable.
    """
    try:
        return pd.read_parquet(path, engine="pyarrow", columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found, but {MANIFEST} lists it; {_AGAIN}") from None
    except (ValueError, OSError) as error:  # Arrow's errors; a column may be missing
        raise StageInputError(f"{path}: not readable ({error}); {_AGAIN}") from None


def _require(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    missing = [column for column in columns if column not in present]
    if missing:
        raise StageInputError(f"{path}: columns {missing} are missing; {_AGAIN}")
