"""Promotes a challenger if every rule of `settings.promote` holds, and rolls a champion back.

The registry moves each alias in one step, in this order:

    proof written to the challenger -> `previous` on the champion -> `champion` on the challenger -> `challenger` gone

A process that is killed between two steps leaves one version as champion; the next promotion finishes the steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.table import Table

from pinspect.captures.labeled_folder import LabeledFolder
from pinspect.core.errors import PromotionRefused, RegistryError
from pinspect.core.files import write_file
from pinspect.core.params import Params
from pinspect.registry.acceptance import Acceptance, accept, read_acceptance_folder
from pinspect.registry.comparison import on_one_test_set
from pinspect.registry.connection import open_registry, registry_lock, without_password
from pinspect.registry.notices import notify
from pinspect.registry.rules import Rule, weigh
from pinspect.registry.settings import RegisterSettings, RegistrySettings
from pinspect.registry.trial import stored_controls, trial_problem
from pinspect.registry.versions import (
    CHALLENGER,
    CHAMPION,
    DECISION_TAG,
    PREVIOUS,
    REGISTER_ONE,
    ROLLBACK_TAG,
    number_of,
    require_version,
    version_of,
)

DECISION = Path("reports/promotion.json")


@dataclass(frozen=True)
class Decision:
    """Whether a challenger becomes champion, and why.

    Attributes:
        name: The registered model.
        challenger: The number of the version that was weighed.
        champion: The number of the champion before the decision; None if there was none.
        promoted: Whether the challenger becomes champion.
        rules: Every rule.
        scores: Version -> metric -> value on the test set.
        test_set: The digest of the test set.
        captures: The number of captures in the test set.
        source: Where the captures come from: camera or virtual.
        rescored: The versions that answered the test set for this decision.
        approved_by: The person who approved; empty for nobody.
        decided_at: ISO 8601, UTC.
        acceptance: The acceptance test; None if there was none.
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
    acceptance: Acceptance | None = None

    def to_dict(self) -> dict:
        """Return the fields as JSON values."""
        return {**asdict(self), "rules": [asdict(rule) for rule in self.rules], "rescored": list(self.rescored)}

    @classmethod
    def from_dict(cls, fields: Mapping) -> Decision:
        """Return the decision that `to_dict` wrote."""
        rules = tuple(Rule(**rule) for rule in fields["rules"])
        acceptance = Acceptance.from_dict(fields["acceptance"]) if fields.get("acceptance") else None
        return cls(**{**fields, "rules": rules, "rescored": tuple(fields["rescored"]), "acceptance": acceptance})

    def require(self) -> None:
        """Check that the challenger was promoted.

        Raises:
            PromotionRefused: It was not; the message lists every rule that does not hold, with its figures.
        """
        if not self.promoted:
            broken = "\n".join(f"  {rule.name}: {rule.found}" for rule in self.rules if not rule.holds)
            raise PromotionRefused(f"version {self.challenger} of {self.name} is not promoted:\n{broken}")


@dataclass(frozen=True)
class Rollback:
    """A champion that was replaced by its predecessor.

    Attributes:
        name: The registered model.
        version: The number of the champion from now on.
        rolled_back: The number of the champion before; empty if the alias `champion` had been deleted.
        why: What went wrong with it.
        by: The person who decided; empty for nobody.
        rolled_back_at: ISO 8601, UTC.
    """

    name: str
    version: str
    rolled_back: str
    why: str
    by: str
    rolled_back_at: str

    def to_dict(self) -> dict:
        """Return the fields as JSON values."""
        return asdict(self)


