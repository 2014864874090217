"""Promotion by proof: a challenger becomes champion when every rule of `settings.promote` holds, and rollback.

Who does what when is decided by aliases, each of which the registry moves in one step. A process that is killed
between two steps leaves a registry in which one version is champion, and promoting (or rolling back) again finishes:

    proof written to the challenger -> `previous` to the champion -> `champion` to the challenger -> `challenger` gone
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.table import Table

from pinspect.core.errors import PromotionRefused, RegistryError
from pinspect.core.files import write_file
from pinspect.core.params import Params
from pinspect.evaluation import metrics
from pinspect.evaluation.settings import ReportSettings
from pinspect.registry.comparison import Evidence, on_one_test_set
from pinspect.registry.connection import open_registry, registry_lock
from pinspect.registry.settings import PromoteSettings, RegisterSettings, RegistrySettings
from pinspect.registry.versions import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    PREVIOUS,
    ROLLBACK_TAG,
    number_of,
    require_version,
    version_of,
)

DECISION = Path("reports/promotion.json")
_CONTROL = "controls."


@dataclass(frozen=True)
class Rule:
    """One condition of promotion, whether the challenger meets it, and what was found, in words with figures."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Decision:
    """Whether a challenger becomes champion, and why.

    challenger, champion: versions; champion is None for the first one. scores: version -> metric -> value on the test
    set, of `captures` captures, that `test_set` names. rescored: versions that were asked anew. approved_by: a person,
    or empty. decided_at: ISO 8601, UTC.
    """

    name: str
    challenger: str
    champion: str | None
    promoted: bool
    rules: tuple[Rule, ...]
    scores: Mapping[str, Mapping[str, float]]
    test_set: str
    captures: int
    source: str
    rescored: tuple[str, ...]
    approved_by: str
    decided_at: str

    def to_dict(self) -> dict:
        """Itself as plain JSON."""
        return {**asdict(self), "rules": [asdict(rule) for rule in self.rules], "rescored": list(self.rescored)}

    @classmethod
    def from_dict(cls, told: Mapping) -> Decision:
        """What `to_dict` gave."""
        rules = tuple(Rule(**rule) for rule in told["rules"])
        return cls(**{**told, "rules": rules, "rescored": tuple(told["rescored"])})

    def require(self) -> None:
        """Raises PromotionRefused, which names every rule that does not hold and by how much."""
        if not self.promoted:
            broken = "\n".join(f"  {rule.name}: {rule.found}" for rule in self.rules if not rule.holds)
            raise PromotionRefused(f"version {self.challenger} of {self.name} is not promoted:\n{broken}")


@dataclass(frozen=True)
class Rollback:
    """version: the champion from now on. rolled_back: the one before, and why; by: a person, or empty."""

    name: str
    version: str
    rolled_back: str
    why: str
    by: str
    rolled_back_at: str

    def to_dict(self) -> dict:
        """Itself as plain JSON."""
        return asdict(self)


def promote(root: Path, params: Params, settings: RegistrySettings, *, approve_by: str = "") -> Decision:
    """Decide on the challenger of the project in `root` and, if every rule holds, make it champion.

    The decision is written to the challenger's version (tag and description) and to reports/promotion.json, be it a
    refusal or not; `Decision.require` raises on a refusal. What another process was killed at is finished. Raises
    RegistryError when there is no challenger or the registry changes meanwhile, RegistryUnreachableError,
    StageInputError when a version must be asked anew and data is missing.
    """
    name = settings.register.model_name
    with open_registry(root, settings.register) as client, registry_lock(root):
        challenger, champion = _challenger(client, name), version_of(client, name, CHAMPION)
        if champion and champion.version == challenger.version:
            decision = _finish(client, challenger)
        else:
            decision = decide(root, params, settings, challenger, champion, approve_by=approve_by)
            _write_proof(client, challenger, decision)
            if decision.promoted:
                _switch(client, decision)
    _write_file(root / DECISION, decision)
    return decision


def print_decision(decision: Decision) -> None:
    """Print a decision with every rule."""
    table = Table()
    table.add_column("")
    table.add_column("rule")
    table.add_column("found", overflow="fold")
    for rule in decision.rules:
        table.add_row("holds" if rule.holds else "FAILS", rule.name, rule.found)
    console = Console()
    console.print(table)
    if decision.rescored:
        console.print(f"asked anew on the present test set: version {', '.join(decision.rescored)}")
    if decision.promoted:
        instead = f" instead of version {decision.champion}" if decision.champion else ""
        console.print(f"version {decision.challenger} of {decision.name} is champion{instead}")


