import dataclasses
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import great_expectations.expectations as gxe
import pandas as pd
import pytest
import yaml
from great_expectations.expectations import registry

from pinspect.chat import checks as answer_checks
from pinspect.chat import dataset as chat
from pinspect.chat.check_result import ROWS_NAMED_IN_AN_ERROR, CheckResult
from pinspect.chat.provenance import Provenance
from pinspect.core import prompts
from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.errors import AnswerCheckFailed
from pinspect.core.params import load_params
from pinspect.core.rows import SPLITS, read_chat
from pinspect.evaluation.report import render_report
from stages import check as check_stage
from tests.support import chat_line
from tests.support.evaluation_examples import answered
from tests.support.report_examples import chat_rows, everything, lines_of, noise_images, section_of
from tests.support.sample import ROOT, contents, stage_process
from tests.support.spoiled_rows import (
    answer,
    drop_image,
    drop_image_and_placeholder,
    forget_star,
    judge_defective,
    name_another_mode,
    name_another_pin,
    replace,
    spoil_star,
    swap_view,
)

KINDS = {"two_image": 3, "one_image": 1, "stacked": 2}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line with a chat dataset of every prompt kind."""
    root = tmp_path_factory.mktemp("line")
    params = chat_line.make_line(root, inspected=64, stacked=True)
    data = root / "data"
    chat_params = params.chat.model_copy(update={"kinds": KINDS})
    dataset = chat.build_chat(data / "raw", data / "dst", data / "composited", params.contract(), chat_params)
    chat.write_chat(dataset, data / "chat")
    return root


@pytest.fixture(scope="module")
def contract(line: Path) -> AnswerContract:
    return load_params(line / "params.yaml").contract()


@pytest.fixture(scope="module")
def provenance(line: Path) -> Provenance:
    return Provenance(line / "data")


@pytest.fixture
def rows(line: Path) -> dict[str, list[dict]]:
    return {split: read_chat(line / f"data/chat/{split}.jsonl") for split in SPLITS}


def check(
    rows: dict[str, list[dict]], contract: AnswerContract, provenance: Provenance, minimum_rows: int = 20
) -> CheckResult:
    expectations = [
        *answer_checks.answer_expectations(contract),
        *answer_checks.dataset_expectations(contract, minimum_rows),
    ]
    table = answer_checks.tabulate(rows, contract, provenance)
    return answer_checks.validate(table, expectations, contract, index_columns=("id", "line", "capture"))


def of(
    rows: dict[str, list[dict]],
    *,
    kind: str = "two_image",
    shot: str = "zero_shot",
    judged: str = "",
    not_in: Sequence[str] = (),
) -> dict:
    """Return the first test row of a kind, a shot and (optionally) a judgement whose line is not in `not_in`."""
    return next(
        row
        for number, row in enumerate(rows["test"], start=1)
        if f"test.jsonl, line {number}" not in not_in
        and (row["kind"], row["shot"]) == (kind, shot)
        and judged in row["answer"]
    )


DEFECTIVE = {"judged": "->defective"}
PASSED = {"judged": "->passed"}
STAR = {"shot": "one_shot"}
RULES = [
    ("the answer keeps the contract's comparison form", {}, lambda row: answer(row, row["answer"] + "\n")),
    ("the answer keeps the contract's comparison form", {}, lambda row: answer(row, "")),
    ("the answer keeps the contract's discrimination form", {"kind": "one_image"}, lambda row: answer(row, "bend")),
    ("the answer keeps the contract's comparison form", {"kind": "stacked"}, lambda row: answer(row, "bend")),
    ("the image type is a known shape and view", {}, lambda row: replace(row, "type->", "type->X")),
    ("the number of pins is that of the layout", {}, lambda row: replace(row, "27 pins", "26 pins")),
    ("the judgement is passed or defective", DEFECTIVE, lambda row: replace(row, "defective", "doubtful")),
    ("the defect mode is a known one", PASSED, lambda row: replace(row, "mode->passed", "mode->rusty")),
    (
        "the defect position is passed or lies in the layout",
        PASSED,
        lambda row: replace(row, "position->passed", "position->X:10, Y:U"),
    ),
    ("the image type is the shape and view of the row", {}, swap_view),
    ("a passed answer names no defect mode", PASSED, lambda row: replace(row, "mode->passed", "mode->bend")),
    (
        "a passed answer names no defect position",
        PASSED,
        lambda row: replace(row, "position->passed", "position->X:1, Y:U"),
    ),
    (
        "a defective answer names its defect mode",
        DEFECTIVE,
        lambda row: answer(row, re.sub("mode->.*", "mode->passed", row["answer"])),
    ),
    (
        "a defective answer names its defect position",
        DEFECTIVE,
        lambda row: answer(row, re.sub("position->.*", "position->passed", row["answer"])),
    ),
    *(
        (f"every row has '{name}'", {}, lambda row, name=name: row.update({name: None}))
        for name in answer_checks.REQUIRED
    ),
    ("the split is a known one", {}, lambda row: row.update(split="holdout")),
    ("a row lies in the file of its split", {}, lambda row: row.update(split="train")),
    ("the shape is a known one", {}, lambda row: row.update(shape="HEXA")),
    ("the view is a known one", {}, lambda row: row.update(view="XRAY")),
    ("the prompt kind is a known one", {}, lambda row: row.update(kind="three_image")),
    ("the shot is a known one", {}, lambda row: row.update(shot="few_shot")),
    (
        "the form of the answer fits the prompt",
        {},
        lambda row: row.update(answer_kind="discrimination"),
    ),
    (
        "the messages are in the chat form and end with the assistant's turn",
        {},
        lambda row: row.update(messages=["what do you see?"]),
    ),
    (
        "the messages are in the chat form and end with the assistant's turn",
        {},
        lambda row: row.update(messages=prompts.without_answer(row["messages"])),
    ),
    ("the assistant's last turn is the expected answer", {}, lambda row: row.update(answer=row["answer"] + " ")),
    ("there are as many images as placeholders", {}, drop_image),
    ("there are as many images as the prompt kind and the shot need", {}, drop_image_and_placeholder),
    ("a one-shot prompt has a worked example", STAR, forget_star),
    ("the worked example of a two_image prompt keeps the contract's star form", STAR, spoil_star),
    (
        "the worked example of a stacked prompt keeps the contract's comparison form",
        STAR | {"kind": "stacked"},
        spoil_star,
    ),
    ("the capture has a label", {}, lambda row: row.update(file="images/gone.jpg")),
    ("the judgement of the answer is that of the capture's label", PASSED, judge_defective),
    ("the mode of the answer is that of the capture's label", DEFECTIVE, name_another_mode),
    ("the position of the answer is that of the capture's label", DEFECTIVE, name_another_pin),
    ("every image is a composite", {}, lambda row: row["images"].__setitem__(-1, "gone.jpg")),
    ("the last image shows the capture of the row", {}, lambda row: row["images"].reverse()),
]


@pytest.fixture(scope="module")
def spoilt(line: Path, contract: AnswerContract, provenance: Provenance) -> tuple[CheckResult, list[str]]:
    """One validation in which every entry of RULES breaks a row of its own, and the lines of these rows."""
    rows = {split: read_chat(line / f"data/chat/{split}.jsonl") for split in SPLITS}
    lines = []
    for _, where, spoil in RULES:
        row = of(rows, **where, not_in=lines)
        lines.append(f"test.jsonl, line {rows['test'].index(row) + 1}")
        spoil(row)
    return check(rows, contract, provenance), lines


@pytest.mark.parametrize("number", range(len(RULES)), ids=[rule for rule, *_ in RULES])
def test_a_row_that_breaks_a_rule_is_caught_and_named(spoilt, number):
    result, lines = spoilt
    broken = {failure.rule for failure in result.failures if failure.line == lines[number]}
    assert RULES[number][0] in broken


def test_only_rows_that_break_a_rule_are_named(spoilt):
    result, lines = spoilt
    assert not result.success
    assert {failure.line for failure in result.failures} == set(lines)
    assert result.failing_rows == len(lines) == len(RULES)


def test_every_rule_of_the_suite_has_a_row_that_breaks_it(contract):
    expectations = [
        *answer_checks.answer_expectations(contract),
        *answer_checks.dataset_expectations(contract, minimum_rows=20),
    ]
    tested_below = {
        "there are at least 20 training rows (check.minimum_rows in params.yaml)",
        "no id occurs twice",
        "no inspected capture is in two splits",
    }
    assert {expectation.description for expectation in expectations} == {rule for rule, *_ in RULES} | tested_below


def test_the_dataset_as_it_is_made_keeps_every_rule(rows, contract, provenance):
    result = check(rows, contract, provenance)
    assert result.success
    assert result.failures == []
    assert all(record["element_count"] for record in result.expectations if "element_count" in record)
    result.require_success("Nothing to correct.")


def test_an_error_about_a_repeated_id_names_both_lines(rows, contract, provenance):
    rows["test"][1]["id"] = rows["test"][0]["id"]
    failures = [
        failure for failure in check(rows, contract, provenance).failures if failure.rule == "no id occurs twice"
    ]
    assert [failure.line for failure in failures] == ["test.jsonl, line 1", "test.jsonl, line 2"]


def test_an_inspected_capture_in_training_and_test_is_named(rows, contract, provenance):
    leaked = rows["test"][0]
    leaked["sha256"] = rows["train"][0]["sha256"]
    failures = check(rows, contract, provenance).failures
    assert [(failure.rule, failure.line) for failure in failures] == [
        ("no inspected capture is in two splits", "test.jsonl, line 1")
    ]


def test_too_few_training_rows_are_refused_whatever_the_other_splits_hold(rows, contract, provenance):
    enough = len(rows["train"])
    assert check(rows, contract, provenance, minimum_rows=enough).success
    result = check(rows, contract, provenance, minimum_rows=enough + 1)
    with pytest.raises(AnswerCheckFailed, match=rf"the dataset: there are at least {enough + 1} .* found {enough}"):
        result.require_success("Add captures.")


def test_an_error_names_ten_rows_and_counts_the_others(rows, contract, provenance):
    for row in rows["test"]:
        answer(row, "no idea")
    result = check(rows, contract, provenance)
    with pytest.raises(AnswerCheckFailed) as raised:
        result.require_success("Correct the labels.")
    head, *named, more, advice = str(raised.value).splitlines()
    assert head == f"{len(rows['test'])} of {result.rows} rows fail the answer checks:"
    assert len(named) == ROWS_NAMED_IN_AN_ERROR
    assert more == f"  and {len(rows['test']) - len(named)} more"
    assert advice == "Correct the labels."
    assert rows["test"][0]["capture"] in named[0]
    assert "expected 5 lines, found 1: 'no idea'" in named[0]


def test_an_expectation_that_great_expectations_drops_is_noticed(rows, contract, provenance, monkeypatch):
    name = "expect_comparison_answers"
    monkeypatch.delitem(registry._registered_expectations, name)
    with pytest.raises(AnswerCheckFailed, match="dropped: the answer keeps the contract's comparison form"):
        check(rows, contract, provenance)


def test_each_form_of_the_contract_is_an_expectation_of_its_own(rows, contract, provenance):
    types = {record["rule"]: record["type"] for record in check(rows, contract, provenance).expectations}
    forms = {rule: kind for rule, kind in types.items() if rule.startswith("the answer keeps the contract's")}
    assert set(forms.values()) == {"expect_comparison_answers", "expect_discrimination_answers"}
    assert "expect_star_answers" in types.values()
    assert issubclass(answer_checks.ExpectStarAnswers, gxe.ExpectColumnValuesToMatchRegex)


def test_two_expectations_with_the_same_name_are_an_error(rows, contract, provenance):
    table = answer_checks.tabulate(rows, contract, provenance)
    twice = [gxe.ExpectColumnValuesToBeUnique(column=column, description="a rule") for column in ("id", "line")]
    with pytest.raises(AnswerCheckFailed, match="ran 1 of 2 answer checks"):
        answer_checks.validate(table, twice, contract, index_columns=("id",))


def test_a_model_s_answers_are_checked_by_the_same_rules_and_never_stop_anything(rows, contract, provenance):
    predictions = pd.DataFrame(rows["test"])
    assert answer_checks.check_model_answers(predictions, contract).success
    wrong = of(rows, judged="->defective")
    predictions.loc[predictions["id"] == wrong["id"], "answer"] = wrong["answer"].replace("->defective", "->passed")
    result = answer_checks.check_model_answers(predictions, contract)
    assert not result.success
    assert result.failing_rows == 1
    assert {failure.row_id for failure in result.failures} == {wrong["id"]}
    assert {"a passed answer names no defect mode", "a passed answer names no defect position"} <= {
        failure.rule for failure in result.failures
    }


def test_the_fields_of_an_answer_are_found_even_where_it_breaks_the_contract(contract):
    text = "I think:\n- defect mode->bend\n- quantity of pins->12 pins\n- your judgement->"
    assert answer_checks.answer_fields(text, contract, AnswerKind.DISCRIMINATION) == {
        "image_type": None,
        "number_of_pins": "12 pins",
        "judgement": "",
        "defect_mode": "bend",
        "defect_position": None,
    }


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A line whose chat dataset was made by the stage script."""
    chat_line.make_line(tmp_path)
    assert run_stage("chat", tmp_path).returncode == 0
    return tmp_path


