"""The outcome of the answer checks: every rule, and every row that breaks one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from pinspect.core.errors import AnswerCheckFailed

ROWS_NAMED_IN_AN_ERROR = 10
LONGEST_FINDING = 200  # characters


@dataclass(frozen=True)
class Failure:
    """One row that breaks one rule.

    Attributes:
        rule: The rule as a sentence.
        finding: What breaks it.
        row_id: The id of the row; empty for a rule about the whole dataset.
        line: File and line of the row; empty if the table has no such column.
        capture: The user's name of the capture; empty if the table has no such column.
    """

    rule: str
    finding: str
    row_id: str = ""
    line: str = ""
    capture: str = ""

    @property
    def row(self) -> str:
        """Return the name of the row for people, such as `train.jsonl, line 12, OK_17.jpg (<id>)`."""
        place = ", ".join(part for part in (self.line, self.capture) if part)
        return f"{place} ({self.row_id})" if place else self.row_id or "the dataset"


@dataclass(frozen=True)
class CheckResult:
    """The outcome of a validation.

    Attributes:
        rows: Number of rows.
        expectations: One record for each rule, in the order of the suite: rule, type, success, kwargs, counts.
        failures: Every failing row.
    """

    rows: int
    expectations: list[dict]
    failures: list[Failure]

    @property
    def success(self) -> bool:
        """Return whether every rule held."""
        return all(expectation["success"] for expectation in self.expectations)

    @property
    def failing_rows(self) -> int:
        """Return the number of rows that break at least one rule."""
        return len({failure.row for failure in self.failures if failure.row_id})

    def to_json(self) -> str:
        """Return the result as JSON without times and random ids: the same dataset gives the same text."""
        content = {
            "success": self.success,
            "rows": self.rows,
            "failing_rows": self.failing_rows,
            "expectations": self.expectations,
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def require_success(self, advice: str) -> None:
        """Do nothing if every rule held.

        Raises:
            AnswerCheckFailed: A rule did not hold. The message names the failing rows and ends with `advice`.
        """
        if self.success:
            return
        by_row: dict[str, list[str]] = defaultdict(list)
        for failure in self.failures:
            by_row[failure.row].append(f"{failure.rule}; found {shorten(failure.finding, LONGEST_FINDING)}")
        named = [f"  {row}: {'; '.join(breaches)}" for row, breaches in by_row.items()]
        if len(named) > ROWS_NAMED_IN_AN_ERROR:
            named[ROWS_NAMED_IN_AN_ERROR:] = [f"  and {len(named) - ROWS_NAMED_IN_AN_ERROR} more"]
        head = f"{self.failing_rows} of {self.rows} rows fail the answer checks:"
        raise AnswerCheckFailed("\n".join([head, *named, advice]))


def merged(results: Sequence[CheckResult]) -> CheckResult:
    """Return the outcome for a dataset from those for its parts, which the same rules have checked."""
    if len(results) == 1:
        return results[0]
    records: list[dict] = []
    failures = [failure for result in results for failure in result.failures]
    for parts in zip(*(result.expectations for result in results), strict=True):
        record = parts[0] | {"success": all(part["success"] for part in parts)}
        record["failing_rows"] = [row for part in parts for row in part["failing_rows"]]
        for name in ("unexpected_count", "element_count", "observed_value"):
            if name in record:
                record[name] = sum(part[name] for part in parts)
        if "min_value" in record["kwargs"]:  # the number of rows
            record["success"] = record["observed_value"] >= record["kwargs"]["min_value"]
            failures = [failure for failure in failures if failure.rule != record["rule"]]
            if not record["success"]:
                failures.insert(0, Failure(record["rule"], str(record["observed_value"])))
        records.append(record)
    return CheckResult(sum(result.rows for result in results), records, failures)
