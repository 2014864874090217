"""When the station says that its line has changed, the project is brought up to date.

python -m flows.drift [PROJECT [URL]]
"""

from __future__ import annotations

import sys
from pathlib import Path

from pinspect.core import environment as quiet
from pinspect.core.errors import PinspectError, run

quiet.apply()

import requests  # noqa: E402  after the settings that libraries read while they are imported
from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_table_artifact  # noqa: E402
from prefect.states import Completed, Failed, State  # noqa: E402

from flows.retrain import SKIPPED, bring_up_to_date, in_checkout, report_on  # noqa: E402

STATION = "http://127.0.0.1:8000"
_SECONDS = 10
_NO_PROFILE = "its version has packed no line profile; run dvc repro"


class StationError(PinspectError):
    """The station does not tell how its line is; asking again later may help."""

    exit_code = 75  # EX_TEMPFAIL


@flow(name="drift")
def drift(root: str = ".", url: str = STATION, retries: int = 2, retry_delay_seconds: float = 30) -> State:
    """Ask the station at `url` whether its line has changed; if so, do what `retrain` does.

    Ends as `retrain` ends, the message tells what has changed; Skipped where the line has not, or where there is
    nothing new to learn from: captures of the changed line have to be labelled first, and a warning and the artifact
    `line-changed` say so. Failed where no station answers.
    """
    try:
        told = ask_station(url)
    except StationError as error:
        return Failed(message=str(error), data=error)
    if not told["changed"]:
        return Completed(name=SKIPPED, message=_unchanged(told), data=[])
    quantities = [one for one in told["quantities"] if one["changed"]]
    create_table_artifact(key="line-changed", table=quantities, description=f"{url}: {told['told']['en']}")
    return in_checkout(root, lambda project: _learn(project, told["told"]["en"], retries, retry_delay_seconds))


def ask_station(url: str) -> dict:
    """What the station's /health tells of its line, see `pinspect.station.drift`. Raises StationError."""
    address = f"{url.rstrip('/')}/health"
    try:
        health = requests.get(address, timeout=_SECONDS).json()
    except requests.exceptions.JSONDecodeError:
        raise StationError(f"{address}: the answer is no JSON; is this a station's address?") from None
    except requests.RequestException as error:
        what = type(error).__name__
        raise StationError(f"{address}: no station answers ({what}); start it, or correct the url") from None
    if not isinstance(health, dict) or "drift" not in health:
        raise StationError(f"{address}: no health of a station: {str(health)[:200]}")
    if not health["drift"]:
        why = health.get("last_error") or health.get("results_error") or _NO_PROFILE
        raise StationError(f"{address}: the station cannot judge its line: {why}")
    return health["drift"]


def _unchanged(told: dict) -> str:
    if told["problem"]:
        return f"Nothing can be judged: {told['problem']}."
    return f"The line has not changed, by its latest {told['captures']} captures."


def _learn(project: Path, what: str, retries: int, retry_delay_seconds: float) -> State:
    state = bring_up_to_date(project, retries, retry_delay_seconds)
    message = state.message
    if state.name == SKIPPED:
        message = (
            "There is nothing new to learn from: label captures of the changed line, on the page or by pinspect add."
        )
        get_run_logger().warning("the line has changed: %s. %s", what, message)
    return state.model_copy(update={"message": f"The line has changed: {what}. {message}"})


def main(root: str = ".", url: str = STATION) -> None:
    """Run the flow here and now."""
    report_on(drift, root, url=url)


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:3]))
