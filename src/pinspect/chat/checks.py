"""The answer checks: Great Expectations over the chat dataset before training, and over the model's answers after it.

Every expectation carries its rule as a sentence (`description`), which names it in the validation result, in the report
and in the error that stops the pipeline. Great Expectations silently drops an expectation that it does not know, so
`validate` compares the rules that ran with the rules that were given.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# Great Expectations offers these names to users without exporting them by PEP 484's rules.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.row_conditions import Column

from pinspect.chat.batches import ROWS_AT_ONCE, NumberedRow, batches
from pinspect.chat.check_result import CheckResult, Failure, merged
from pinspect.chat.provenance import Provenance
from pinspect.core import prompts
from pinspect.core.answers import DEFECTIVE, FIELDS, PASSED, VERDICT, VIEWS, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerCheckFailed, AnswerFormatError
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.prompts import ONE_SHOT, SHOTS, PromptKind
from pinspect.core.rows import SPLITS, Row
from pinspect.core.temporary_database import temporary_database

REQUIRED = (
    *("id", "source", "split", "shape", "view", "kind", "shot", "file", "capture", "sha256", "answer_kind", "answer"),
)
_IMAGES = {PromptKind.TWO_IMAGE: 2, PromptKind.ONE_IMAGE: 1, PromptKind.STACKED: 1}
_WORKED_KINDS = {PromptKind.TWO_IMAGE: AnswerKind.STAR, PromptKind.STACKED: AnswerKind.COMPARISON}
_ANSWER_FIELDS = tuple(f"answer_{field}" for field in FIELDS)
_KIND = "answer_kind"  # in the meta of an expectation: which form of the contract it checks
_MESSAGE_COLUMNS: tuple[str, ...] = ("images", "images_of_kind", "placeholders", "last_turn", "worked_answer")


class ExpectComparisonAnswers(gxe.ExpectColumnValuesToMatchRegex):
    """Expect answers about an inspected picture beside a passed one, in the contract's form."""


class ExpectDiscriminationAnswers(gxe.ExpectColumnValuesToMatchRegex):
    """Expect answers about one picture by itself, in the contract's form."""


class ExpectStarAnswers(gxe.ExpectColumnValuesToMatchRegex):
    """Expect answers to a star image, in the contract's form of three lines."""


_FORMS: dict[AnswerKind, type[gxe.ExpectColumnValuesToMatchRegex]] = {
    AnswerKind.COMPARISON: ExpectComparisonAnswers,
    AnswerKind.DISCRIMINATION: ExpectDiscriminationAnswers,
    AnswerKind.STAR: ExpectStarAnswers,
}


def check_chat(
    data: Path, contract: AnswerContract, *, minimum_rows: int, rows_at_once: int = ROWS_AT_ONCE
) -> CheckResult:
    """Validate the chat dataset, `data`/chat/{train,validation,test}.jsonl, against the labels and the composites.

    Args:
        data: Folder of the stages' outputs, with raw/manifest.csv and composited/manifest.csv.
        contract: The answer contract of the product.
        minimum_rows: Fewest training rows.
        rows_at_once: Check the rows in batches of this size.

    Returns:
        The outcome of every rule, and every failing row.

    Raises:
        StageInputError: A file is missing or is not JSON.
        AnswerCheckFailed: Great Expectations did not run every rule.
    """
    provenance = Provenance(data)
    with closing(temporary_database("CREATE TABLE captures (sha256 PRIMARY KEY, split) WITHOUT ROWID")) as captures:

        def first_split(sha256: object, split: str) -> str:
            """Return the split of the first row of a capture."""
            captures.execute("INSERT OR IGNORE INTO captures VALUES (?, ?)", (str(sha256), split))
            return captures.execute("SELECT split FROM captures WHERE sha256 = ?", (str(sha256),)).fetchone()[0]

        results = [
            validate(
                _table(rows, contract, provenance, first_split),
                [*answer_expectations(contract), *dataset_expectations(contract, minimum_rows)],
                contract,
                index_columns=("id", "line", "capture"),
            )
            for rows in batches(data / "chat", rows_at_once)
        ]
    return merged(results)


def check_model_answers(predictions: pd.DataFrame, contract: AnswerContract) -> CheckResult:
    """Validate the answers of a model by the rules for expected answers; a bad answer raises nothing.

    Args:
        predictions: Columns id, shape, view, kind and answer (the generated strings), as in the predictions table.
        contract: The answer contract of the product.

    Returns:
        The outcome of every rule, and every failing row.
    """
    table = pd.DataFrame(
        [_answer_columns(row, contract) for row in predictions.to_dict("records")],
        columns=["id", "kind", "answer", "answer_kind", "image_type", *_ANSWER_FIELDS],
        dtype=object,
    )
    return validate(table, answer_expectations(contract), contract, index_columns=("id",))


