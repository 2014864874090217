"""The registered versions as a table, and two of them side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.table import Table

from pinspect.cli.summary import SCORES
from pinspect.core.params import Params
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings, RegistrySettings
from pinspect.registry.versions import DECISION_TAG, ROLLBACK_TAG, TEST_SET_TAG, number_of, require_version

# What a version's line tells: its name -> the tag that holds it. Zero-shot is what production does.
_SCORE_TAGS = {
    "zero_shot": "zero_shot.exact_match",
    "one_shot": "one_shot.exact_match",
    "escape": "zero_shot.escape_rate",
    "overkill": "zero_shot.overkill_rate",
}
_SHORT = 8  # characters of a digest


def leaderboard(root: Path, settings: RegisterSettings) -> list[dict]:
    """One line a version, the newest first.

    Keys: version, aliases, zero_shot and one_shot (exact match on the camera's test captures), escape and overkill
    (zero-shot; None where a version has no such score), decision (promoted, refused, rolled back or None), data (digest
    of its chat dataset), test_set, adapter, commit, date (ISO). Raises RegistryError where the registry cannot be used.
    """
    name = settings.model_name
    with open_registry(root, settings) as client:
        versions = client.search_model_versions(f"name = '{name}'")
        # Only asked for by itself does a version tell its aliases.
        found = [client.get_model_version(name, version.version) for version in versions]
    return [_line(version) for version in sorted(found, key=lambda version: -int(version.version))]


def compare(root: Path, params: Params, settings: RegistrySettings, first: str, second: str) -> dict:
    """Two versions (numbers or aliases) on the same test set, zero-shot, asked anew where they were scored on another.

    Keys: first and second (version, aliases, rescored), test_set, captures, scores (metric -> first, second,
    difference, low, high: the paired bootstrap's interval of second - first) and mcnemar (outcome -> only_first,
    only_second, p_value: captures that only one of them got right). Raises RegistryError when there is no such version,
    else as `comparison.on_one_test_set`.
    """
    from pinspect.evaluation import metrics
    from pinspect.registry.comparison import on_one_test_set

    report = settings.report
    with open_registry(root, settings.register) as client:
        versions = [require_version(client, settings.register.model_name, name) for name in (first, second)]
        ours, theirs = on_one_test_set(root, params, versions)
    found = metrics.compare_predictions(
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
        "captures": found.captures,
        "scores": {metric: asdict(difference) for metric, difference in found.differences.items()},
        "mcnemar": {outcome: asdict(test) for outcome, test in found.mcnemar.items()},
    }


def print_leaderboard(lines: Sequence[Mapping]) -> None:
    """Print `leaderboard` as a table."""
    table = Table()
    table.add_column("version", justify="right")
    table.add_column("aliases", no_wrap=True)
    for label in ("zero-shot", "one-shot", "escape", "overkill"):
        table.add_column(label, justify="right")
    for label in ("data", "date"):
        table.add_column(label, no_wrap=True)
    for line in lines:
        scores = [_figure(line[name]) for name in _SCORE_TAGS]
        told = "\n".join(line["aliases"]) or line["decision"] or ""
        table.add_row(line["version"], told, *scores, line["data"][:_SHORT], line["date"])
    console = Console()
    console.print(table)
    console.print("on the camera's test captures; more: pinspect compare A B")


def print_comparison(told: Mapping) -> None:
    """Print `compare` as a table."""
    sides = [told["first"], told["second"]]
    table = Table(title=f"{told['captures']} captures, zero-shot, test set {told['test_set'][:_SHORT]}")
    table.title_justify = "left"
    table.add_column("")
    for side in sides:
        names = "".join(f" ({alias})" for alias in side["aliases"])
        table.add_column(f"version {side['version']}{names}", justify="right")
    table.add_column("difference", justify="right")
    table.add_column("interval", justify="right")
    for metric, found in told["scores"].items():
        interval = f"{found['low']:+.3f} … {found['high']:+.3f}"
        figures = (_figure(found["first"]), _figure(found["second"]), f"{found['difference']:+.3f}", interval)
        table.add_row(SCORES.get(metric, metric.replace("_", " ")), *figures)
    console = Console()
    console.print(table)
    numbers = [f"version {side['version']}" for side in sides]
    for outcome, test in told["mcnemar"].items():
        console.print(
            f"{outcome.replace('_', ' ')}: right with {numbers[0]} only {test['only_first']}, with {numbers[1]} only "
            f"{test['only_second']}, McNemar p = {test['p_value']:.3g}"
        )
    anew = [side["version"] for side in sides if side["rescored"]]
    if anew:
        console.print(f"asked anew on the present test set: version {', '.join(anew)}")


def _line(version: ModelVersion) -> dict:
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
    """What became of a version: rolled back, else promoted or refused; None for one that no one has weighed."""
    if ROLLBACK_TAG in tags:
        return "rolled back"
    if DECISION_TAG not in tags:
        return None
    return "promoted" if json.loads(tags[DECISION_TAG])["promoted"] else "refused"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
