"""Shows the registered versions as a table, and two of them side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.table import Table

from pinspect.core.params import Params
from pinspect.evaluation.score_names import SCORE_NAMES
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings, RegistrySettings
from pinspect.registry.versions import DECISION_TAG, ROLLBACK_TAG, TEST_SET_TAG, number_of, require_version

# The scores in a version's row: name -> tag. Production is zero-shot.
_SCORE_TAGS = {
    "zero_shot": "zero_shot.exact_match",
    "one_shot": "one_shot.exact_match",
    "escape": "zero_shot.escape_rate",
    "overkill": "zero_shot.overkill_rate",
}
_SHORT = 8  # characters of a digest


def leaderboard(root: Path, settings: RegisterSettings) -> list[dict]:
    """List the registered versions, newest first.

    Args:
        root: The project's folder.
        settings: The section `register`.

    Returns:
        One row per version: version, aliases, zero_shot and one_shot (exact match on the camera's test captures),
        escape and overkill (zero-shot; None if a version has no such score), decision (promoted, refused, rolled back
        or None), data (digest of the chat dataset), test_set, adapter, commit and date (ISO 8601).

    Raises:
        RegistryError: The registry cannot be used.
    """
    name = settings.model_name
    with open_registry(root, settings) as client:
        numbers = [version.version for version in client.search_model_versions(f"name = '{name}'")]
        versions = [client.get_model_version(name, number) for number in numbers]  # a search returns no aliases
    return [_row(version) for version in sorted(versions, key=lambda version: -int(version.version))]


def compare(root: Path, params: Params, settings: RegistrySettings, first: str, second: str) -> dict:
    """Compare two versions on the same test set, zero-shot.

    A version that was scored on another test set answers the present one first.

    Args:
        root: The project's folder.
        params: The project's parameters.
        settings: The registry's settings.
        first: Number or alias of a version.
        second: Number or alias of another version.

    Returns:
        first and second (version, aliases, rescored), test_set, captures, scores (metric -> first, second, difference,
        low, high: the interval of second - first by the paired bootstrap) and mcnemar (outcome -> only_first,
        only_second, p_value: the captures that only one of the versions got right).

    Raises:
        RegistryError: There is no such version, or it cannot answer.
        StageInputError: The project lacks files of the present test set.
    """
    from pinspect.evaluation.comparing import compare_predictions
    from pinspect.registry.comparison import on_one_test_set

    report = settings.report
    with open_registry(root, settings.register) as client:
        versions = [require_version(client, settings.register.model_name, name) for name in (first, second)]
        ours, theirs = on_one_test_set(root, params, versions)
    comparison = compare_predictions(
        ours.answered,
        theirs.answered,
        confidence=report.confidence,
        bootstrap_samples=report.bootstrap_samples,
        seed=report.seed,
        on=("file",),
    )
    sides = [
        {"version": number_of(version), "aliases": sorted(version.aliases), "rescored": evidence.rescored}
        for version, evidence in zip(versions, (ours, theirs), strict=True)
    ]
    return {
        "first": sides[0],
        "second": sides[1],
        "test_set": ours.test_set,
        "captures": comparison.captures,
        "scores": {metric: asdict(difference) for metric, difference in comparison.differences.items()},
        "mcnemar": {outcome: asdict(test) for outcome, test in comparison.mcnemar.items()},
    }


def print_leaderboard(rows: Sequence[Mapping]) -> None:
    """Print the result of `leaderboard` as a table."""
    table = Table()
    table.add_column("version", justify="right")
    table.add_column("aliases", no_wrap=True)
    for label in ("zero-shot", "one-shot", "escape", "overkill"):
        table.add_column(label, justify="right")
    for label in ("data", "date"):
        table.add_column(label, no_wrap=True)
    for row in rows:
        scores = [_figure(row[name]) for name in _SCORE_TAGS]
        status = "\n".join(row["aliases"]) or row["decision"] or ""
        table.add_row(row["version"], status, *scores, row["data"][:_SHORT], row["date"])
    console = Console()
    console.print(table)
    console.print("on the camera's test captures; more: pinspect compare A B")


def print_comparison(comparison: Mapping) -> None:
    """Print the result of `compare` as a table."""
    sides = [comparison["first"], comparison["second"]]
    table = Table(title=f"{comparison['captures']} captures, zero-shot, test set {comparison['test_set'][:_SHORT]}")
    table.title_justify = "left"
    table.add_column("")
    for side in sides:
        names = "".join(f" ({alias})" for alias in side["aliases"])
        table.add_column(f"version {side['version']}{names}", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("interval", justify="right")
    for metric, score in comparison["scores"].items():
        interval = f"{score['low']:+.3f} … {score['high']:+.3f}"
        figures = (_figure(score["first"]), _figure(score["second"]), f"{score['difference']:+.3f}", interval)
        table.add_row(SCORE_NAMES.get(metric, metric.replace("_", " ")), *figures)
    console = Console()
    console.print(table)
    numbers = [f"version {side['version']}" for side in sides]
    for outcome, test in comparison["mcnemar"].items():
        console.print(
            f"{outcome.replace('_', ' ')}: right with {numbers[0]} only {test['only_first']}, with {numbers[1]} only "
            f"{test['only_second']}, McNemar p = {test['p_value']:.3g}"
        )
    rescored = [side["version"] for side in sides if side["rescored"]]
    if rescored:
        console.print(f"answered the present test set now: version {', '.join(rescored)}")


def _row(version: ModelVersion) -> dict:
    tags = version.tags
    scores = {name: float(tags[tag]) if tag in tags else None for name, tag in _SCORE_TAGS.items()}
    return {
        "version": number_of(version),
        "aliases": sorted(version.aliases),
        **scores,
        "decision": _decision(tags),
        "data": tags.get("dataset_digest", ""),
        "test_set": tags.get(TEST_SET_TAG, ""),
        "adapter": tags.get("adapter_sha256", ""),
        "commit": tags.get("git_commit", ""),
        "date": datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).date().isoformat(),
    }


def _decision(tags: Mapping[str, str]) -> str | None:
    """Return the last decision on a version: rolled back, else promoted or refused; None if there was none."""
    if ROLLBACK_TAG in tags:
        return "rolled back"
    if DECISION_TAG not in tags:
        return None
    return "promoted" if json.loads(tags[DECISION_TAG])["promoted"] else "refused"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
