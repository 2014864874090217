"""Notices of runs that failed or crashed: hooks of every flow (`pinspect.registry.notices` sends them).

Prefect calls a hook in the run's process, and in the worker if that process died. If the machine died, only the server
notices: the automation of `flows.automations` then sends the notice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State

from flows.states import REFUSED
from pinspect.registry.notices import notify

_LONGEST_TEXT = 500


def report_failure(flow: Flow, run: FlowRun, state: State) -> None:
    """Send a notice of a failed run; the notice of a refused promotion came from the promotion itself."""
    if state.name != REFUSED:
        _report("failed", flow, run, state)


def report_crash(flow: Flow, run: FlowRun, state: State) -> None:
    """Send a notice of a crashed run."""
    _report("crashed", flow, run, state)


HOOKS: dict[str, Any] = {"on_failure": [report_failure], "on_crashed": [report_crash]}


def notice_id(event: str, run: UUID | str) -> str:
    """Return the id of the notice that a run failed or crashed."""
    return f"{event}-{run}"


def _report(event, flow: Flow, run: FlowRun, state: State) -> None:
    message = state.message or ""
    details = {"flow": flow.name, "run": str(run.id), "name": run.name, "state": state.name, "message": message}
    text = f"{flow.name} {run.name}: {state.name}. {' '.join(message.split())[:_LONGEST_TEXT]}"
    notify(Path(str(run.parameters.get("root", "."))), event, notice_id(event, run.id), text, details)
