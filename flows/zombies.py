"""Runs that died without a word are marked Crashed by the server: an automation that a self-hosted server lacks.

    python -m flows.zombies

Each run sends a heartbeat every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds (30 in prefect.yaml). Where three of them
stay away and the run has not ended, its process or its machine is gone.
"""

from __future__ import annotations

from datetime import timedelta

from pinspect.core import environment as quiet

quiet.apply()

from prefect.automations import Automation  # noqa: E402  after the settings that it reads while it is imported
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.objects import StateType  # noqa: E402
from prefect.events.actions import ChangeFlowRunState  # noqa: E402
from prefect.events.schemas.automations import EventTrigger, Posture  # noqa: E402
from prefect.events.schemas.events import ResourceSpecification  # noqa: E402

NAME = "pinspect: crash runs without heartbeat"
SILENCE = timedelta(seconds=90)


def zombie_automation(silence: timedelta = SILENCE) -> Automation:
    """An automation that marks a run Crashed when nothing is heard of it for `silence` after a heartbeat.

    Any event of the run counts, since an event is named after its state, and states have names of their own (Skipped).
    """
    return Automation(
        name=NAME,
        description="A run whose worker or machine died would be shown as Running for ever.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {silence.seconds} s.")],
    )


def ensure_automation(silence: timedelta = SILENCE) -> None:
    """Create the automation on the server, in place of one that was there."""
    with get_client(sync_client=True) as client:
        for found in client.read_automations_by_name(NAME):
            client.delete_automation(found.id)
    zombie_automation(silence).create()


if __name__ == "__main__":
    ensure_automation()
    print(f"automation: {NAME}")
