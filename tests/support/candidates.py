"""Captures to split, without pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from pinspect.captures.splits import SplitRule, assign_splits


@dataclass(frozen=True)
class Candidate:
    """A row of the captures that `assign_splits` takes."""

    file: str
    sha256: str
    perceptual_hash: str
    is_reference: bool
    label: str = ""


def assign(
    candidates: Sequence[Candidate], rule: SplitRule, recorded: dict[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Return the split of each candidate by its sha256, and the remarks."""
    table = pd.DataFrame([asdict(candidate) for candidate in candidates], columns=[*Candidate.__dataclass_fields__])
    splits, remarks = assign_splits(table, rule, pd.Series(recorded or {}, dtype=str))
    assert splits.index.equals(table.index)
    return dict(zip(table["sha256"], splits, strict=True)), remarks
