"""Lets the Prefect server mark runs without heartbeat as Crashed, which a self-hosted server does not do by itself.

    python -m flows.zombies

A run sends a heartbeat every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds (30 in job_template.json). If three of
them are missing and the run has not ended, its process or its machine is gone.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

NAME = "pinspect: crash runs without heartbeat"
SILENCE = timedelta(seconds=90)


def zombie_automation(silence: timedelta = SILENCE) -> Automation:
    """Return an automation that marks a run Crashed if no event of it follows a heartbeat in time.

    Every event of the run counts, because an event is named after its state, and our states have names of their own
    (Skipped, for example).

    Args:
        silence: How long a run may send no event.
    """
    return Automation(
        name=NAME,
        description="Without it, a run whose worker or machine died would stay Running forever.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                name=None, state=StateType.CRASHED, force=False, message=f"No heartbeat for {silence.seconds} s."
            )
        ],
    )


def ensure_automation(silence: timedelta = SILENCE) -> None:
    """Create the automation on the server, in place of an earlier one.

    Args:
        silence: How long a run may send no event.
    """
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(NAME):
            client.delete_automation(automation.id)
    zombie_automation(silence).create()


if __name__ == "__main__":
    ensure_automation()
    print(f"automation: {NAME}")
