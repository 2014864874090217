"""The operating point: the threshold on P(defective) from which a capture is judged defective."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from pinspect.core.digests import weights_sha256
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file

LOCALIZER_THRESHOLD = 2.0  # of the localizer, without validation captures to choose it on
_REMEDY = "run dvc repro answer"


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and how it was chosen.

    Attributes:
        threshold: A capture is defective if P(defective) is at least this threshold, 0..1.
        wanted_escape_rate: The escape rate that was allowed on validation captures.
        escape_rate: The escape rate on the validation captures of `chosen_on`; None if there are none.
        overkill_rate: The overkill rate on the same captures; None if there are none.
        defective: Number of defective captures among them.
        passed: Number of passed captures among them.
        chosen_on: Source of the captures: `camera`, `virtual`, or `nothing` if neither has both judgements; the
            threshold is then even odds.
        view: The view in production's question.
        kind: The kind of prompt in production's question.
        weights_sha256: Hash of the adapter that the threshold was chosen for.
        localizer_threshold: The localizer calls a capture defective if its score is at least this threshold.
    """

    threshold: float
    wanted_escape_rate: float
    escape_rate: float | None
    overkill_rate: float | None
    defective: int
    passed: int
    chosen_on: str
    view: str
    kind: str
    weights_sha256: str
    localizer_threshold: float = LOCALIZER_THRESHOLD

    def summary(self) -> str:
        """Return the operating point in one line."""
        if self.escape_rate is None:
            return f"threshold {self.threshold:g}: no validation captures of both judgements to choose it on"
        return (
            f"threshold {self.threshold:.4g}: {self.escape_rate:.1%} of {self.defective} defective captures escape, "
            f"{self.overkill_rate:.1%} of {self.passed} passed captures are judged defective (validation, "
            f"{self.chosen_on})"
        )


def write_operating_point(point: OperatingPoint, path: Path) -> None:
    """Write an operating point as JSON."""
    write_file(path, json.dumps(asdict(point), indent=2) + "\n")


def read_operating_point(path: Path, adapter: Path | None = None) -> OperatingPoint:
    """Read an operating point.

    Args:
        path: A file that `write_operating_point` wrote.
        adapter: Folder of the adapter that the operating point must belong to; None accepts any.

    Returns:
        The operating point.

    Raises:
        StageInputError: The file is missing or broken, or the operating point was chosen for another adapter.
    """
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; {_REMEDY}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageInputError(f"{path}: not JSON ({error}); {_REMEDY}") from None
    names = {field.name for field in fields(OperatingPoint)}
    values = cast(dict[str, Any], values) if isinstance(values, dict) else {}
    if set(values) != names:
        raise StageInputError(f"{path}: expected the keys {', '.join(sorted(names))}; {_REMEDY}")
    point = OperatingPoint(**values)
    if not isinstance(values["threshold"], float) or not 0 <= point.threshold < 1:
        raise StageInputError(
            f"{path}: threshold: expected a number between 0 and 1, found {values['threshold']!r}; {_REMEDY}"
        )
    if not isinstance(values["localizer_threshold"], float) or point.localizer_threshold <= 0:
        raise StageInputError(
            f"{path}: localizer_threshold: expected a number above 0, found {point.localizer_threshold!r}; {_REMEDY}"
        )
    if adapter is not None and point.weights_sha256 != weights_sha256(adapter):
        raise StageInputError(f"{path}: chosen for another adapter than {adapter}; {_REMEDY}")
    return point
