"""The two servers of one host, on loopback: Prefect's, and MLflow's over this checkout's registry. Ctrl-C ends both.

python -m flows.servers [PROJECT]        # ports 4200 and 5000; others by PREFECT_PORT and MLFLOW_PORT
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pinspect.core import environment as quiet
from pinspect.core.errors import PinspectError, run
from pinspect.registry.settings import load_register_settings

HOST = "127.0.0.1"
SECONDS_TO_STOP = 20


class ServerEndedError(PinspectError):
    """A server ended by itself."""


def commands(root: Path) -> dict[str, list[str]]:
    """What starts each server, by its name. A project that registers at a team's MLflow server has none of its own."""
    prefect_port, mlflow_port = os.environ.get("PREFECT_PORT", "4200"), os.environ.get("MLFLOW_PORT", "5000")
    found = {"Prefect": ["prefect", "server", "start", "--host", HOST, "--port", prefect_port]}
    if not load_register_settings(root).tracking_uri.startswith("http"):
        store = (root / "mlruns").resolve()
        store.mkdir(exist_ok=True)
        place = ["--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", f"{store}/artifacts"]
        found["MLflow"] = ["mlflow", "server", "--host", HOST, "--port", mlflow_port, "--workers", "1", *place]
    return {name: [sys.executable, "-m", *command] for name, command in found.items()}


def serve(started: dict[str, subprocess.Popen]) -> None:
    """Wait until one of the servers ends. Raises ServerEndedError then."""
    while True:
        for name, process in started.items():
            if process.poll() is not None:
                raise ServerEndedError(f"the {name} server ended with exit code {process.returncode}; see above")
        time.sleep(0.5)


def stop(processes: list[subprocess.Popen]) -> None:
    """End servers and all that they started: kindly first, for certain in any case."""
    for number, seconds in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, None)):
        for process in processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue
        ends = None if seconds is None else time.monotonic() + seconds
        for process in processes:
            try:
                process.wait(None if ends is None else max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def main(root: str = ".") -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts what runs in the background deaf to Ctrl-C
        signal.signal(number, signal.default_int_handler)
    started: dict[str, subprocess.Popen] = {}
    try:
        for name, command in commands(Path(root)).items():
            started[name] = subprocess.Popen(command, start_new_session=True, env=os.environ | quiet.SETTINGS)
        serve(started)
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        stop(list(started.values()))


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