def promote(
    root: Path, params: Params, settings: RegistrySettings, *, approve_by: str = "", on: Path | None = None
) -> Decision:
    """Weigh the challenger and, if every rule holds, make it champion.

    The decision, a refusal too, is written to the challenger's version (tag and description) and to
    reports/promotion.json. First completes a promotion that a killed process left half done.

    Args:
        root: The project's folder.
        params: The project's parameters.
        settings: The registry's settings.
        approve_by: The person who approves; empty for nobody.
        on: A folder of labeled captures for an acceptance test; None for no such test.

    Returns:
        The decision; `Decision.require` raises on a refusal.

    Raises:
        CaptureError: Captures of `on` cannot be used, or the project trains on them. Nothing was weighed.
        RegistryError: There is no challenger, the aliases changed in the meantime, or the registry cannot be used.
        StageInputError: A version has to answer the present test set, and the project lacks files of it.
    """
    name = settings.register.model_name
    folder = read_acceptance_folder(root, params, on) if on else None
    with open_registry(root, settings.register) as client, registry_lock(root, settings.register) as still_locked:
        challenger, champion = _challenger(client, name), version_of(client, name, CHAMPION)
        if champion and champion.version == challenger.version:
            decision = _finish(client, challenger)
        else:
            decision = decide(root, params, settings, challenger, champion, approve_by=approve_by, on=folder)
            still_locked()
            _write_proof(client, challenger, decision)
            if decision.promoted:
                _switch(client, decision)
    write_file(root / DECISION, json.dumps(decision.to_dict(), indent=2, ensure_ascii=False) + "\n")
    _notify(root, decision)
    return decision


def _notify(root: Path, decision: Decision) -> None:
    """Send a notice of a decision."""
    event = "promoted" if decision.promoted else "refused"
    text = f"version {decision.challenger} of {decision.name} is champion"
    try:
        decision.require()
    except PromotionRefused as error:
        text = str(error)
    id = f"{event}-{decision.name}-{decision.challenger}-{decision.decided_at}"
    notify(root, event, id, text, decision.to_dict())


def print_decision(decision: Decision) -> None:
    """Print a decision with all rules."""
    table = Table()
    table.add_column("")
    table.add_column("rule")
    table.add_column("found", overflow="fold")
    for rule in decision.rules:
        table.add_row("holds" if rule.holds else "FAILS", rule.name, rule.found)
    console = Console()
    console.print(table)
    if decision.rescored:
        console.print(f"answered the present test set now: version {', '.join(decision.rescored)}")
    if on := decision.acceptance:
        console.print(f"acceptance test: {on.captures} captures of {on.folder}, digest {on.digest[:12]}", markup=False)
        for remark in on.remarks:
            console.print(remark, markup=False)
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
    on: LabeledFolder | None = None,
) -> Decision:
    """Weigh a challenger against the rules and against the champion; change nothing.

    Args:
        root: The project's folder.
        params: The project's parameters.
        settings: The registry's settings.
        challenger: The version to weigh.
        champion: The present champion; None if there is none.
        approve_by: The person who approves; empty for nobody.
        on: The captures of an acceptance test; None for no such test.

    Returns:
        The decision.

    Raises:
        RegistryError: A version cannot answer the present test set, or the captures of the acceptance test.
        StageInputError: The project lacks files of the present test set.
    """
    versions = [version for version in (challenger, champion) if version]
    evidence = on_one_test_set(root, params, versions)
    ours, theirs = evidence[0], evidence[1] if champion else None
    rules = weigh(ours, theirs, stored_controls(challenger), challenger.tags, settings, approve_by=approve_by)
    acceptance = None
    if on:
        acceptance, more_rules = accept(params, settings, on, versions)
        rules = (*rules, *more_rules)
    if all(rule.holds for rule in rules):
        problem = trial_problem(challenger)
        rules = (*rules, Rule("inspects its references", not problem, problem or "loaded and tried"))
    return Decision(
        name=challenger.name,
        challenger=number_of(challenger),
        champion=number_of(champion) if champion else None,
        promoted=all(rule.holds for rule in rules),
        rules=rules,
        scores={each.version: each.values(settings.report) for each in evidence},
        test_set=ours.test_set,
        captures=len(ours.answered),
        source=str(ours.answered["source"].iloc[0]) if len(ours.answered) else "",
        rescored=tuple(each.version for each in evidence if each.rescored),
        approved_by=approve_by,
        decided_at=_now(),
        acceptance=acceptance,
    )


