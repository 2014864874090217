"""The section `report` of `settings.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pinspect.core.yaml_file import NaturalInt, PositiveInt, Section, Share, load_settings

Score = Literal[
    "exact_match",
    "balanced_accuracy",
    "address_on_defective",
    "mode_on_defective",
    "escape_rate",
    "overkill_rate",
    "parse_rate",
    "auroc",
    "ece",
]


class ReportSettings(Section):
    """How scores are reported.

    Attributes:
        bounds: What the report holds the scores against: at least this, for escape and overkill rates at most this.
        confidence: Confidence level of all intervals.
        bootstrap_samples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """

    bounds: dict[Score, Share]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    bootstrap_samples: PositiveInt
    seed: NaturalInt


def load_report_settings(root: Path) -> ReportSettings:
    """Read the section `report` of the project in `root`. Raises ParamsError."""
    return load_settings(root, "report", ReportSettings)
