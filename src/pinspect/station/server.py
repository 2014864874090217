"""`pinspect station`: the page's process, which supervises the model process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

import requests
import uvicorn

from pinspect.core.errors import PinspectError
from pinspect.core.params import Params
from pinspect.station.access import check_token
from pinspect.station.api import create_app
from pinspect.station.connections import HeaderTimeoutProtocol
from pinspect.station.delivery import delivering
from pinspect.station.model_process import ModelProcess
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings

HOSTS = "PINSPECT_STATION_HOSTS"  # further host names, separated by commas, such as a reverse proxy's
TRUSTED_PROXIES = "FORWARDED_ALLOW_IPS"  # uvicorn's own: proxies whose X-Forwarded-For and -Proto headers count
_SECONDS_TO_FINISH = 5  # beyond a request's own timeout, when the station stops


class StationError(PinspectError):
    """The station cannot start."""


def run_station(root: Path, params: Params, settings: StationSettings, *, token: str = "") -> None:
    """Serve a project until SIGTERM or Ctrl-C; requests in progress are finished first.

    Args:
        root: Folder of the project.
        params: The project's parameters.
        settings: The station's settings.
        token: Token that clients must send; may be empty on a loopback address.

    Raises:
        AccessError: The token is missing or weak.
        StationError: The address cannot be used.
        ResultsError: The results table cannot be used.
        ParamsError: The address of a receiver cannot be used.
        RegistryError: No version is registered, or the registry is unreachable.
        ModelError: The registered version cannot be loaded.
    """
    check_token(settings.host, token)
    ResultsTable.of_project(root, settings).close()  # fails before the model is loaded, which takes seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn repeats the signal once it has stopped
    with (
        _listen(settings.host, settings.port) as listening,
        delivering(root, settings),
        ModelProcess(root, settings) as model,
    ):
        app = create_app(root, params, settings, model, token=token, hosts=_further_hosts())
        config = uvicorn.Config(
            app,
            http=HeaderTimeoutProtocol,
            log_level="error",  # whoever can connect could fill a log of invalid requests
            access_log=False,
            server_header=False,
            proxy_headers=bool(os.environ.get(TRUSTED_PROXIES)),
            timeout_graceful_shutdown=int(settings.timeout_seconds) + _SECONDS_TO_FINISH,
        )
        threading.Thread(target=_announce, args=(_url(listening),), daemon=True).start()
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            print("the station stops", file=sys.stderr)


def _further_hosts() -> Collection[str]:
    return [name.strip() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # asyncio switches off Nagle's algorithm, which delays an answer by 40 ms, only where the protocol is named.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StationError(f"{host}:{port}: cannot listen: {reason}; change station.host or station.port") from None
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(url: str) -> None:
    """Print one line when the station answers."""
    local = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to this machine
        while True:
            with contextlib.suppress(requests.RequestException):
                health = session.get(f"{local}/health", timeout=5).json()
                print(f"{url} inspects with version {health['version']} ({health['alias']})", flush=True)
                return
            time.sleep(0.1)