def run_stage(name: str, root: Path) -> subprocess.CompletedProcess:
    return stage_process(name, root)


def test_the_stage_writes_the_same_validation_again_and_nothing_else(workspace):
    first = run_stage("check", workspace)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    validation = workspace / "reports/answers/validation.json"
    written = contents(validation.parent)
    assert json.loads(validation.read_text())["success"] is True
    assert run_stage("check", workspace).returncode == 0
    assert contents(validation.parent) == written
    assert sorted(path.name for path in validation.parent.iterdir()) == ["passed.json", "validation.json"]


def test_rewording_a_check_changes_the_report_and_not_what_training_depends_on(workspace, monkeypatch):
    check_stage.main(workspace)
    gate, report = workspace / "reports/answers/passed.json", workspace / "reports/answers/validation.json"
    before = gate.read_bytes(), report.read_bytes()
    monkeypatch.setattr(answer_checks, "_in_set", reworded(answer_checks._in_set))
    check_stage.main(workspace)
    assert gate.read_bytes() == before[0]
    assert report.read_bytes() != before[1]
    train = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train"]["deps"]
    assert "reports/answers/passed.json" in train and "reports/answers/validation.json" not in train


def reworded(make):
    """Return a function that makes the same expectation with another sentence."""
    return lambda column, values, rule, *more: make(column, values, f"in other words: {rule}", *more)


