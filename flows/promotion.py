"""Promotion by proof and rollback, from Prefect: what `pinspect promote` and `pinspect rollback` do.

python -m flows.promotion            # promotes the challenger of the project in this folder, or says why not
"""

from __future__ import annotations

from pathlib import Path

from pinspect.core import environment as quiet
from pinspect.core.errors import PinspectError, run

quiet.apply()

from prefect import flow  # noqa: E402  after the settings that it reads while it is imported
from prefect.artifacts import create_table_artifact  # noqa: E402
from prefect.states import Completed, Failed, State  # noqa: E402

from pinspect.core.params import load_params  # noqa: E402
from pinspect.registry.settings import load_register_settings, load_registry_settings  # noqa: E402

REFUSED = "Refused"


@flow(name="promote")
def promote(root: str = ".", approve_by: str = "") -> State:
    """Make the challenger the champion, if the rules allow it. Ends Completed with the decision, or Failed by the name
    Refused, with every rule that does not hold."""
    from pinspect.registry import promotion

    project = Path(root).resolve()
    try:
        decision = promotion.promote(
            project, load_params(project / "params.yaml"), load_registry_settings(project), approve_by=approve_by
        )
    except PinspectError as error:
        return Failed(message=str(error), data=error)
    rows = [{"rule": rule.name, "holds": rule.holds, "found": rule.found} for rule in decision.rules]
    create_table_artifact(key="promotion", table=rows, description=f"Version {decision.challenger}")
    try:
        decision.require()
    except PinspectError as error:
        return Failed(name=REFUSED, message=str(error), data=error)
    return Completed(message=f"Version {decision.challenger} is the champion.", data=decision.to_dict())


@flow(name="rollback")
def rollback(root: str = ".", why: str = "", by: str = "") -> State:
    """Make the previous champion the champion again; `why` is written to the version that goes."""
    from pinspect.registry import promotion

    project = Path(root).resolve()
    try:
        back = promotion.rollback(project, load_register_settings(project), why, by)
    except PinspectError as error:
        return Failed(message=str(error), data=error)
    return Completed(message=f"Version {back.version} is the champion again, {back.rolled_back} was.")


def main() -> None:
    """Promote here and now."""
    state = promote(return_state=True)
    if not state.is_completed():
        raise state.result(raise_on_failure=False)
    print(state.message)


if __name__ == "__main__":
    run(main)
