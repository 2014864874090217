"""The rules of `settings.promote`: what a challenger must prove before it becomes champion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from pinspect.evaluation.comparing import mcnemar
from pinspect.registry.evidence import Evidence
from pinspect.registry.settings import PromoteSettings, RegistrySettings
from pinspect.registry.versions import ROLLBACK_TAG


@dataclass(frozen=True)
class Rule:
    """One condition of promotion.

    Attributes:
        name: The name of the rule.
        holds: Whether the challenger meets it.
        found: What was measured, in words with figures.
    """

    name: str
    holds: bool
    found: str


def weigh(
    ours: Evidence,
    theirs: Evidence | None,
    controls: Mapping[str, bool | None],
    tags: Mapping[str, str],
    settings: RegistrySettings,
    *,
    approve_by: str = "",
) -> tuple[Rule, ...]:
    """Apply every rule of `settings.promote`.

    Args:
        ours: The challenger's evidence.
        theirs: The champion's evidence on the same test set; None if there is no champion.
        controls: Whether each control of the challenger's stored evaluation holds; None for one that could not be made.
        tags: The tags of the challenger's version.
        settings: The registry's settings.
        approve_by: The person who approves; empty for nobody.

    Returns:
        The rules with their results.
    """
    return (
        *_evidence_rules(ours, theirs, settings, "the test set"),
        _controls(controls, settings.promote.required_controls),
        *_approval(tags, settings.promote, approve_by),
    )


def weigh_acceptance(ours: Evidence, theirs: Evidence | None, settings: RegistrySettings) -> list[Rule]:
    """Apply the rules on answers to the captures of an acceptance test.

    Args:
        ours: The challenger's evidence.
        theirs: The champion's evidence on the same captures; None if there is no champion.
        settings: The registry's settings.

    Returns:
        The rules with their results, named `acceptance: escape rate` and so on.
    """
    rules = _evidence_rules(ours, theirs, settings, "the folder")
    return [replace(rule, name=f"acceptance: {rule.name}") for rule in rules]


def _evidence_rules(ours: Evidence, theirs: Evidence | None, settings: RegistrySettings, where: str) -> list[Rule]:
    """Return the rules on answers: the absolute ones, and those against the champion if there is one."""
    rules = _absolute_rules(ours, settings, where)
    return rules + _comparing_rules(ours, theirs, settings.promote) if theirs else rules


def _absolute_rules(ours: Evidence, settings: RegistrySettings, where: str) -> list[Rule]:
    """Return the rules that hold for every champion, the first one too."""
    rows, promote = ours.answered, settings.promote
    unread = len(rows) - int(rows["parses"].to_numpy(bool).sum())
    defective, passed = len(ours.on_defective), len(rows) - len(ours.on_defective)
    scores = ours.scores(settings.report)
    parsed = [f"{len(rows) - unread} of {len(rows)} answers parse"]
    parsed += [f"not inspected: {file}: {reason}" for file, reason in ours.not_inspected.items()]

    def bound(name: str, metric: str, captures: int, judgement: str, maximum: float) -> Rule:
        value = scores[metric].value
        if value is None:
            return Rule(name, False, f"no {judgement} capture to measure it on")
        count = round(value * captures)
        text = f"{value:.3f} ({count} of {captures} {judgement} captures), at most {maximum:.3f}"
        return Rule(name, value <= maximum, text)

    return [
        Rule("answers parse", len(rows) > 0 and not unread, "; ".join(parsed)),
        Rule(
            "enough defective captures",
            defective >= promote.minimum_defective,
            f"{defective} in {where}, at least {promote.minimum_defective}",
        ),
        bound("escape rate", "escape_rate", defective, "defective", promote.maximum_escape_rate),
        bound("overkill rate", "overkill_rate", passed, "passed", promote.maximum_overkill_rate),
    ]


def _comparing_rules(ours: Evidence, theirs: Evidence, promote: PromoteSettings) -> list[Rule]:
    """Return the rules against the champion: not worse beyond chance, by McNemar's test on the same captures."""

    def not_worse(name: str, outcome: str, first: pd.DataFrame, second: pd.DataFrame) -> Rule:
        test = mcnemar(first, second, outcome, on=("file",))
        text = (
            f"{test.only_second} of {test.n} captures right with version {theirs.version} only, {test.only_first} with "
            f"version {ours.version} only (McNemar p = {test.p_value:.3g}, worse beyond chance below "
            f"{promote.significance:g})"
        )
        return Rule(name, test.only_second <= test.only_first or test.p_value >= promote.significance, text)

    return [
        not_worse("escapes against the champion", "judgement", ours.on_defective, theirs.on_defective),
        not_worse("exact match against the champion", "exact_match", ours.answered, theirs.answered),
    ]


def _controls(controls: Mapping[str, bool | None], required: Sequence[str]) -> Rule:
    """Return the rule on the controls, which a model that does not look at the picture fails.

    A required control that is absent, or could not be made, counts as failed. The others are only reported.
    """
    failed = sorted(name for name, held in controls.items() if held is False)
    absent = [name for name in required if controls.get(name) is None]
    broken = [name for name in failed if name in required]
    passed = sum(held is True for held in controls.values())
    if broken or absent:
        parts = [f"{len(broken)} of {passed + len(failed)} do not hold: {', '.join(broken)}"] if broken else []
        if absent:
            parts.append(
                f"required but not measured: {', '.join(absent)}; run dvc repro evaluate, or remove a control that "
                "this line cannot have from promote.required_controls"
            )
        return Rule("controls", False, "; ".join(parts))
    ignored = f"; not required, and not held: {', '.join(failed)}" if failed else ""
    return Rule("controls", True, f"{passed} hold{ignored}")


def _approval(tags: Mapping[str, str], promote: PromoteSettings, approve_by: str) -> list[Rule]:
    """Return the rules on a person's approval: if the settings ask for it, and for a version that was rolled back."""
    rules = []
    if promote.approval_required:
        text = f"approved by {approve_by}" if approve_by else "nobody approved; --approve-by NAME"
        rules.append(Rule("approval", bool(approve_by), text))
    if ROLLBACK_TAG in tags:
        record = json.loads(tags[ROLLBACK_TAG])
        text = f"rolled back {record['rolled_back_at']}: {record['why']}; "
        text += f"approved by {approve_by} nevertheless" if approve_by else "needs --approve-by NAME"
        rules.append(Rule("not rolled back before", bool(approve_by), text))
    return rules
