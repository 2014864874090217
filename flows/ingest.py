"""Captures come in from an inbox folder; when something has changed, the project is brought up to date.

python -m flows.ingest [PROJECT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from pinspect.core import environment as quiet
from pinspect.core.errors import run

quiet.apply()

from prefect import flow, get_run_logger, task  # noqa: E402  after the settings that it reads while it is imported
from prefect.artifacts import create_table_artifact  # noqa: E402
from prefect.states import State  # noqa: E402

from flows.retrain import bring_up_to_date, in_checkout, report_on  # noqa: E402
from pinspect.captures.inbox import take_captures  # noqa: E402
from pinspect.captures.labels import AddReport  # noqa: E402
from pinspect.core.params import load_params  # noqa: E402

CAPTURES = Path("data/captures")


@flow(name="ingest")
def ingest(root: str = ".", inbox: str = "inbox", retries: int = 2, retry_delay_seconds: float = 30) -> State:
    """Move the good captures of `inbox` (relative to `root`) into data/captures, then do what `retrain` does.

    What is wrong with a capture is logged and stands in the artifact `refused`; the capture stays in the inbox. Ends as
    `retrain` ends; the message tells how many captures came in and how many were refused.
    """

    def work(project: Path) -> State:
        added = take(str(project), str(project / inbox))
        state = bring_up_to_date(project, retries, retry_delay_seconds)
        what = f"{len(added.added)} captures came in; problems left in {inbox}: {len(added.refused)}."
        return state.model_copy(update={"message": f"{what} {state.message}"})

    return in_checkout(root, work)


@task(cache_policy=None)
def take(root: str, inbox: str) -> AddReport:
    """What `pinspect add` does, capture by capture, out of the inbox."""
    params = load_params(Path(root) / "params.yaml")
    report = take_captures(Path(inbox), Path(root) / CAPTURES, params.contract(), max_pixels=params.raw.max_pixels)
    for problem in report.refused:
        get_run_logger().warning("left in the inbox: %s", problem)
    if report.refused:
        rows = [{"problem": problem} for problem in report.refused]
        create_table_artifact(key="refused", table=rows, description=f"Captures left in {inbox}")
    return report


def main(root: str = ".") -> None:
    """Run the flow here and now."""
    report_on(ingest, root)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