def test_batches_of_rows_give_the_verdict_of_the_whole_dataset(workspace, contract):
    def verdict(**options) -> tuple:
        result = answer_checks.check_chat(workspace / "data", contract, minimum_rows=20, **options)
        counts = [
            {name: value for name, value in each.items() if name != "failing_rows"} for each in result.expectations
        ]
        return result.rows, counts, {(failure.rule, failure.finding, failure.row) for failure in result.failures}

    assert verdict(rows_at_once=100) == verdict()
    train, test = (workspace / f"data/chat/{split}.jsonl" for split in ("train", "test"))
    rows = read_chat(train)
    answer(rows[0], rows[0]["answer"].replace("27 pins", "28 pins"))
    rows[-1]["id"] = rows[1]["id"]  # far apart: in two batches
    train.write_text("".join(json.dumps(each) + "\n" for each in rows))
    test.write_text(test.read_text() + json.dumps(rows[2] | {"id": "a copy", "split": "test"}) + "\n")
    assert verdict(rows_at_once=100) == verdict()
    rules = {rule for rule, _, _ in verdict()[2]}
    assert {"no id occurs twice", "no inspected capture is in two splits"} <= rules
    train.write_text("")
    assert "there are at least 20 training rows (check.minimum_rows in params.yaml)" in {
        rule for rule, _, _ in verdict(rows_at_once=100)[2]
    }


