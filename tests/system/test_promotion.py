"""Promotion, rollback and comparison, on real MLflow registries with real packages."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pinspect.cli import main as cli
from pinspect.core import predictions
from pinspect.core.errors import PromotionRefused, RegistryError
from pinspect.core.params import load_params
from pinspect.registry.connection import open_registry
from pinspect.registry.leaderboard import compare, leaderboard
from pinspect.registry.promotion import DECISION, Decision, promote, rollback
from pinspect.registry.settings import RegistrySettings, load_register_settings, load_registry_settings
from tests.support.evaluated_project import run_stage
from tests.support.evaluation_examples import answered
from tests.support.promotion_examples import (
    BETTER,
    CAPTURES,
    FAIR,
    WORSE,
    evaluate_as,
    rows,
    settings_with,
)
from tests.support.receivers import http_receiver
from tests.support.sample import ROOT, contents, drop, read_labels, stage_environment, write_labels
from tests.support.sample import line as virtual_line

NAME = "pin-inspector"
PINSPECT = Path(sys.executable).with_name("pinspect")


@pytest.fixture(scope="module")
def registry(project):
    """A folder with a registry of versions 1 to 3 of the project: fair, better and worse on one test set."""
    for number, answer in enumerate((FAIR, BETTER, WORSE), start=1):
        evaluate_as(project, number, answered(rows(), answer))
        run_stage("register", project)
    return project


@pytest.fixture
def line(registry, tmp_path, monkeypatch):
    """The project with the test's own copy of the registry."""
    shutil.copy(registry / "mlruns/mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(registry)
    (registry / DECISION).unlink(missing_ok=True)
    with open_registry(registry, load_register_settings(ROOT)) as client:
        client.delete_registered_model_alias(NAME, "challenger")
        yield Line(registry, client)


class Line:
    """A project with its registry."""

    def __init__(self, root, client):
        self.root, self.client = root, client

    @property
    def params(self):
        return load_params(self.root / "params.yaml")

    @property
    def settings(self) -> RegistrySettings:
        return load_registry_settings(self.root)

    def set(self, **aliases: str) -> None:
        for alias, version in aliases.items():
            self.client.set_registered_model_alias(NAME, alias, version)

    @property
    def aliases(self) -> dict[str, str]:
        aliases = self.client.get_registered_model(NAME).aliases
        return {alias: str(version) for alias, version in aliases.items()}

    def tags(self, version: str) -> dict[str, str]:
        return self.client.get_model_version(NAME, version).tags


@pytest.fixture
def notices(monkeypatch):
    """The receiver of the project's notices."""
    with http_receiver() as receiver:
        monkeypatch.setenv("PINSPECT_NOTIFY_WEBHOOK", receiver.url)
        yield receiver


def run(*words: str, root: Path) -> subprocess.CompletedProcess:
    return subprocess.run([PINSPECT, *words], cwd=root, capture_output=True, text=True)


def test_a_better_challenger_becomes_champion_and_the_rollback_restores_the_old_one(line):
    line.set(champion="1", challenger="2")
    decision = promote(line.root, line.params, line.settings, approve_by="K. Sato")
    assert decision.promoted
    assert line.aliases == {"champion": "2", "previous": "1"}
    stored = Decision.from_dict(json.loads(line.tags("2")["promotion"]))
    assert stored == Decision.from_dict(json.loads((line.root / DECISION).read_text())) == decision
    assert (stored.champion, stored.approved_by, stored.captures, stored.rescored) == ("1", "K. Sato", CAPTURES, ())
    assert stored.scores["2"]["exact_match"] == 1.0
    assert stored.scores["1"]["exact_match"] == 0.8
    description = line.client.get_model_version(NAME, "2").description
    assert "against version 1, approved by K. Sato" in description
    assert "escape rate: 0.000 (0 of 20 defective captures)" in description

    done = rollback(line.root, line.settings.register, "three escapes at line 2", by="K. Sato")
    assert (done.version, done.rolled_back) == ("1", "2")
    assert line.aliases == {"champion": "1"}
    assert json.loads(line.tags("2")["rolled_back"])["why"] == "three escapes at line 2"
    with pytest.raises(RegistryError, match="nothing to roll back to"):
        rollback(line.root, line.settings.register, "again")

    with pytest.raises(RegistryError, match="version 1 of pin-inspector is champion, and it is champion already"):
        rollback(line.root, line.settings.register, "again", to="1")
    line.client.delete_registered_model_alias(NAME, "champion")
    restored = rollback(line.root, line.settings.register, "somebody deleted the alias", to="1")
    assert (restored.version, restored.rolled_back) == ("1", "")
    assert line.aliases == {"champion": "1"}

    line.set(challenger="2")
    with pytest.raises(PromotionRefused, match="three escapes at line 2"):
        promote(line.root, line.params, line.settings).require()
    assert line.aliases == {"champion": "1", "challenger": "2"}


def test_controls_come_from_the_stored_evaluation_and_not_from_tags(line):
    """Whoever can write tags cannot make a control hold."""
    run = line.client.get_run(line.client.get_model_version(NAME, "2").run_id)
    stored = Path(urlsplit(run.info.artifact_uri).path) / "reports/detail.json"
    before = stored.read_text()
    detail = json.loads(before)
    detail["controls"] = [{"name": "blank", "held": False}]
    stored.write_text(json.dumps(detail))
    line.set(challenger="2")
    try:
        decision = promote(line.root, line.params, line.settings)
    finally:
        stored.write_text(before)
    assert line.tags("2")["controls.blank"] == "true"
    (rule,) = [rule for rule in decision.rules if rule.name == "controls"]
    assert rule.found.startswith("1 of 1 do not hold: blank; required but not measured: swapped, other_shape")
    assert line.aliases == {"challenger": "2"}


def test_a_version_that_does_not_load_becomes_champion_neither_by_promotion_nor_by_rollback(line):
    logged = line.client.get_logged_model(line.client.get_model_version(NAME, "2").source.removeprefix("models:/"))
    weights = Path(urlsplit(logged.artifact_location).path) / "artifacts/adapter/adapter_model.safetensors"
    away = weights.rename(weights.with_suffix(".away"))
    try:
        line.set(champion="1", challenger="2")
        decision = promote(line.root, line.params, line.settings)
        assert [rule.name for rule in decision.rules if not rule.holds] == ["inspects its references"]
        assert line.aliases == {"champion": "1", "challenger": "2"}
        line.set(previous="2")
        with pytest.raises(RegistryError, match="version 2 of pin-inspector cannot become champion again"):
            rollback(line.root, line.settings.register, "three escapes")
        assert line.aliases == {"champion": "1", "challenger": "2", "previous": "2"}
        assert "rolled_back" not in line.tags("1")
    finally:
        away.rename(weights)


def test_a_worse_challenger_is_refused_with_rule_amount_and_exit_code_3_and_no_alias_moves(line, notices):
    line.set(champion="2", challenger="3")
    result = run("promote", root=line.root)
    assert result.returncode == 3
    assert "version 3 of pin-inspector is not promoted" in result.stderr
    assert "escape rate: 0.400 (8 of 20 defective captures), at most 0.030" in result.stderr
    assert "8 of 20 captures right with version 2 only, 0 with version 3 only" in result.stderr
    assert "Traceback" not in result.stderr
    assert line.aliases == {"champion": "2", "challenger": "3"}
    stored = json.loads((line.root / DECISION).read_text())
    assert stored == json.loads(line.tags("3")["promotion"])
    assert not stored["promoted"]
    assert "**Refused**" in line.client.get_model_version(NAME, "3").description
    (notice,) = notices.documents
    assert (notice["event"], notice["details"]) == ("refused", stored)
    assert "escape rate: 0.400 (8 of 20 defective captures), at most 0.030" in notice["text"]


def test_a_first_champion_is_promoted_without_comparison(line, notices):
    line.set(challenger="1")
    assert promote(line.root, line.params, line.settings).promoted
    assert line.aliases == {"champion": "1"}
    assert [(notice["event"], notice["text"]) for notice in notices.documents] == [
        ("promoted", "version 1 of pin-inspector is champion")
    ]
    with pytest.raises(RegistryError, match=r"no version of pin-inspector is challenger, version 1 is champion"):
        promote(line.root, line.params, line.settings)


def test_a_promotion_that_was_killed_between_two_steps_is_finished_by_the_next(line):
    line.set(champion="1", challenger="2")
    decision = promote(line.root, line.params, line.settings)
    # After a kill the registry has only the proof, then also `previous`, then also the new `champion`.
    for done in ({}, {"previous": "1"}, {"previous": "1", "champion": "2"}):
        line.client.delete_registered_model_alias(NAME, "previous")
        line.set(**{"champion": "1", "challenger": "2", **done})
        (line.root / DECISION).unlink()
        repeated = promote(line.root, line.params, line.settings)
        assert replace(repeated, decided_at="") == replace(decision, decided_at="")
        assert line.aliases == {"champion": "2", "previous": "1"}
        assert (line.root / DECISION).is_file()


def test_promotions_and_registrations_raced_by_processes_leave_one_consistent_registry(line):
    line.set(champion="1", challenger="2")
    commands = [
        [PINSPECT, "promote", "--json"],
        [PINSPECT, "promote", "--json"],
        [sys.executable, "-m", "stages.register"],
    ]
    racing = [
        subprocess.Popen(command, cwd=line.root, env=stage_environment(), stdout=-1, stderr=-1, text=True)
        for command in commands
    ]
    ends = [(*process.communicate(), process.returncode) for process in racing]
    # The register stage makes the worse adapter, version 3, challenger before, between or after the promotions.
    assert ends[2][2] == 0, ends
    assert {code for *_, code in ends[:2]} <= {0, 2, 3}, ends
    assert not any("Traceback" in stderr for _, stderr, _ in ends)
    assert len(line.client.search_model_versions(f"name = '{NAME}'")) == 3
    weighed = {json.loads(out)["challenger"]: json.loads(out)["promoted"] for out, _, code in ends[:2] if code != 2}
    assert weighed.get("3") is not True
    if "2" in weighed:
        assert line.aliases == {"champion": "2", "previous": "1", "challenger": "3"}
    else:
        assert line.aliases == {"champion": "1", "challenger": "3"}


def test_a_partly_updated_evaluation_is_not_used_for_promotion(line):
    line.set(champion="1", challenger="2")
    line.client.set_model_version_tag(NAME, "2", "evaluation_sha256", "0" * 64)
    with pytest.raises(RegistryError, match="has renewed its evaluation in part; run dvc repro register"):
        promote(line.root, line.params, line.settings)
    assert line.aliases == {"champion": "1", "challenger": "2"}


def test_the_leaderboard_and_a_comparison_show_the_registered_versions(line, capsys):
    line.set(champion="1", challenger="2")
    board = {row["version"]: row for row in leaderboard(line.root, line.settings.register)}
    assert list(board) == ["3", "2", "1"]
    assert board["1"]["aliases"] == ["champion"]
    assert (board["1"]["zero_shot"], board["3"]["escape"]) == (0.8, 0.4)

    comparison = compare(line.root, line.params, line.settings, "champion", "2")
    assert comparison["mcnemar"]["exact_match"]["only_second"] == 8
    exact = comparison["scores"]["exact_match"]
    assert (exact["first"], exact["second"]) == (0.8, 1.0)
    assert 0 < exact["low"] < exact["difference"] < exact["high"]

    for words in (["models"], ["compare", "champion", "2"], ["models", "--json"]):
        assert run_here(words) == 0
    out = capsys.readouterr().out
    assert "champion" in out
    assert "right with version 1 only 0, with version 2 only 8" in out
    assert json.loads(out.splitlines()[-1])["version"] == "1"
    assert run_here(["compare", "1", "9"]) == 2
    assert "no version 9 of pin-inspector" in capsys.readouterr().err


def run_here(words) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["pinspect", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return ended.value.code or 0


def test_a_champion_of_another_test_set_answers_with_its_own_package(line, evaluated_project):
    """Version 1 became champion on 40 captures; the challenger is scored on the project's own test split."""
    real = predictions.read(evaluated_project / "reports/predictions/test.csv")
    evaluate_as(line.root, 4, real.assign(answer=real["expected"], **found_as_expected(real)))
    try:
        run_stage("register", line.root)
    finally:
        evaluate_as(line.root, 3, answered(rows(), WORSE))
    line.set(champion="1")
    params = line.params
    decision = promote(line.root, params, settings_with(line.root, minimum_defective=1))
    assert decision.rescored == ("1",)
    held = {rule.name for rule in decision.rules if rule.holds}
    assert {"answers parse", "escapes against the champion", "exact match against the champion"} <= held
    assert decision.test_set == line.tags("4")["test_set_digest"] != line.tags("1")["test_set_digest"]
    # All versions of this project have the same weights, so version 1 gives the answers of the real evaluation.
    chosen = (real["model"] == "adapter") & (real["shot"] == "zero_shot") & (real["view"] == params.evaluate.view)
    chosen &= (real["decoding"] == "constrained") & (real["kind"] == params.evaluate.kind)
    assert decision.captures == chosen.sum()
    exact = (real.loc[chosen, "answer"] == real.loc[chosen, "expected"]).mean()
    assert decision.scores["1"]["exact_match"] == pytest.approx(exact, abs=1e-4)
    assert decision.scores["4"]["exact_match"] == 1.0


def test_an_acceptance_folder_is_scored_and_decides_beside_the_test_split(line, tmp_path, capsys):
    """The adapter of two steps answers the folder badly, so the bounds decide whether the folder passes."""
    folder = drop(tmp_path / "acceptance", virtual_line(seed=3, train=4))
    labels = read_labels(folder)
    write_labels(folder, [*labels, labels[-1] | {"file": "dark.jpg"}])
    (folder / "images/dark.jpg").write_bytes(b"\xff\xd8 cut short")
    line.set(challenger="2")
    before = contents(line.root)

    assert run_here(["score", str(folder), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["version"], score["captures"]) == ("2", len(labels) + 1)
    assert [capture["file"] for capture in score["not_inspected"]] == ["dark.jpg"]
    page = line.root / "reports/score/acceptance.html"
    changed = {name for name, content in contents(line.root).items() if before.get(name) != content}
    # MLflow notes in its own folder that a version was read.
    assert {name for name in changed if not name.startswith("mlruns/")} == {"reports/score/acceptance.html"}
    assert page.read_text().count("data:image/jpeg") == len(score["misses"]) > 0

    decision = promote(line.root, line.params, settings_with(line.root, minimum_defective=1), on=folder)
    refused = {rule.name: rule.found for rule in decision.rules if not rule.holds}
    assert refused.pop("acceptance: answers parse").startswith(
        f"{len(labels)} of {len(labels) + 1} answers parse; not inspected: dark.jpg: "
    )
    assert set(refused) <= {"acceptance: escape rate", "acceptance: overkill rate"}
    assert refused
    assert line.aliases == {"challenger": "2"}

    write_labels(folder, labels)
    (folder / "images/dark.jpg").unlink()
    lenient = settings_with(line.root, minimum_defective=1, maximum_escape_rate=1.0, maximum_overkill_rate=1.0)
    decision = promote(line.root, line.params, lenient, on=folder)
    assert decision.promoted
    assert line.aliases == {"champion": "2"}
    assert Decision.from_dict(json.loads((line.root / DECISION).read_text())) == decision
    assert decision.acceptance
    assert decision.acceptance.captures == len(labels)
    assert decision.acceptance.digest != score["digest"]
    assert set(decision.acceptance.scores) == {"2"}
    assert f"Acceptance test on {len(labels)} captures" in line.client.get_model_version(NAME, "2").description


def found_as_expected(table) -> dict:
    return {f"found_{field}": table[f"expected_{field}"] for field in predictions.FIELDS} | {"parses": True}
