"""Promotes the challenger, or rolls the champion back: `pinspect promote` and `pinspect rollback` as Prefect flows.

python -m flows.promotion            # promotes the challenger of the project in this folder, or reports why not
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.notices import HOOKS
from flows.run_names import promote_name, rollback_name
from flows.states import REFUSED, end_state
from pinspect.core.errors import PromotionRefused, run
from pinspect.core.params import load_params
from pinspect.registry.settings import load_register_settings, load_registry_settings


@flow(name="promote", flow_run_name=promote_name, **HOOKS)
def promote(root: str = ".", approve_by: str = "", on: str = "") -> State:
    """Make the challenger champion if every rule of promotion holds.

    Args:
        root: The project's folder.
        approve_by: The person who approves; empty for nobody.
        on: A folder of labeled captures for an acceptance test; empty for no such test.

    Returns:
        Completed with the decision as its data; Failed with the name Refused and every rule that does not hold.
    """
    return end_state(lambda: _promote(Path(root).resolve(), approve_by, on))


@flow(name="rollback", flow_run_name=rollback_name, **HOOKS)
def rollback(root: str = ".", why: str = "", by: str = "", to: str = "") -> State:
    """Make the previous champion, or another version, champion again.

    Args:
        root: The project's folder.
        why: What went wrong; recorded with the version that is rolled back.
        by: The person who decided; empty for nobody.
        to: Number or alias of the version to go back to; empty for the previous champion.

    Returns:
        Completed; Failed if there is no such version.
    """
    return end_state(lambda: _roll_back(Path(root).resolve(), why, by, to))


def _promote(project: Path, approve_by: str, on: str) -> State:
    from pinspect.registry import promotion

    params, settings = load_params(project / "params.yaml"), load_registry_settings(project)
    folder = project / on if on else None
    decision = promotion.promote(project, params, settings, approve_by=approve_by, on=folder)
    rows = [{"rule": rule.name, "holds": rule.holds, "found": rule.found} for rule in decision.rules]
    create_table_artifact(key="promotion", table=rows, description=f"Version {decision.challenger}")
    try:
        decision.require()
    except PromotionRefused as error:
        return Failed(name=REFUSED, message=str(error), data=error)
    return Completed(message=f"Version {decision.challenger} is the champion.", data=decision.to_dict())


def _roll_back(project: Path, why: str, by: str, to: str) -> State:
    from pinspect.registry import promotion

    done = promotion.rollback(project, load_register_settings(project), why, by, to)
    instead = f" instead of version {done.rolled_back}" if done.rolled_back else ""
    return Completed(message=f"Version {done.version} is the champion again{instead}.")


def main() -> None:
    """Promote the challenger of the project in this folder."""
    state = promote(return_state=True)
    state.result()  # raises the error of a failed run
    print(state.message)


if __name__ == "__main__":
    run(main)
