"""Names runs by what they do, so that people can read Prefect's list of runs: `pin-inspector, 2026-11-29 02:00 UTC`.

The page and the notices show the flow's name before it. Prefect calls these functions when a run begins.
"""

from __future__ import annotations

from datetime import UTC
from pathlib import Path

from prefect.runtime import flow_run

from flows.inbox import waiting_files
from pinspect.core.errors import PinspectError
from pinspect.registry.settings import load_register_settings

_TIME = "%Y-%m-%d %H:%M UTC"


def retrain_name() -> str:
    """Return `LINE, TIME`."""
    return _name()


def ingest_name() -> str:
    """Return `LINE, NUMBER files in FOLDER, TIME`."""
    inbox = str(flow_run.parameters.get("inbox", "inbox"))
    files = len(waiting_files(_root() / inbox))
    return _name(f", {files} {'file' if files == 1 else 'files'} in {inbox}")


def drift_name() -> str:
    """Return `LINE at ADDRESS, TIME`."""
    return _name(f" at {flow_run.parameters.get('url', 'its station')}")


def promote_name() -> str:
    """Return `LINE version NUMBER, TIME`; without the version if the registry has no challenger or does not answer."""
    challenger = _challenger()
    return _name(f" version {challenger}" if challenger else "")


def rollback_name() -> str:
    """Return `LINE to version REFERENCE, TIME`, or `LINE to the previous champion, TIME`."""
    reference = flow_run.parameters.get("to")
    return _name(f" to version {reference}" if reference else " to the previous champion")


def _root() -> Path:
    return Path(str(flow_run.parameters.get("root", "."))).resolve()


def _name(what: str = "") -> str:
    try:
        line = load_register_settings(_root()).model_name
    except PinspectError:  # the flow itself reports it
        line = _root().name
    return f"{line}{what}, {flow_run.scheduled_start_time.astimezone(UTC):{_TIME}}"


def _challenger() -> str:
    from pinspect.registry.connection import open_registry  # imports MLflow
    from pinspect.registry.versions import CHALLENGER, number_of, version_of

    try:
        settings = load_register_settings(_root())
        with open_registry(_root(), settings) as client:
            version = version_of(client, settings.model_name, CHALLENGER)
    except PinspectError:
        return ""
    return number_of(version) if version else ""