def test_a_bad_answer_stops_the_pipeline_and_loses_nothing(workspace):
    path = workspace / "data/chat/train.jsonl"
    row, *others = read_chat(path)
    answer(row, row["answer"].replace("27 pins", "28 pins"))
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, *others)))
    before = {file: file.read_bytes() for file in (workspace / "data").rglob("*") if file.is_file()}
    failed = run_stage("check", workspace)
    assert failed.returncode == AnswerCheckFailed.exit_code
    assert "Traceback" not in failed.stderr
    head, named, advice = failed.stderr.splitlines()
    assert head == f"1 of {sum(1 for _ in all_lines(workspace))} rows fail the answer checks:"
    assert named.startswith(f"  train.jsonl, line 1, {row['capture']} ({row['id']}): ")
    assert "line 2: expected '27 pins' after '- number of pins->', found '28 pins'" in named
    assert "data/captures/labels.csv" in advice
    assert {file: file.read_bytes() for file in (workspace / "data").rglob("*") if file.is_file()} == before
    validation = json.loads((workspace / "reports/answers/validation.json").read_text())
    assert (validation["success"], validation["failing_rows"]) == (False, 1)
    assert row["id"] in (workspace / "reports/answers/validation.json").read_text()
    assert not (workspace / "reports/answers/passed.json").exists()


def test_the_report_shows_what_each_rule_expects_and_examples_of_what_it_found(
    rows: dict[str, list[dict]], contract: AnswerContract, provenance: Provenance, tmp_path: Path
) -> None:
    broken = rows["test"][:5]
    for row in broken:
        replace(row, "27 pins", "28 pins")
    result = check(rows, contract, provenance)
    shown = chat_rows(0, 1)
    evaluation = everything(shown, answered(shown), noise_images(tmp_path / "composited"))
    page = render_report(dataclasses.replace(evaluation, dataset_checks=json.loads(result.to_json())))
    lines = [" ".join(line) for line in lines_of(section_of(page, "checks"))]
    assert len(lines) == len(result.expectations)
    (line,) = [line for line in lines if line.startswith("The number of pins is that of the layout ")]
    examples = [f"answer_number_of_pins '28 pins' (test.jsonl, line {n + 1}, {broken[n]['capture']})" for n in range(3)]
    expected = "expect column values to be in set: answer_number_of_pins: 27 pins"
    assert f" {expected} {result.rows} 5 no {'; '.join(examples)}; and 2 more" in line
    (count,) = [line for line in lines if line.startswith("There are at least 20 training rows")]
    assert f" {len(rows['train'])} 0 yes" in count


def all_lines(root: Path) -> list[str]:
    return [line for path in (root / "data/chat").glob("*.jsonl") for line in path.read_text().splitlines()]
