"""Makes the automations of the Prefect server, which a self-hosted server does not bring along.

    python -m flows.automations

A run sends a heartbeat every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds (30 in job_template.json). If none comes for ten
minutes and the run has not ended, its process or its machine is gone: the run becomes Crashed. A crashed run of
`nightly` is run again, once in six hours, so that a crash that comes again does not repeat all night. If the project
has a webhook for notices, the server sends one of each crashed run.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.notices import notice_id
from pinspect.core.errors import PinspectError, run
from pinspect.registry.notices import TOKEN, webhook_of
from pinspect.registry.settings import load_register_settings
from pinspect.registry.webhook import secret

CRASH = "pinspect: crash runs without heartbeat"
AGAIN = "pinspect: run nightly again after a crash"
NOTICE = "pinspect: send a notice of a crashed run"
NIGHTLY = "retrain/nightly"
_BLOCK = "pinspect-notices"
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
        for name in (CRASH, AGAIN, NOTICE):
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
    for automation in (_crash(silence), _again(nightly.id, pause)):
        automation.create()
    ensure_notices(Path())


def ensure_notices(root: Path) -> None:
    """Make the automation that sends a notice of each crashed run, if the project in `root` has a webhook.

    The worker sends a notice, too, if it lives; both have the same `id`.
    """
    if not (url := webhook_of(root)):
        return
    token = secret(TOKEN)
    headers = SecretDict({"Authorization": f"Bearer {token}"} if token else {})
    document = cast(UUID, Webhook(url=SecretStr(url), headers=headers).save(_BLOCK, overwrite=True))
    run, message = "{{ flow_run.name | tojson }}", "{{ flow_run.state.message | tojson }}"
    details = {"flow": "{{ flow.name | tojson }}", "run": '"{{ flow_run.id }}"', "name": run, "message": message}
    fields = {
        "event": '"crashed"',
        "id": json.dumps(notice_id("crashed", "{{ flow_run.id }}")),
        "time": '"{{ event.occurred }}"',
        "project": json.dumps(load_register_settings(root).model_name),
        "text": json.dumps("{{ flow.name }} {{ flow_run.name }}: Crashed."),
        "details": _object(details),
    }
    trigger = _trigger(expect={"prefect.flow-run.Crashed"}, posture=Posture.Reactive, within=timedelta(0))
    action = CallWebhook(block_document_id=document, payload=_object(fields))
    description = "If a run's machine died, nobody else can report it."
    Automation(name=NOTICE, description=description, trigger=trigger, actions=[action]).create()


def _object(fields: dict[str, str]) -> str:
    """Return a JSON object of values that are JSON, or templates of JSON."""
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields.items()) + "}"


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