def answer_expectations(contract: AnswerContract) -> list[gxe.Expectation]:
    """Return the rules for every answer, expected or generated: the contract, and each of its parts by itself."""
    addresses = [str(address) for address in contract.layout.addresses]
    types = [f"{shape}_{view}" for shape in contract.shapes for view in VIEWS]
    judged_passed = Column("answer_judgement") == PASSED
    judged_defective = Column("answer_judgement") == DEFECTIVE
    return [
        *(
            _keeps_contract(
                contract,
                kind,
                "answer",
                f"the answer keeps the contract's {kind} form",
                Column("answer_kind") == str(kind),
            )
            for kind in (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION)
        ),
        _in_set("answer_image_type", types, "the image type is a known shape and view"),
        _in_set("answer_number_of_pins", [f"{contract.layout.pins} pins"], "the number of pins is that of the layout"),
        _in_set("answer_judgement", [PASSED, DEFECTIVE], "the judgement is passed or defective"),
        _in_set("answer_defect_mode", [PASSED, *contract.defect_modes], "the defect mode is a known one"),
        _in_set(
            "answer_defect_position", [NO_ADDRESS, *addresses], "the defect position is passed or lies in the layout"
        ),
        _equal("answer_image_type", "image_type", "the image type is the shape and view of the row"),
        _in_set("answer_defect_mode", [PASSED], "a passed answer names no defect mode", judged_passed),
        _not_in_set("answer_defect_mode", [PASSED], "a defective answer names its defect mode", judged_defective),
        _in_set("answer_defect_position", [NO_ADDRESS], "a passed answer names no defect position", judged_passed),
        _not_in_set(
            "answer_defect_position", [NO_ADDRESS], "a defective answer names its defect position", judged_defective
        ),
    ]


def dataset_expectations(contract: AnswerContract, minimum_rows: int) -> list[gxe.Expectation]:
    """Return the rules for the rows of the chat dataset, besides those for their answers."""
    return [
        gxe.ExpectTableRowCountToBeBetween(
            min_value=minimum_rows,
            row_condition=Column("split") == "train",
            description=f"there are at least {minimum_rows} training rows (check.minimum_rows in params.yaml)",
        ),
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"every row has {column!r}")
            for column in REQUIRED
        ),
        gxe.ExpectColumnValuesToBeUnique(column="id", description="no id occurs twice"),
        _in_set("split", SPLITS, "the split is a known one"),
        _equal("split", "file_split", "a row lies in the file of its split"),
        _in_set("shape", contract.shapes, "the shape is a known one"),
        _in_set("view", VIEWS, "the view is a known one"),
        _in_set("kind", [str(kind) for kind in PromptKind], "the prompt kind is a known one"),
        _in_set("shot", SHOTS, "the shot is a known one"),
        _equal("answer_kind", "kind_of_prompt", "the form of the answer fits the prompt"),
        gxe.ExpectColumnValuesToNotBeNull(
            column="placeholders", description="the messages are in the chat form and end with the assistant's turn"
        ),
        _equal("answer", "last_turn", "the assistant's last turn is the expected answer"),
        _equal("images", "placeholders", "there are as many images as placeholders"),
        _equal("images", "images_of_kind", "there are as many images as the prompt kind and the shot need"),
        gxe.ExpectColumnValuesToNotBeNull(
            column="worked_answer",
            row_condition=Column("shot") == ONE_SHOT,
            description="a one-shot prompt has a worked example",
        ),
        *(
            _keeps_contract(
                contract,
                worked_kind,
                "worked_answer",
                f"the worked example of a {prompt_kind} prompt keeps the contract's {worked_kind} form",
                Column("kind") == str(prompt_kind),
            )
            for prompt_kind, worked_kind in _WORKED_KINDS.items()
        ),
        _equal("split", "first_split", "no inspected capture is in two splits"),
        gxe.ExpectColumnValuesToNotBeNull(column="label_judgement", description="the capture has a label"),
        *(
            _equal(
                f"answer_{field}",
                f"label_{field}",
                f"the {field.removeprefix('defect_')} of the answer is that of the capture's label",
            )
            for field in VERDICT
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="shown", description="every image is a composite"),
        _equal("file", "shown", "the last image shows the capture of the row"),
    ]