def decide(
    root: Path,
    params: Params,
    settings: RegistrySettings,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    *,
    approve_by: str = "",
) -> Decision:
    """Weigh `challenger` against the rules and, if there is one, against `champion`; changes nothing.

    Raises as `comparison.on_one_test_set`.
    """
    evidence = on_one_test_set(root, params, [version for version in (challenger, champion) if version])
    ours, theirs = evidence[0], evidence[1] if champion else None
    rules = weigh(ours, theirs, challenger.tags, settings, approve_by=approve_by)
    return Decision(
        name=challenger.name,
        challenger=number_of(challenger),
        champion=number_of(champion) if champion else None,
        promoted=all(rule.holds for rule in rules),
        rules=rules,
        scores={found.version: _values(found, settings.report) for found in evidence},
        test_set=ours.test_set,
        captures=len(ours.answered),
        source=str(ours.answered["source"].iloc[0]) if len(ours.answered) else "",
        rescored=tuple(found.version for found in evidence if found.rescored),
        approved_by=approve_by,
        decided_at=_now(),
    )


def weigh(
    ours: Evidence,
    theirs: Evidence | None,
    tags: Mapping[str, str],
    settings: RegistrySettings,
    *,
    approve_by: str = "",
) -> tuple[Rule, ...]:
    """Every rule of `settings.promote`, for a challenger with the evidence `ours` and the version tags `tags`.

    theirs: the champion's evidence on the same test set; None while there is no champion.
    """
    return (
        *_absolute_rules(ours, settings),
        *(_comparing_rules(ours, theirs, settings.promote) if theirs else ()),
        _controls(tags, settings.promote.required_controls),
        *_approval(tags, settings.promote, approve_by),
    )


def rollback(root: Path, settings: RegisterSettings, why: str, by: str = "") -> Rollback:
    """Make the previous champion champion again; `why` is written to the version that it replaces, which then is not
    promoted again without a person's approval.

    Raises RegistryError when there is nothing to roll back to or `why` is empty, RegistryUnreachableError.
    """
    if not why.strip():
        raise RegistryError("a rollback says why: pinspect rollback --why 'three escapes at line 2'")
    name = settings.model_name
    with open_registry(root, settings) as client, registry_lock(root):
        champion = require_version(client, name, CHAMPION)
        previous = version_of(client, name, PREVIOUS)
        if previous is None or previous.version == champion.version:
            raise RegistryError(
                f"{client.tracking_uri}: version {champion.version} of {name} is champion, and none was before it: "
                "nothing to roll back to"
            )
        done = Rollback(name, number_of(previous), number_of(champion), why.strip(), by, _now())
        client.set_model_version_tag(name, champion.version, ROLLBACK_TAG, json.dumps(done.to_dict()))
        client.set_registered_model_alias(name, CHAMPION, previous.version)
        client.delete_registered_model_alias(name, PREVIOUS)
    return done


def _absolute_rules(ours: Evidence, settings: RegistrySettings) -> list[Rule]:
    """What every champion keeps, the first one too."""
    rows, asked = ours.answered, settings.promote
    unread = int((~rows["parses"].astype(bool)).sum())
    defective, passed = len(ours.on_defective), len(rows) - len(ours.on_defective)
    scores = ours.scores(settings.report)

    def bound(name: str, metric: str, of: int, what: str, most: float) -> Rule:
        found = scores[metric]
        if found.value is None:
            return Rule(name, False, f"no {what} capture to measure it on")
        count = round(found.value * of)
        text = f"{found.value:.3f} ({count} of {of} {what} captures), at most {most:.3f}"
        return Rule(name, found.value <= most, text)

    return [
        Rule("answers parse", len(rows) > 0 and not unread, f"{len(rows) - unread} of {len(rows)} answers parse"),
        Rule(
            "enough defective captures",
            defective >= asked.minimum_defective,
            f"{defective} in the test set, at least {asked.minimum_defective}",
        ),
        bound("escape rate", "escape_rate", defective, "defective", asked.maximum_escape_rate),
        bound("overkill rate", "overkill_rate", passed, "passed", asked.maximum_overkill_rate),
    ]


def _comparing_rules(ours: Evidence, theirs: Evidence, asked: PromoteSettings) -> list[Rule]:
    """Not worse than the champion beyond chance, by McNemar's test on the same captures."""

    def not_worse(name: str, outcome: str, mine, others) -> Rule:
        test = metrics.mcnemar(mine, others, outcome, on=("file",))
        text = (
            f"{test.only_second} of {test.n} captures right with version {theirs.version} only, {test.only_first} with "
            f"version {ours.version} only (McNemar p = {test.p_value:.3g}, worse beyond chance below "
            f"{asked.significance:g})"
        )
        return Rule(name, test.only_second <= test.only_first or test.p_value >= asked.significance, text)

    return [
        not_worse("escapes against the champion", "judgement", ours.on_defective, theirs.on_defective),
        not_worse("exact match against the champion", "exact_match", ours.answered, theirs.answered),
    ]


