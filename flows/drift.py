"""Retrains when the station reports that its line has changed.

python -m flows.drift [PROJECT [URL]]
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import requests
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.notices import HOOKS
from flows.retrain import bring_up_to_date, in_checkout, run_here
from flows.run_names import drift_name
from flows.states import SKIPPED, end_state
from pinspect.core.errors import PinspectError, run
from pinspect.core.files import write_file
from pinspect.registry.notices import notify

STATION = "http://127.0.0.1:8000"
_SECONDS = 10
_NO_PROFILE = "its version has no line profile in its package; run dvc repro"


class StationError(PinspectError):
    """The station does not report the state of its line; another try later may help."""

    exit_code = 75  # EX_TEMPFAIL


@flow(name="drift", flow_run_name=drift_name, **HOOKS)
def drift(root: str = ".", url: str = STATION, retries: int = 2, retry_delay_seconds: float = 30) -> State:
    """Ask a station whether its line has changed; if so, do what `retrain` does.

    Args:
        root: The project's folder.
        url: The station's address.
        retries: As in `retrain`.
        retry_delay_seconds: As in `retrain`.

    Returns:
        The state of `retrain`; its message starts with the change. Skipped if the line has not changed, or if there is
        no new capture to learn from: a warning and the artifact `line-changed` then ask for labels. Failed if no
        station answers.
    """

    def work() -> State:
        report = ask_station(url)
        if not report["changed"]:
            if not report["problem"]:
                _noted(root, url).unlink(missing_ok=True)
            return Completed(name=SKIPPED, message=_unchanged(report), data=[])
        change = report["summary"]["en"]
        changed = [quantity for quantity in report["quantities"] if quantity["changed"]]
        create_table_artifact(key="line-changed", table=changed, description=f"{url}: {change}")
        _notify(root, url, change, changed)
        return in_checkout(root, lambda project: _learn(project, change, retries, retry_delay_seconds))

    return end_state(work)


def ask_station(url: str) -> Mapping:
    """Read the drift report of a station.

    Args:
        url: The station's address.

    Returns:
        The drift report of its `/health`, see `pinspect.station.drift`.

    Raises:
        StationError: No station answers, or it has no drift report.
    """
    address = f"{url.rstrip('/')}/health"
    try:
        health = requests.get(address, timeout=_SECONDS).json()
    except requests.exceptions.JSONDecodeError:
        raise StationError(f"{address}: the answer is no JSON; is this a station's address?") from None
    except requests.RequestException as error:
        kind = type(error).__name__
        raise StationError(f"{address}: no station answers ({kind}); start it, or correct the url") from None
    if not isinstance(health, dict) or "drift" not in health:
        raise StationError(f"{address}: no health of a station: {str(health)[:200]}")
    if not health["drift"]:
        reason = health.get("last_error") or health.get("results_error") or _NO_PROFILE
        raise StationError(f"{address}: the station cannot judge its line: {reason}")
    return health["drift"]


def _noted(root: str, url: str) -> Path:
    """Return the file with the changed quantities that a notice was sent of; none while the line is as in training."""
    return Path(root) / ".dvc/tmp/retrain" / f"line-changed-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _notify(root: str, url: str, change: str, changed: list[Mapping]) -> None:
    """Send a notice of a change once, however often it is seen, and again when other quantities change."""
    quantities, noted = " ".join(sorted(quantity["quantity"] for quantity in changed)), _noted(root, url)
    if noted.is_file() and noted.read_text(encoding="utf-8") == quantities:
        return
    details = {"station": url, "quantities": changed}
    if notify(Path(root), "line-changed", f"line-changed-{uuid4()}", f"The line has changed: {change}", details):
        write_file(noted, quantities)


def _unchanged(report: Mapping) -> str:
    if report["problem"]:
        return f"The station cannot judge its line: {report['problem']}."
    return f"The line has not changed, by its latest {report['captures']} captures."


def _learn(project: Path, change: str, retries: int, retry_delay_seconds: float) -> State:
    state = bring_up_to_date(project, retries, retry_delay_seconds)
    message = state.message
    if state.name == SKIPPED:
        message = (
            "There is nothing new to learn from: label captures of the changed line, on the page or by pinspect add."
        )
        get_run_logger().warning("the line has changed: %s. %s", change, message)
    return state.model_copy(update={"message": f"The line has changed: {change}. {message}"})


def main(root: str = ".", url: str = STATION) -> None:
    """Run the flow in this process."""
    run_here(drift, root, url=url)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:3]))