def tabulate(
    rows_by_split: Mapping[str, Sequence[Row]], contract: AnswerContract, provenance: Provenance
) -> pd.DataFrame:
    """Return the chat rows as the table that the expectations read.

    Args:
        rows_by_split: Split -> rows.
        contract: The answer contract of the product.
        provenance: The labels and the composites that the rows come from.

    Returns:
        One row for each chat row, all columns of dtype object: the values of the row, the content of its messages, what
        its kind needs, the fields of its answer, the label of its capture, and the capture that its last image shows. A
        value that a row lacks is None.
    """
    numbered = (
        (split, number, row) for split, rows in rows_by_split.items() for number, row in enumerate(rows, start=1)
    )
    return _table(numbered, contract, provenance, {}.setdefault)


def _table(
    rows: Iterable[NumberedRow],
    contract: AnswerContract,
    provenance: Provenance,
    first_split: Callable[[object, str], str],
) -> pd.DataFrame:
    """Return `tabulate`'s table of some rows; `first_split` returns the split of the first row of a capture."""
    table = [
        {column: row.get(column) for column in REQUIRED}
        | _answer_columns(row, contract)
        | {"answer_kind": row.get("answer_kind"), "kind_of_prompt": _kind_of_prompt(row)}
        | _message_columns(row)
        | provenance.columns(row)
        | {
            "line": f"{split}.jsonl, line {number}",
            "file_split": split,
            "first_split": first_split(row.get("sha256"), split),
        }
        for split, number, row in rows
    ]
    columns = [*REQUIRED, "line", "file_split", "first_split", "kind_of_prompt", *_MESSAGE_COLUMNS, "image_type"]
    columns += [*_ANSWER_FIELDS, *(f"label_{field}" for field in VERDICT), "shown"]
    return pd.DataFrame(table, columns=columns, dtype=object)


def answer_fields(answer: str, contract: AnswerContract, kind: AnswerKind) -> dict[str, str | None]:
    """Return the values behind the arrows of an answer, keyed by FIELDS, whether or not it keeps the contract.

    The values explain what is wrong with an answer; to read an inspection, use `AnswerContract.parse`.
    """
    example = contract.passed(contract.shapes[0], VIEWS[0])
    lines = contract.render(example, kind).split("\n")
    prefixes = {
        field: line.removesuffix(example.values()[field] or "") for field, line in zip(FIELDS, lines, strict=True)
    }
    written = answer.split("\n")
    return {
        field: next((line.removeprefix(prefix) for line in written if line.startswith(prefix)), None)
        for field, prefix in prefixes.items()
    }


def validate(
    table: pd.DataFrame,
    expectations: Sequence[gxe.Expectation],
    contract: AnswerContract,
    *,
    index_columns: Sequence[str],
) -> CheckResult:
    """Run expectations over a table.

    Args:
        table: The table, such as `tabulate` returns.
        expectations: The rules; their descriptions differ.
        contract: The answer contract, which explains a failing answer.
        index_columns: Columns that name a failing row.

    Returns:
        The outcome of every rule, and every failing row.

    Raises:
        AnswerCheckFailed: Great Expectations did not run every rule.
    """
    context = _quiet_context()
    suite = context.suites.add(gx.ExpectationSuite("answers", expectations=list(expectations)))
    asset = context.data_sources.add_pandas("chat").add_dataframe_asset("rows")
    definition = gx.ValidationDefinition(
        name="answers", data=asset.add_batch_definition_whole_dataframe("all"), suite=suite
    )
    outcome = context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": table},
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": list(index_columns)},
    )
    results: dict[str, Any] = {}
    for result in outcome.results:
        if result.expectation_config is not None:
            results[str(result.expectation_config.description)] = result
    rules = [str(expectation.description) for expectation in expectations]
    _require_all_ran(rules, results)
    return _check_result(table, [results[rule] for rule in rules], contract)


def _require_all_ran(rules: Sequence[str], results: Mapping[str, object]) -> None:
    dropped = [rule for rule in rules if rule not in results]
    if dropped or len(results) != len(rules):
        raise AnswerCheckFailed(
            f"Great Expectations ran {len(results)} of {len(rules)} answer checks and dropped: "
            f"{'; '.join(dropped) or 'none by name'}. Import the modules that define these expectations and run again"
        )


