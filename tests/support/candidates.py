"""Captures to split, without pictures."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from pinspect.captures.capture_table import new_capture_table
from pinspect.captures.labels import INSPECTED, REFERENCE
from pinspect.captures.splits import SplitRule, assign_splits


@dataclass(frozen=True)
class Candidate:
    """What `assign_splits` takes of a capture."""

    file: str
    sha256: str
    perceptual_hash: str
    is_reference: bool
    label: str = ""


def assign(
    candidates: Sequence[Candidate], rule: SplitRule, recorded: dict[str, str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Return the split of each candidate by its sha256, and the remarks."""
    with closing(new_capture_table()) as table:
        rows = (
            (each.file, each.sha256, each.perceptual_hash, REFERENCE if each.is_reference else INSPECTED, each.label)
            for each in candidates
        )
        columns = "file, sha256, perceptual_hash, role, judgement, defect_mode, defect_position"
        table.executemany(f"INSERT INTO captures ({columns}) VALUES (?, ?, ?, ?, ?, '', '')", rows)
        table.executemany("INSERT INTO decided VALUES (?, ?)", (recorded or {}).items())
        remarks = assign_splits(table, rule)
        return dict(table.execute("SELECT sha256, split FROM captures ORDER BY number")), remarks
