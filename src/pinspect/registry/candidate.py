"""Gathers what is registered: the adapter of a project, its base and its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pinspect.core import digests, predictions
from pinspect.core.errors import StageInputError
from pinspect.core.question import Question, camera_else_virtual
from pinspect.model.families import Checkpoint
from pinspect.registry.versions import ADAPTER_TAG, EVALUATION_TAG, PREDICTIONS, TEST_SET_TAG


@dataclass(frozen=True)
class Candidate:
    """An evaluated adapter, ready to be registered.

    Attributes:
        root: The project's folder.
        base: The base model of the adapter.
        digests: adapter_sha256, base_sha256, dataset_digest, git_commit, evaluation_sha256 and test_set_digest.
        facts: The values of metrics.json and detail.json that are not numbers, as text: `headline.view`,
            `controls.blank` and so on.
        scores: The numbers of metrics.json: `zero_shot.exact_match` and so on.
        answered: The answers to production's question on the test captures: rows of a predictions table.
    """

    root: Path
    base: Checkpoint
    digests: Mapping[str, str]
    facts: Mapping[str, str]
    scores: Mapping[str, float]
    answered: pd.DataFrame

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.root / "models/adapter"

    @property
    def operating_point(self) -> Path:
        """The file with the threshold of P(defective)."""
        return self.root / "models/operating_point.json"

    @property
    def line_profile(self) -> Path:
        """The file that the station compares its captures with."""
        return self.root / "models/line_profile.json"

    @property
    def reports(self) -> list[Path]:
        """The files of the evaluation that are stored with a version, as far as they exist."""
        files = [f"eval/{name}" for name in ("report.html", "metrics.json", "detail.json", "scores.csv")]
        files += [f"predictions/{PREDICTIONS}", "predictions/answer_checks.json", "answers/validation.json"]
        return [path for path in (self.root / "reports" / name for name in files) if path.is_file()]

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a version: digests, facts and scores."""
        return {**self.digests, **self.facts, **{name: f"{value:g}" for name, value in self.scores.items()}}


def read_candidate(root: Path, base: Checkpoint) -> Candidate:
    """Read the adapter of a project and its evaluation.

    Args:
        root: The project's folder.
        base: The base model that params.yaml names.

    Returns:
        The candidate.

    Raises:
        StageInputError: A file is missing, or the evaluation belongs to another adapter.
    """
    detail = _read_json(root / "reports/eval/detail.json")
    values = flatten(_read_json(root / "reports/eval/metrics.json"))
    answered = root / "reports/predictions" / PREDICTIONS
    adapter = digests.adapter_sha256(root / "models/adapter")
    if detail[ADAPTER_TAG] != adapter:
        raise StageInputError(
            f"reports/eval/detail.json: scores adapter {detail[ADAPTER_TAG][:12]}, but models/adapter is "
            f"{adapter[:12]}; run dvc repro evaluate"
        )
    hashes = {name: detail[name] for name in (ADAPTER_TAG, "base_sha256", "dataset_digest")}
    hashes["git_commit"] = digests.git_commit(root)
    hashes[EVALUATION_TAG] = digests.file_sha256(answered)
    headline = camera_else_virtual(Question(**detail["headline"]).answers(predictions.read(answered)))
    hashes[TEST_SET_TAG] = digests.digest_of_test_set(headline)
    scores = {name: float(value) for name, value in values.items() if _is_number(value)}
    facts = {name: _as_text(value) for name, value in values.items() if name not in scores}
    facts |= {f"headline.{name}": str(value) for name, value in detail["headline"].items()}
    held = {control["name"]: control["held"] for control in detail["controls"] if control["held"] is not None}
    facts |= {f"controls.{name}": _as_text(verdict) for name, verdict in held.items()}
    return Candidate(root, base, hashes, facts, scores, headline)


def flatten(nested: Mapping, prefix: str = "") -> dict:
    """Return `{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict = {}
    for name, value in nested.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run dvc repro evaluate") from None
    except json.JSONDecodeError as error:
        raise StageInputError(f"{path}: no JSON ({error}); run dvc repro --force evaluate") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: object) -> str:
    """Return a value that is not a number as a tag: booleans are `true` and `false`, as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)
