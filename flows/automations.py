"""Makes the automations of the Prefect server, which a self-hosted server does not bring along.

    python -m flows.automations

A run sends a heartbeat every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds (30 in job_template.json). If none comes for ten
minutes and the run has not ended, its process or its machine is gone: the run becomes Crashed. A crashed run of
`nightly` is run again, once in six hours, so that a crash that comes again does not repeat all night.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from pinspect.core.errors import PinspectError, run

CRASH = "pinspect: crash runs without heartbeat"
AGAIN = "pinspect: run nightly again after a crash"
NIGHTLY = "retrain/nightly"
# A restarted server gets the heartbeats of the meantime all at once and mixes up their order, so that they seem to be
# missing. Runs live through an outage that is shorter than this.
SILENCE = timedelta(minutes=10)
PAUSE = timedelta(minutes=6)  # a dead run holds its place in the deployment's concurrency limit for five minutes
_ONCE_IN = timedelta(hours=6)


class DeploymentMissingError(PinspectError):
    """A deployment is not on the Prefect server."""


def ensure_automations(silence: timedelta = SILENCE, pause: timedelta = PAUSE) -> None:
    """Make the automations on the server, in place of earlier ones.

    Args:
        silence: How long a run may send no event.
        pause: How long to wait before a crashed run is run again.

    Raises:
        DeploymentMissingError: The deployment `retrain/nightly` is not on the server; no automation has changed.
    """
    with get_client(sync_client=True) as client:
        try:
            nightly = client.read_deployment_by_name(NIGHTLY)
        except ObjectNotFound:
            raise DeploymentMissingError(f"{NIGHTLY}: not on the Prefect server; run prefect deploy --all") from None
        for name in (CRASH, AGAIN):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
    for automation in (_crash(silence), _again(nightly.id, pause)):
        automation.create()


def _crash(silence: timedelta) -> Automation:
    """Return an automation that marks a run Crashed if no event of it follows a heartbeat in time.

    Every event of the run counts, because an event is named after its state, and our states have names of their own
    (Skipped, for example).
    """
    trigger = _trigger(
        for_each={"prefect.resource.id"},
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        posture=Posture.Proactive,
        within=silence,
    )
    message = f"No heartbeat for {silence.seconds} s."
    action = ChangeFlowRunState(name=None, state=StateType.CRASHED, force=False, message=message)
    description = "Without it, a run whose worker or machine died would stay Running forever."
    return Automation(name=CRASH, description=description, trigger=trigger, actions=[action])


def _again(nightly: UUID, pause: timedelta) -> Automation:
    """Return an automation that runs the deployment `nightly` again after a crash of one of its runs."""
    trigger = _trigger(
        match_related=ResourceSpecification({"prefect.resource.id": [f"prefect.deployment.{nightly}"]}),
        expect={"prefect.flow-run.Crashed"},
        posture=Posture.Reactive,
        within=_ONCE_IN,
    )
    action = RunDeployment(
        source="selected", deployment_id=nightly, parameters=None, job_variables=None, schedule_after=pause
    )
    description = "Otherwise a machine that was restarted at night would be found untrained in the morning."
    return Automation(name=AGAIN, description=description, trigger=trigger, actions=[action])


def _trigger(**condition: Any) -> EventTrigger:
    """Return a trigger for the first event of any run that meets `condition`."""
    return EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}), threshold=1, **condition
    )


if __name__ == "__main__":
    run(ensure_automations)
    print(f"automations: {CRASH}; {AGAIN}")
