"""Takes captures in from an inbox folder, then brings the project up to date.

python -m flows.ingest [PROJECT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.notices import HOOKS
from flows.retrain import CAPTURES, bring_up_to_date, in_checkout, run_here
from flows.run_names import ingest_name
from pinspect.captures.adding import AddReport
from pinspect.captures.inbox import take_captures
from pinspect.core.errors import run
from pinspect.core.params import load_params


@flow(name="ingest", flow_run_name=ingest_name, **HOOKS)
def ingest(root: str = ".", inbox: str = "inbox", retries: int = 2, retry_delay_seconds: float = 30) -> State:
    """Move the valid captures of an inbox into data/captures, then do what `retrain` does.

    A capture with a problem stays in the inbox; the problem is logged and listed in the artifact `refused`.

    Args:
        root: The project's folder.
        inbox: The inbox folder, relative to `root`.
        retries: As in `retrain`.
        retry_delay_seconds: As in `retrain`.

    Returns:
        The state of `retrain`; its message starts with the number of captures that came in and of problems.
    """

    def work(project: Path) -> State:
        report = take(str(project), str(project / inbox))
        state = bring_up_to_date(project, retries, retry_delay_seconds)
        counts = f"{len(report.added)} captures came in; problems left in {inbox}: {len(report.refused)}."
        return state.model_copy(update={"message": f"{counts} {state.message}"})

    return in_checkout(root, work)


@task(cache_policy=NO_CACHE)
def take(root: str, inbox: str) -> AddReport:
    """Do what `pinspect add` does, capture by capture, with the captures of an inbox."""
    params = load_params(Path(root) / "params.yaml")
    report = take_captures(Path(inbox), Path(root) / CAPTURES, params.contract(), max_pixels=params.raw.max_pixels)
    for problem in report.refused:
        get_run_logger().warning("left in the inbox: %s", problem)
    if report.refused:
        rows = [{"problem": problem} for problem in report.refused]
        create_table_artifact(key="refused", table=rows, description=f"Captures left in {inbox}")
    return report


def main(root: str = ".") -> None:
    """Run the flow in this process."""
    run_here(ingest, root)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
