"""Finds the page of MLflow that shows a project's report; Prefect's page drops links that do not start with http."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import requests

from flows.servers import HOST, mlflow_port

REPORT = Path("reports/eval/report.html")
_REGISTRATION = Path("reports/registration.json")
_SECONDS = 5


def report_page(root: Path) -> str:
    """Return the page with the report of the version that was registered last.

    Args:
        root: The project's folder.

    Returns:
        An http address on the project's MLflow server, or on the server of `make server` if that shows this registry;
        empty if there is no such version, or no such server answers.

    Raises:
        PinspectError: The registry does not answer, or cannot be used.
    """
    from pinspect.registry.connection import open_registry, tracking_uri
    from pinspect.registry.settings import load_register_settings
    from pinspect.registry.versions import PACKAGE_TAG, REPORTS, find_version

    try:
        package = json.loads((root / _REGISTRATION).read_text(encoding="utf-8"))[PACKAGE_TAG]
    except (FileNotFoundError, KeyError, ValueError):  # nothing is registered yet, or this is an experiment
        return ""
    settings = load_register_settings(root)
    with open_registry(root, settings) as client:
        version = find_version(client, settings.model_name, package)
        if not version:
            return ""
        run = client.get_run(str(version.run_id)).info
    server = _without_login(tracking_uri(root, settings))
    if not server.startswith(("http://", "https://")):
        server = f"http://{HOST}:{mlflow_port()}"
        if not _knows(server, run.run_id):
            return ""
    return f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{REPORTS}/{REPORT.name}"


def _knows(server: str, run_id: str) -> bool:
    """Return whether an MLflow server has a run: another project's server, or another program, can have the port."""
    try:
        return requests.get(f"{server}/api/2.0/mlflow/runs/get", params={"run_id": run_id}, timeout=_SECONDS).ok
    except requests.RequestException:
        return False


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
