"""The rules of promotion, on answers without a registry."""

import json

import pytest

from pinspect.core import digests as provenance
from pinspect.registry.evidence import Evidence
from pinspect.registry.rules import weigh, weigh_acceptance
from tests.support.evaluation_examples import answered, escaped, moved, overkilled, right, unreadable
from tests.support.promotion_examples import CAPTURES, HELD, first_wrong, rows, settings_with


def evidence(answer=right, *, captures: int = CAPTURES, version: str = "2") -> Evidence:
    table = answered(rows(captures), answer)
    return Evidence(version, table, provenance.digest_of_test_set(table))


def broken(
    ours: Evidence, theirs: Evidence | None = None, controls=HELD, tags=None, approve_by="", **promotion
) -> dict[str, str]:
    """Return the rules that do not hold: name -> measured value."""
    rules = weigh(ours, theirs, controls, tags or {}, settings_with(**promotion), approve_by=approve_by)
    return {rule.name: rule.found for rule in rules if not rule.holds}


def test_a_first_champion_keeps_every_absolute_rule():
    assert broken(evidence()) == {}


@pytest.mark.parametrize(
    ("answer", "rule", "amount"),
    [
        (first_wrong(1, unreadable), "answers parse", "39 of 40 answers parse"),
        (first_wrong(2, escaped), "escape rate", "0.100 (2 of 20 defective captures), at most 0.030"),
        (overkilled, "overkill rate", "1.000 (20 of 20 passed captures), at most 0.050"),
    ],
)
def test_a_broken_bound_is_named_with_its_amount(answer, rule, amount):
    assert broken(evidence(answer))[rule] == amount


def test_too_few_defective_captures_prove_nothing():
    assert broken(evidence(captures=10)) == {"enough defective captures": "5 in the test set, at least 20"}
    assert "escape rate" in broken(evidence(captures=0))


def test_escapes_beyond_chance_are_refused_although_the_bound_would_let_them_pass():
    rules = broken(evidence(first_wrong(6, escaped)), evidence(version="1"), maximum_escape_rate=0.5)
    assert rules["escapes against the champion"].startswith(
        "6 of 20 captures right with version 1 only, 0 with version 2 only (McNemar p = 0.0312"
    )
    assert "escapes against the champion" not in broken(
        evidence(first_wrong(5, escaped)), evidence(version="1"), maximum_escape_rate=0.5
    )


def test_a_worse_exact_match_is_refused_beyond_chance_only():
    assert list(broken(evidence(first_wrong(6, moved)), evidence(version="1"))) == ["exact match against the champion"]
    assert broken(evidence(first_wrong(5, moved)), evidence(version="1")) == {}
    assert broken(evidence(), evidence(first_wrong(20, moved), version="1")) == {}


def test_the_rules_hold_on_an_acceptance_folder_under_names_of_their_own():
    ours, theirs = evidence(first_wrong(6, escaped)), evidence(version="1")
    rules = {rule.name: rule for rule in weigh_acceptance(ours, theirs, settings_with(minimum_defective=21))}
    assert [name for name, rule in rules.items() if not rule.holds] == [
        "acceptance: enough defective captures",
        "acceptance: escape rate",
        "acceptance: escapes against the champion",
        "acceptance: exact match against the champion",
    ]
    assert rules["acceptance: enough defective captures"].found == "20 in the folder, at least 21"


def test_required_controls_must_be_measured_and_hold():
    assert broken(evidence(), controls=HELD | {"blank": False}) == {"controls": "1 of 5 do not hold: blank"}
    for controls in ({}, {name: held for name, held in HELD.items() if name != "lighting"}, HELD | {"lighting": None}):
        problem = broken(evidence(), controls=controls)["controls"]
        assert problem.startswith("required but not measured: ")
        assert "lighting; run dvc repro evaluate" in problem


def test_a_control_that_is_not_required_is_reported_and_stops_nothing():
    controls = {"blank": True, "swapped": False}
    assert broken(evidence(), controls=controls, required_controls=["blank"]) == {}
    assert broken(evidence(), controls={}, required_controls=[]) == {}
    broken_rule = {"controls": "1 of 2 do not hold: swapped"}
    assert broken(evidence(), controls=controls, required_controls=["swapped"]) == broken_rule
    (rule,) = [
        rule
        for rule in weigh(evidence(), None, controls, {}, settings_with(required_controls=["blank"]), approve_by="")
        if rule.name == "controls"
    ]
    assert rule.found == "1 hold; not required, and not held: swapped"


def test_approval_is_needed_if_configured_and_after_a_rollback():
    assert list(broken(evidence(), approval_required=True)) == ["approval"]
    assert broken(evidence(), approval_required=True, approve_by="K. Sato") == {}
    back = {"rolled_back": json.dumps({"rolled_back_at": "2026-11-20T10:00:00+00:00", "why": "3 escapes at line 2"})}
    assert "3 escapes at line 2" in broken(evidence(), tags=back)["not rolled back before"]
    assert broken(evidence(), tags=back, approve_by="K. Sato") == {}


def test_the_test_set_digest_covers_photographs_and_labels():
    digest = provenance.digest_of_test_set(answered(rows()))
    assert provenance.digest_of_test_set(answered(reversed(rows(view="DST")), escaped)) == digest
    assert provenance.digest_of_test_set(answered(rows()[1:])) != digest
    assert provenance.digest_of_test_set(answered([rows()[0] | {"answer": rows()[2]["answer"]}, *rows()[1:]])) != digest