def rollback(root: Path, settings: RegisterSettings, why: str, by: str = "", to: str = "") -> Rollback:
    """Make the previous champion, or any other version, champion again.

    The version that is rolled back is not promoted again without a person's approval. With `to`, a rollback also
    restores an alias `champion` that was deleted.

    Args:
        root: The project's folder.
        settings: The section `register`.
        why: What went wrong; recorded with the version that is rolled back.
        by: The person who decided; empty for nobody.
        to: Number or alias of the version to go back to; empty for the previous champion.

    Returns:
        What was done.

    Raises:
        RegistryError: There is no previous champion or no version `to`, it is champion already, it does not inspect
            its references any more, `why` is empty, or the registry cannot be used. No alias has moved.
    """
    if not why.strip():
        raise RegistryError("a rollback needs a reason: pinspect rollback --why 'three escapes at line 2'")
    name = settings.model_name
    with open_registry(root, settings) as client, registry_lock(root, settings) as still_locked:
        champion = version_of(client, name, CHAMPION) if to else require_version(client, name, CHAMPION)
        target = require_version(client, name, to) if to else version_of(client, name, PREVIOUS)
        if target is None or (champion and target.version == champion.version):
            problem = "it is champion already" if to else "no version was before it: nothing to roll back to"
            raise RegistryError(
                f"{without_password(client.tracking_uri)}: version {champion and champion.version} of {name} is "
                f"champion, and {problem}; pinspect models lists all versions, and --to goes back to any of them"
            )
        if problem := trial_problem(target):
            stays = f"; version {champion.version} stays champion" if champion else ""
            raise RegistryError(f"version {target.version} of {name} cannot become champion again: {problem}{stays}")
        rolled_back = number_of(champion) if champion else ""
        still_locked()
        done = Rollback(name, number_of(target), rolled_back, why.strip(), by, _now())
        if champion:
            client.set_model_version_tag(name, champion.version, ROLLBACK_TAG, json.dumps(done.to_dict()))
        client.set_registered_model_alias(name, CHAMPION, target.version)
        client.delete_registered_model_alias(name, PREVIOUS)
    return done


def _challenger(client: MlflowClient, name: str) -> ModelVersion:
    challenger = version_of(client, name, CHALLENGER)
    if challenger is None:
        champion = version_of(client, name, CHAMPION)
        status = f"version {champion.version} is champion" if champion else "none is champion"
        raise RegistryError(
            f"{without_password(client.tracking_uri)}: no version of {name} is challenger, {status}; {REGISTER_ONE}"
        )
    return challenger


def _switch(client: MlflowClient, decision: Decision) -> None:
    """Move the aliases. Raises RegistryError if something else has moved them since the decision."""
    name = decision.name
    for alias, expected in ((CHALLENGER, decision.challenger), (CHAMPION, decision.champion)):
        version = version_of(client, name, alias)
        if (number_of(version) if version else None) != expected:
            raise RegistryError(
                f"{without_password(client.tracking_uri)}: the {alias} of {name} changed while version "
                f"{decision.challenger} was weighed; promote again"
            )
    if decision.champion:
        client.set_registered_model_alias(name, PREVIOUS, decision.champion)
    client.set_registered_model_alias(name, CHAMPION, decision.challenger)
    client.delete_registered_model_alias(name, CHALLENGER)


def _finish(client: MlflowClient, champion: ModelVersion) -> Decision:
    """Finish a promotion that was killed before its last step: one version is both champion and challenger."""
    client.delete_registered_model_alias(champion.name, CHALLENGER)
    if DECISION_TAG not in champion.tags:
        raise RegistryError(f"version {champion.version} of {champion.name} is champion already, without a decision")
    return Decision.from_dict(json.loads(champion.tags[DECISION_TAG]))


def _write_proof(client: MlflowClient, challenger: ModelVersion, decision: Decision) -> None:
    text = json.dumps(decision.to_dict(), ensure_ascii=False)
    client.set_model_version_tag(challenger.name, challenger.version, DECISION_TAG, text)
    who = f", approved by {decision.approved_by}" if decision.approved_by else ""
    against = f" against version {decision.champion}" if decision.champion else " as the first champion"
    numbers = ", ".join(decision.rescored)
    rescored = f" Answered the test set for this decision: version {numbers}." if numbers else ""
    first = (challenger.description or "").split("\n\n")[0]
    verdict = (
        f"**{'Promoted' if decision.promoted else 'Refused'}** {decision.decided_at}{against}{who}, on "
        f"{decision.captures} {decision.source} captures (test set {decision.test_set[:12]}).{rescored}"
    )
    if on := decision.acceptance:
        verdict += f" Acceptance test on {on.captures} captures of {on.folder} (digest {on.digest[:12]})."
    rules = "\n".join(f"- {'holds' if rule.holds else 'FAILS'}: {rule.name}: {rule.found}" for rule in decision.rules)
    client.update_model_version(challenger.name, challenger.version, f"{first}\n\n{verdict}\n\n{rules}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
