"""`pinspect station`: the model process, the web workers before it, and an eye on both.

The process that the user starts holds the listening socket and supervises. With one web worker it serves itself; with
several, uvicorn starts them as processes of their own, which find their settings in the environment. Web workers end
with the process that started them, however that one ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import requests
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from pinspect.core.errors import PinspectError
from pinspect.core.params import Params
from pinspect.station.access import check_token
from pinspect.station.model_client import ModelClient
from pinspect.station.model_process import ModelProcess, start_model_process
from pinspect.station.results import STATION_FOLDER, ResultsTable
from pinspect.station.settings import StationSettings
from pinspect.station.telemetry import MULTIPROCESS_FOLDER

TOKEN = "PINSPECT_STATION_TOKEN"
HOSTS = "PINSPECT_STATION_HOSTS"  # further host names, with commas: a reverse proxy's
TRUSTED_PROXIES = "FORWARDED_ALLOW_IPS"  # uvicorn's own: whose X-Forwarded-For and -Proto count
_SETTINGS = "PINSPECT_STATION_SETTINGS"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_OF_PATIENCE = 5  # beyond a request's own timeout, when everything ends


class StationError(PinspectError):
    """The station cannot be started as asked."""


def run_station(root: Path, params: Params, settings: StationSettings, *, token: str = "") -> None:
    """Serve the project in `root` until SIGTERM or Ctrl-C; requests in hand are finished.

    Raises AccessError where the token is missing or weak, StationError when the address cannot be listened on,
    ResultsError, and what `start_model_process` raises.
    """
    check_token(settings.host, token)
    ResultsTable.of_project(root, settings).close()  # what is wrong with it is told before the model is loaded
    listening = _listen(settings.host, settings.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn hands the signal on when it has ended
    with listening, start_model_process(root, settings, root / STATION_FOLDER) as model:
        _set_environment(root, params, settings, model.address, token)
        threading.Thread(target=_supervise, args=(model,), daemon=True).start()
        threading.Thread(target=_tell, args=(_url(listening),), daemon=True).start()
        try:
            _serve(settings, listening)
        except KeyboardInterrupt:
            print("the station ends", file=sys.stderr)


def web_app() -> FastAPI:
    """The application of a web worker, by the settings that `run_station` has left in the environment."""
    from pinspect.station.api import create_app

    handed = json.loads(os.environ[_SETTINGS])
    params = Params.model_validate_json(handed["params"])
    settings = StationSettings.model_validate_json(handed["settings"])
    if os.getpid() != handed["supervisor"]:
        threading.Thread(target=_end_with, args=(handed["supervisor"],), daemon=True).start()
    hosts = [name.strip() for name in os.environ.get(HOSTS, "").split(",") if name.strip()]
    client = ModelClient(Path(handed["address"]))
    return create_app(Path(handed["root"]), params, settings, client, token=os.environ.get(TOKEN, ""), hosts=hosts)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        told = error.strerror or str(error)
        raise StationError(f"{host}:{port}: cannot listen there: {told}; see station.host and station.port") from None
    listening.set_inheritable(True)
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _set_environment(root: Path, params: Params, settings: StationSettings, address: Path, token: str) -> None:
    handed = {
        "root": str(root.resolve()),
        "params": params.model_dump_json(),
        "settings": settings.model_dump_json(),
        "address": str(address),
        "supervisor": os.getpid(),
    }
    os.environ[_SETTINGS] = json.dumps(handed)
    os.environ[TOKEN] = token
    if settings.workers > 1:
        folder = (root / STATION_FOLDER / "metrics").resolve()
        shutil.rmtree(folder, ignore_errors=True)  # counters begin anew with the station
        folder.mkdir(parents=True)
        os.environ[MULTIPROCESS_FOLDER] = str(folder)


def _serve(settings: StationSettings, listening: socket.socket) -> None:
    config = uvicorn.Config(
        "pinspect.station.server:web_app",
        factory=True,
        workers=settings.workers,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=bool(os.environ.get(TRUSTED_PROXIES)),
        timeout_graceful_shutdown=int(settings.timeout_seconds) + _SECONDS_OF_PATIENCE,
    )
    if settings.workers > 1:
        listening.listen(config.backlog)
        Multiprocess(config, sockets=[listening]).run()
    else:
        uvicorn.Server(config).run(sockets=[listening])


def _supervise(model: ModelProcess) -> None:
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if model.restart_if_dead():
            print("the model process has ended; it is started again", file=sys.stderr, flush=True)


def _tell(url: str) -> None:
    """One line when the station answers."""
    # Asked at an address of this machine, since 0.0.0.0 is none.
    here = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    with requests.Session() as session:
        session.trust_env = False  # no proxy leads to this machine
        while True:
            with contextlib.suppress(requests.RequestException):
                health = session.get(f"{here}/health", timeout=5).json()
                print(f"{url} inspects with version {health['version']} ({health['alias']})", flush=True)
                return
            time.sleep(0.1)


def _end_with(supervisor: int) -> None:
    """A web worker whose supervisor was killed has nobody to end it."""
    while os.getppid() == supervisor:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