def _controls(tags: Mapping[str, str], required: Sequence[str]) -> Rule:
    """The controls of the evaluation: a model that does not look fails them. What could not be made is no failure, and
    what is not required is only told."""
    told = {name.removeprefix(_CONTROL): held for name, held in tags.items() if name.startswith(_CONTROL)}
    failed = sorted(name for name, held in told.items() if held == "false")
    held = sum(value == "true" for value in told.values())
    broken = [name for name in failed if name in required]
    if broken:
        return Rule("controls", False, f"{len(broken)} of {held + len(failed)} do not hold: {', '.join(broken)}")
    if not held:
        return Rule("controls", False, "none was made that holds; run dvc repro evaluate")
    spared = f"; not required, and not held: {', '.join(failed)}" if failed else ""
    return Rule("controls", True, f"{held} hold{spared}")


def _approval(tags: Mapping[str, str], asked: PromoteSettings, approve_by: str) -> list[Rule]:
    """A person's word, where params.yaml asks for it, and for a version that was rolled back."""
    rules = []
    if asked.approval_required:
        found = f"approved by {approve_by}" if approve_by else "nobody approved; --approve-by NAME"
        rules.append(Rule("approval", bool(approve_by), found))
    if ROLLBACK_TAG in tags:
        back = json.loads(tags[ROLLBACK_TAG])
        found = f"rolled back {back['rolled_back_at']}: {back['why']}; "
        found += f"approved by {approve_by} nevertheless" if approve_by else "takes --approve-by NAME"
        rules.append(Rule("not rolled back before", bool(approve_by), found))
    return rules


def _challenger(client: MlflowClient, name: str) -> ModelVersion:
    found = version_of(client, name, CHALLENGER)
    if found is None:
        champion = version_of(client, name, CHAMPION)
        stands = f"version {champion.version} is champion" if champion else "none is champion"
        raise RegistryError(
            f"{client.tracking_uri}: no version of {name} is challenger, {stands}; dvc repro registers new adapters"
        )
    return found


def _switch(client: MlflowClient, decision: Decision) -> None:
    """Move the aliases. Raises RegistryError when another machine moved them since the decision."""
    name = decision.name
    now = {alias: version_of(client, name, alias) for alias in (CHALLENGER, CHAMPION)}
    meant = {CHALLENGER: decision.challenger, CHAMPION: decision.champion}
    for alias, version in now.items():
        if (number_of(version) if version else None) != meant[alias]:
            raise RegistryError(
                f"{client.tracking_uri}: the {alias} of {name} changed while version {decision.challenger} was "
                "weighed; promote again"
            )
    if decision.champion:
        client.set_registered_model_alias(name, PREVIOUS, decision.champion)
    client.set_registered_model_alias(name, CHAMPION, decision.challenger)
    client.delete_registered_model_alias(name, CHALLENGER)


def _finish(client: MlflowClient, champion: ModelVersion) -> Decision:
    """A promotion that was killed before its last step: the champion still is challenger, too."""
    client.delete_registered_model_alias(champion.name, CHALLENGER)
    if DECISION_TAG not in champion.tags:
        raise RegistryError(f"version {champion.version} of {champion.name} is champion already, without a decision")
    return Decision.from_dict(json.loads(champion.tags[DECISION_TAG]))


def _write_proof(client: MlflowClient, challenger: ModelVersion, decision: Decision) -> None:
    told = json.dumps(decision.to_dict(), ensure_ascii=False)
    client.set_model_version_tag(challenger.name, challenger.version, DECISION_TAG, told)
    who = f", approved by {decision.approved_by}" if decision.approved_by else ""
    against = f" against version {decision.champion}" if decision.champion else " as the first champion"
    rescored = f" Asked anew: version {', '.join(decision.rescored)}." if decision.rescored else ""
    lines = [
        (challenger.description or "").split("\n\n")[0],
        f"**{'Promoted' if decision.promoted else 'Refused'}** {decision.decided_at}{against}{who}, on "
        f"{decision.captures} {decision.source} captures (test set {decision.test_set[:12]}).{rescored}",
        "\n".join(f"- {'holds' if rule.holds else 'FAILS'}: {rule.name}: {rule.found}" for rule in decision.rules),
    ]
    client.update_model_version(challenger.name, challenger.version, "\n\n".join(lines))


def _write_file(path: Path, decision: Decision) -> None:
    """In one step, so that a reader never meets half a decision."""
    write_file(path, json.dumps(decision.to_dict(), indent=2, ensure_ascii=False) + "\n")


def _values(evidence: Evidence, report: ReportSettings) -> dict[str, float]:
    return {name: round(found.value, 4) for name, found in evidence.scores(report).items() if found.value is not None}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
