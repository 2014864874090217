"""The answer checks: Great Expectations over the chat dataset before training, and over the model's answers after it.

Every expectation carries its rule as a sentence (`description`), which names it in the validation result, in Data
Docs and in the error that stops the pipeline. Great Expectations drops an expectation that it does not know without a
word, so the results are counted against what was asked.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import ClassVar

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.checkpoint import UpdateDataDocsAction
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    column_condition_partial,
)
from great_expectations.expectations.row_conditions import Column

from pinspect.core import prompts
from pinspect.core.answers import DEFECTIVE, FIELDS, PASSED, VIEWS, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerCheckFailed, AnswerFormatError
from pinspect.core.layout import NO_ADDRESS, Layout
from pinspect.core.prompts import ONE_SHOT, SHOTS, PromptKind
from pinspect.core.rows import SPLITS, Row, read_chat

REQUIRED = (
    *("id", "source", "split", "shape", "view", "kind", "shot", "file", "capture", "sha256", "answer_kind", "answer"),
)
ROWS_NAMED_IN_AN_ERROR = 10
LONGEST_FINDING = 200  # characters
_IMAGES = {PromptKind.TWO_IMAGE: 2, PromptKind.ONE_IMAGE: 1, PromptKind.STACKED: 1}
_WORKED_KINDS = {PromptKind.TWO_IMAGE: AnswerKind.STAR, PromptKind.STACKED: AnswerKind.COMPARISON}
_ANSWER_FIELDS = tuple(f"answer_{field}" for field in FIELDS)
_MESSAGE_COLUMNS = ("images", "images_of_kind", "placeholders", "last_turn", "worked_answer")


class AnswersKeepTheContract(ColumnMapMetricProvider):
    """The map metric of `ExpectAnswerToKeepTheContract`: whether each answer string is well-formed."""

    condition_metric_name = "column_values.keep_the_answer_contract"
    condition_value_keys = ("answer_kind", "layout_rows", "layout_columns", "shapes", "defect_modes")

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column, answer_kind, layout_rows, layout_columns, shapes, defect_modes, **kwargs):  # noqa: N805
        contract = AnswerContract(Layout(tuple(layout_rows), layout_columns), tuple(shapes), tuple(defect_modes))
        pattern = re.compile(contract.pattern(AnswerKind(answer_kind)))
        return column.map(lambda answer: isinstance(answer, str) and pattern.search(answer) is not None)


class ExpectAnswerToKeepTheContract(ColumnMapExpectation):
    """Expect every answer string of a column to be one that the answer contract allows.

    The contract is given in plain values (`for_contract` fills them in), so that the suite can be stored and read.
    Null answers pass, as in every column map expectation: ask for non-null ones beside it.
    """

    answer_kind: str
    layout_rows: list[str]
    layout_columns: int
    shapes: list[str]
    defect_modes: list[str]

    map_metric: ClassVar[str] = AnswersKeepTheContract.condition_metric_name
    success_keys: ClassVar[tuple[str, ...]] = (*AnswersKeepTheContract.condition_value_keys, "mostly")

    @classmethod
    def for_contract(
        cls, contract: AnswerContract, kind: AnswerKind, column: str, **options: object
    ) -> ExpectAnswerToKeepTheContract:
        """The expectation that `column` holds answers of `kind`; `options` are those of any expectation."""
        return cls(
            column=column,
            answer_kind=str(kind),
            layout_rows=list(contract.layout.rows),
            layout_columns=contract.layout.columns,
            shapes=list(contract.shapes),
            defect_modes=list(contract.defect_modes),
            **options,
        )


@dataclass(frozen=True)
class Failure:
    """One row that breaks one rule. `row_id` is empty where the rule is about the whole dataset; `line` and `capture`
    (the file name that the user gave) are empty where the table does not tell them."""

    rule: str
    found: str
    row_id: str = ""
    line: str = ""
    capture: str = ""

    @property
    def row(self) -> str:
        """The row's name for people, such as `train.jsonl, line 12, OK_17.jpg (<id>)`."""
        place = ", ".join(part for part in (self.line, self.capture) if part)
        return f"{place} ({self.row_id})" if place else self.row_id or "the dataset"


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a validation: one record per expectation, in the order of the suite, and every failing row."""

    rows: int
    expectations: list[dict]
    failures: list[Failure]

    @property
    def success(self) -> bool:
        """Whether every rule held."""
        return all(expectation["success"] for expectation in self.expectations)

    @property
    def failing_rows(self) -> int:
        """How many rows break at least one rule."""
        return len({failure.row for failure in self.failures if failure.row_id})

    def to_json(self) -> str:
        """The result without times and random ids: the same dataset gives the same text."""
        content = {
            "success": self.success,
            "rows": self.rows,
            "failing_rows": self.failing_rows,
            "great_expectations": gx.__version__,
            "expectations": self.expectations,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def require_success(self, advice: str) -> None:
        """Raise AnswerCheckFailed that names the failing rows and ends with `advice`; nothing where all rules held."""
        if self.success:
            return
        by_row: dict[str, list[str]] = defaultdict(list)
        for failure in self.failures:
            by_row[failure.row].append(f"{failure.rule}; found {shorten(failure.found, LONGEST_FINDING)}")
        named = [f"  {row}: {'; '.join(breaches)}" for row, breaches in by_row.items()]
        if len(named) > ROWS_NAMED_IN_AN_ERROR:
            named[ROWS_NAMED_IN_AN_ERROR:] = [f"  and {len(named) - ROWS_NAMED_IN_AN_ERROR} more"]
        head = f"{self.failing_rows} of {self.rows} rows fail the answer checks:"
        raise AnswerCheckFailed("\n".join([head, *named, advice]))


def check_chat(folder: Path, contract: AnswerContract, *, minimum_rows: int, docs: Path | None = None) -> CheckResult:
    """Validate `folder`/{train,validation,test}.jsonl. Data Docs are written to the folder `docs`, if given.

    Raises StageInputError for a file that is missing or not JSON; failing rows are in the result.
    """
    table = tabulate({split: read_chat(folder / f"{split}.jsonl") for split in SPLITS}, contract)
    expectations = [*answer_expectations(contract), *dataset_expectations(contract, minimum_rows)]
    return validate(table, expectations, contract, index_columns=("id", "line", "capture"), docs=docs)


def check_model_answers(predictions: pd.DataFrame, contract: AnswerContract, docs: Path | None = None) -> CheckResult:
    """Validate a model's answers by the rules that hold for the expected ones.

    predictions: columns id, shape, view, kind and answer (the generated strings), as in the predictions table. Never
    raises for a bad answer: how many there are is a result.
    """
    table = pd.DataFrame(
        [_answer_columns(row, contract) for row in predictions.to_dict("records")],
        columns=["id", "kind", "answer", "answer_kind", "image_type", *_ANSWER_FIELDS],
        dtype=object,
    )
    return validate(table, answer_expectations(contract), contract, index_columns=("id",), docs=docs)


def answer_expectations(contract: AnswerContract) -> list[gxe.Expectation]:
    """What holds for every answer, expected or generated: the contract, and each of its rules by itself."""
    addresses = [str(address) for address in contract.layout.addresses]
    types = [f"{shape}_{view}" for shape in contract.shapes for view in VIEWS]
    judged_passed = Column("answer_judgement") == PASSED
    judged_defective = Column("answer_judgement") == DEFECTIVE
    return [
        *(
            ExpectAnswerToKeepTheContract.for_contract(
                contract,
                kind,
                "answer",
                row_condition=Column("answer_kind") == str(kind),
                description=f"the answer keeps the contract's {kind} form",
            )
            for kind in (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION)
        ),
        _in_set("answer_image_type", types, "the image type is a known shape and view"),
        _in_set("answer_number_of_pins", [f"{contract.layout.pins} pins"], "the number of pins is that of the layout"),
        _in_set("answer_judgement", [PASSED, DEFECTIVE], "the judgement is passed or defective"),
        _in_set("answer_defect_mode", [PASSED, *contract.defect_modes], "the defect mode is a known one"),
        _in_set("answer_defect_position", [NO_ADDRESS, *addresses], "the defect position is NA or lies in the layout"),
        _equal("answer_image_type", "image_type", "the image type is the shape and view of the row"),
        _in_set("answer_defect_mode", [PASSED], "a passed answer names no defect mode", judged_passed),
        _not_in_set("answer_defect_mode", [PASSED], "a defective answer names its defect mode", judged_defective),
        _in_set("answer_defect_position", [NO_ADDRESS], "a passed answer names no defect position", judged_passed),
        _not_in_set(
            "answer_defect_position", [NO_ADDRESS], "a defective answer names its defect position", judged_defective
        ),
    ]


def dataset_expectations(contract: AnswerContract, minimum_rows: int) -> list[gxe.Expectation]:
    """What holds for the rows of the chat dataset, besides their answers."""
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
        gxe.ExpectColumnValuesToBeUnique(column="id", description="no id stands twice"),
        _in_set("split", SPLITS, "the split is a known one"),
        _equal("split", "file_split", "a row lies in the file of its split"),
        _in_set("shape", contract.shapes, "the shape is a known one"),
        _in_set("view", VIEWS, "the view is a known one"),
        _in_set("kind", [str(kind) for kind in PromptKind], "the prompt kind is a known one"),
        _in_set("shot", SHOTS, "the shot is a known one"),
        _equal("answer_kind", "asked_kind", "the form of the answer is the one that the prompt asks for"),
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
            ExpectAnswerToKeepTheContract.for_contract(
                contract,
                worked_kind,
                "worked_answer",
                row_condition=Column("kind") == str(prompt_kind),
                description=f"the worked example of a {prompt_kind} prompt keeps the contract's {worked_kind} form",
            )
            for prompt_kind, worked_kind in _WORKED_KINDS.items()
        ),
        _equal("split", "first_split", "no inspected capture is in two splits"),
    ]


def tabulate(rows_by_split: Mapping[str, Sequence[Row]], contract: AnswerContract) -> pd.DataFrame:
    """The chat rows as the table that the expectations read: one row each, all columns of dtype object.

    Beside the row's own values stand what its messages hold, what its kind asks for, and the fields of its answer.
    A value that cannot be found is None.
    """
    table = []
    first_split: dict[object, str] = {}
    for split, rows in rows_by_split.items():
        for number, row in enumerate(rows, start=1):
            table.append(
                {column: row.get(column) for column in REQUIRED}
                | _answer_columns(row, contract)
                | {"answer_kind": row.get("answer_kind"), "asked_kind": _asked_kind(row)}
                | _message_columns(row)
                | {
                    "line": f"{split}.jsonl, line {number}",
                    "file_split": split,
                    "first_split": first_split.setdefault(row.get("sha256"), split),
                }
            )
    columns = [*REQUIRED, "line", "file_split", "first_split", "asked_kind", *_MESSAGE_COLUMNS, "image_type"]
    return pd.DataFrame(table, columns=[*columns, *_ANSWER_FIELDS], dtype=object)


def answer_fields(answer: str, contract: AnswerContract, kind: AnswerKind) -> dict[str, str | None]:
    """The values behind the arrows of an answer, keyed by FIELDS, whether or not it keeps the contract.

    Meant for telling what is wrong with an answer; to take an inspection from it, use `AnswerContract.parse`.
    """
    example = contract.passed(contract.shapes[0], VIEWS[0])
    lines = contract.render(example, kind).split("\n")
    prefixes = {field: line.removesuffix(example.values()[field]) for field, line in zip(FIELDS, lines, strict=True)}
    found = answer.split("\n")
    return {
        field: next((line.removeprefix(prefix) for line in found if line.startswith(prefix)), None)
        for field, prefix in prefixes.items()
    }


def validate(
    table: pd.DataFrame,
    expectations: Sequence[gxe.Expectation],
    contract: AnswerContract,
    *,
    index_columns: Sequence[str],
    docs: Path | None = None,
) -> CheckResult:
    """Run `expectations` over `table`; `index_columns` name a failing row. Data Docs go to `docs`, replacing old ones.

    Raises AnswerCheckFailed when Great Expectations has not run every expectation, whatever the rest says.
    """
    context = _quiet_context(docs)
    suite = context.suites.add(gx.ExpectationSuite("answers", expectations=list(expectations)))
    asset = context.data_sources.add_pandas("chat").add_dataframe_asset("rows")
    definition = gx.ValidationDefinition(
        name="answers", data=asset.add_batch_definition_whole_dataframe("all"), suite=suite
    )
    checkpoint = gx.Checkpoint(
        name="answers",
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[UpdateDataDocsAction(name="docs", site_names=["answers"])] if docs else [],
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": list(index_columns)},
    )
    (outcome,) = checkpoint.run(batch_parameters={"dataframe": table}).run_results.values()
    found = {result.expectation_config.description: result for result in outcome.results}
    _require_all_ran(expectations, found)
    return _check_result(table, [found[expectation.description] for expectation in expectations], contract)


def _require_all_ran(expectations: Sequence[gxe.Expectation], found: Mapping[str, object]) -> None:
    dropped = [expectation.description for expectation in expectations if expectation.description not in found]
    if dropped or len(found) != len(expectations):
        raise AnswerCheckFailed(
            f"Great Expectations ran {len(found)} of {len(expectations)} answer checks and dropped: "
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
            found = outcome.get("observed_value", (result.exception_info or {}).get("exception_message"))
            failures.append(Failure(config.description, str(found)))
        failures.extend(_failure(config.description, row, contract, kwargs) for row in failing)
    order = {str(row_id): number for number, row_id in enumerate(table["id"])}
    failures.sort(key=lambda failure: order.get(failure.row_id, -1))
    return CheckResult(len(table), records, failures)


def _failure(rule: str, row: Mapping, contract: AnswerContract, kwargs: Mapping) -> Failure:
    """`row` is an entry of an unexpected_index_list: the index columns and the columns that the expectation read."""
    columns = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
    if "answer_kind" in kwargs:
        found = _breach(row[columns[0]], contract, AnswerKind(kwargs["answer_kind"]))
    else:
        found = ", ".join(f"{column} {row[column]!r}" for column in columns)
    return Failure(rule, found, str(row["id"]), str(row.get("line", "")), str(row.get("capture", "")))


def _breach(answer: object, contract: AnswerContract, kind: AnswerKind) -> str:
    """What about `answer` breaks the contract."""
    try:
        contract.parse(str(answer), kind)
    except AnswerFormatError as error:
        return str(error)
    return f"{answer!r}, which is no text"


def _asked_kind(row: Row) -> str | None:
    return str(prompts.answer_kind_of(row["kind"])) if row.get("kind") in set(PromptKind) else None


def _answer_columns(row: Mapping[str, object], contract: AnswerContract) -> dict[str, object]:
    asked = _asked_kind(row)
    answer = row.get("answer")
    fields: dict[str, str | None] = {}
    if asked and isinstance(answer, str):
        fields = answer_fields(answer, contract, AnswerKind(asked))
    return {
        "id": row.get("id"),
        "kind": row.get("kind"),
        "answer": answer,
        "answer_kind": asked,
        "image_type": f"{row.get('shape')}_{row.get('view')}",
        **{f"answer_{field}": fields.get(field) for field in FIELDS},
    }


def _message_columns(row: Row) -> dict[str, object]:
    """What the messages hold; None wherever they are not in the chat form."""
    columns: dict[str, object] = dict.fromkeys(_MESSAGE_COLUMNS)
    images = row.get("images")
    columns["images"] = len(images) if isinstance(images, list) else None
    if row.get("kind") in set(PromptKind):
        columns["images_of_kind"] = _IMAGES[PromptKind(row["kind"])] + (row.get("shot") == ONE_SHOT)
    try:
        spoken = [message["content"][0]["text"] for message in row["messages"] if message["role"] == "assistant"]
        columns["placeholders"] = prompts.image_count(row["messages"])
        columns["last_turn"] = spoken[-1]
    except (KeyError, TypeError, IndexError):
        return columns | {"placeholders": None}
    return columns | {"worked_answer": spoken[0] if len(spoken) > 1 else None}


def _quiet_context(docs: Path | None) -> gx.data_context.EphemeralDataContext:
    """A context in memory, with Data Docs in `docs` and nowhere else, that neither talks nor draws progress bars."""
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    context.delete_data_docs_site("local_site")
    if docs:
        shutil.rmtree(docs, ignore_errors=True)
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
        context.add_data_docs_site(
            "answers",
            {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "store_backend": store,
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
    return context


def _in_set(column: str, values: Sequence[str], rule: str, condition: object = None) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), row_condition=condition, description=rule
    )


def _not_in_set(column: str, values: Sequence[str], rule: str, condition: object = None) -> gxe.Expectation:
    return gxe.ExpectColumnValuesToNotBeInSet(
        column=column, value_set=list(values), row_condition=condition, description=rule
    )


def _equal(column: str, other: str, rule: str) -> gxe.Expectation:
    return gxe.ExpectColumnPairValuesToBeEqual(
        column_A=column, column_B=other, ignore_row_if="either_value_is_missing", description=rule
    )
