"""Runs a worker of the pool `pinspect` in this folder, and sends the Prefect server an event when captures arrive.

    python -m flows.worker [OPTION ...]        # options of `prefect worker start`, such as --with-healthcheck

The trigger of `ingest/inbox` in prefect.yaml answers the event `pinspect.captures.arrived` with a run. The inbox lies
on the worker's machine, so only the worker sees it. It is polled, because network shares report no changes.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import httpx
from prefect.cli import app
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import Event, Resource
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_logger

from flows.inbox import Arrivals
from flows.recovery import is_busy

POOL = "pinspect"
EVENT = "pinspect.captures.arrived"
_DEPLOYMENT = "ingest/inbox"
_SECONDS_BETWEEN_LOOKS = 2.0


def announce_arrivals(root: Path) -> None:
    """Send an event whenever a run is due for the files of the inbox. Returns if `ingest/inbox` is not deployed.

    A run of the schedule takes captures whose event was lost.

    Args:
        root: The project's folder.
    """
    logger = get_logger("inbox")
    with get_client(sync_client=True) as client:
        try:
            parameters = client.read_deployment_by_name(_DEPLOYMENT).parameters
        except (ObjectNotFound, httpx.HTTPError) as error:
            logger.warning("captures in the inbox send no event: %s: %s", _DEPLOYMENT, error)
            return
        inbox = root / str(parameters.get("inbox", "inbox"))
        arrivals, problem = Arrivals(inbox), ""  # a problem is logged once
        while True:
            try:
                if images := arrivals.look(busy=is_busy(root)):
                    _send(client, inbox, images)
                    arrivals.announced()
                    logger.info("%d images in %s: event %s", images, inbox, EVENT)
                problem = ""
            except (OSError, httpx.HTTPError) as error:  # the share or the server does not answer
                if str(error) != problem:
                    logger.warning("captures in %s send no event: %s; trying again", inbox, error)
                problem = str(error)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _send(client: SyncPrefectClient, inbox: Path, images: int) -> None:
    resource = Resource({"prefect.resource.id": "pinspect.inbox", "prefect.resource.name": str(inbox)})
    event = Event(event=EVENT, resource=resource, payload={"images": images})
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


def main() -> None:
    """Run the worker until Ctrl-C."""
    threading.Thread(target=announce_arrivals, args=(Path.cwd(),), daemon=True).start()
    sys.argv = ["prefect", "worker", "start", "--pool", POOL, *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