def _check_result(table: pd.DataFrame, results: Sequence, contract: AnswerContract) -> CheckResult:
    records, failures = [], []
    for result in results:
        config, outcome = result.expectation_config, result.to_json_dict()["result"]
        failing = outcome.get("unexpected_index_list") or []
        kwargs = {name: value for name, value in config.to_json_dict()["kwargs"].items() if name != "batch_id"}
        record = {"rule": config.description, "type": config.type, "success": bool(result.success), "kwargs": kwargs}
        record |= {name: outcome[name] for name in ("observed_value", "element_count") if name in outcome}
        records.append(record | {"unexpected_count": outcome.get("unexpected_count", 0), "failing_rows": failing})
        if not result.success and not failing:
            observed = outcome.get("observed_value", (result.exception_info or {}).get("exception_message"))
            failures.append(Failure(config.description, str(observed)))
        kind = (config.meta or {}).get(_KIND)
        failures.extend(_failure(config.description, row, contract, kwargs, kind) for row in failing)
    order = {str(row_id): number for number, row_id in enumerate(table["id"])}
    failures.sort(key=lambda failure: order.get(failure.row_id, -1))
    return CheckResult(len(table), records, failures)


def _failure(rule: str, row: Mapping, contract: AnswerContract, kwargs: Mapping, kind: str | None) -> Failure:
    """Explain an entry of an unexpected_index_list: the index columns and the columns that the expectation read."""
    columns = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    if kind:
        finding = _breach(row[columns[0]], contract, AnswerKind(kind))
    else:
        finding = ", ".join(f"{column} {row[column]!r}" for column in columns)
    return Failure(rule, finding, str(row["id"]), str(row.get("line", "")), str(row.get("capture", "")))


def _breach(answer: object, contract: AnswerContract, kind: AnswerKind) -> str:
    """Return how `answer` breaks the contract."""
    try:
        contract.parse(str(answer), kind)
    except AnswerFormatError as error:
        return str(error)
    return f"{answer!r}, which is not text"


def _kind_of_prompt(row: Mapping[Any, Any]) -> str | None:
    return str(prompts.answer_kind_of(row["kind"])) if row.get("kind") in set(PromptKind) else None


def _answer_columns(row: Mapping[Any, Any], contract: AnswerContract) -> dict[str, object]:
    kind = _kind_of_prompt(row)
    answer = row.get("answer")
    fields: dict[str, str | None] = {}
    if kind and isinstance(answer, str):
        fields = answer_fields(answer, contract, AnswerKind(kind))
    return {
        "id": row.get("id"),
        "kind": row.get("kind"),
        "answer": answer,
        "answer_kind": kind,
        "image_type": f"{row.get('shape')}_{row.get('view')}",
        **{f"answer_{field}": fields.get(field) for field in FIELDS},
    }


def _message_columns(row: Row) -> dict[str, Any]:
    """Return what the messages hold; None wherever they are not in the chat form."""
    columns: dict[str, Any] = dict.fromkeys(_MESSAGE_COLUMNS)
    images = row.get("images")
    columns["images"] = len(images) if isinstance(images, list) else None
    if row.get("kind") in set(PromptKind):
        columns["images_of_kind"] = _IMAGES[PromptKind(row["kind"])] + (row.get("shot") == ONE_SHOT)
    try:
        answers = [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]
        columns["placeholders"] = prompts.image_count(row["messages"])
        columns["last_turn"] = answers[-1]
    except (KeyError, TypeError, IndexError):
        return columns | {"placeholders": None}
    return columns | {"worked_answer": answers[0] if len(answers) > 1 else None}


def _quiet_context() -> gx.data_context.EphemeralDataContext:
    """Return a context in memory that prints nothing."""
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    return context


def _keeps_contract(
    contract: AnswerContract, kind: AnswerKind, column: str, rule: str, condition: Any
) -> gxe.Expectation:
    """Expect well-formed answers of `kind`. Null answers pass, as in every column map expectation."""
    return _FORMS[kind](
        column=column,
        regex=contract.pattern(kind),
        row_condition=condition,
        description=rule,
        meta={_KIND: str(kind)},
    )


def _in_set(column: str, values: Sequence[str], rule: str, condition: Any = None) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), row_condition=condition, description=rule
    )


def _not_in_set(column: str, values: Sequence[str], rule: str, condition: Any = None) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToNotBeInSet(
        column=column, value_set=list(values), row_condition=condition, description=rule
    )


def _equal(column: str, other: str, rule: str) -> gxe.Expectation:
    return gxe.ExpectColumnPairValuesToBeEqual(
        column_A=column, column_B=other, ignore_row_if="either_value_is_missing", description=rule
    )
