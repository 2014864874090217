"""Starts the two servers of one host on loopback: Prefect, and MLflow over this checkout's registry. Ctrl-C ends both.

python -m flows.servers [PROJECT]        # ports 4200 and 5000; PREFECT_PORT and MLFLOW_PORT change them
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from flows.access import ensure_access
from pinspect.core import environment
from pinspect.core.errors import PinspectError, run
from pinspect.registry.addresses import artifact_folder, bring_home
from pinspect.registry.connection import project_database, registry_database, registry_lock
from pinspect.registry.settings import load_prune_settings, load_register_settings

HOST = "127.0.0.1"
SECONDS_TO_STOP = 20


class ServerEndedError(PinspectError):
    """A server ended by itself."""


def commands(root: Path) -> dict[str, list[str]]:
    """Return the command of each server.

    Args:
        root: The project's folder.

    Returns:
        Name of the server -> command. MLflow is left out if the project registers at a team's server.
    """
    servers = {"Prefect": ["flows.prefect_app", "--port", os.environ.get("PREFECT_PORT", "4200")]}
    settings = load_register_settings(root)
    if database := registry_database(root, settings):
        with registry_lock(root, settings):
            bring_home(project_database(root))
        place = ["--backend-store-uri", f"sqlite:///{database}"]
        place += ["--artifacts-destination", str(artifact_folder(database))]
        servers["MLflow"] = ["mlflow", "server", "--host", HOST, "--port", mlflow_port(), "--workers", "1", *place]
    return {name: [sys.executable, "-m", *command] for name, command in servers.items()}


def mlflow_port() -> str:
    """Return the port of the MLflow server of this host."""
    return os.environ.get("MLFLOW_PORT", "5000")


def retention(root: Path) -> dict[str, str]:
    """Return the variables that let the Prefect server delete old runs and events.

    Args:
        root: The project's folder; `prune.runs_days` and `prune.events_days` of its settings.yaml count.
    """
    keep, vacuum = load_prune_settings(root), "PREFECT_SERVER_SERVICES_DB_VACUUM"
    return {
        f"{vacuum}_ENABLED": "events,flow_runs",
        f"{vacuum}_RETENTION_PERIOD": str(keep.runs_days * 24 * 60 * 60),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"P{keep.events_days}D",  # this setting takes no number of seconds
    }


def watch(servers: Mapping[str, subprocess.Popen]) -> None:
    """Wait until a server ends.

    Args:
        servers: Name -> process.

    Raises:
        ServerEndedError: A server has ended; raised always.
    """
    while True:
        for name, process in servers.items():
            if process.poll() is not None:
                raise ServerEndedError(f"the {name} server ended with exit code {process.returncode}; see above")
        time.sleep(0.5)


def stop(processes: Collection[subprocess.Popen]) -> None:
    """End servers and everything that they started: by SIGTERM first, then by SIGKILL.

    Args:
        processes: The servers, each the leader of a session.
    """
    for number, seconds in ((signal.SIGTERM, SECONDS_TO_STOP), (signal.SIGKILL, None)):
        for process in processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue
        end = None if seconds is None else time.monotonic() + seconds
        for process in processes:
            try:
                process.wait(None if end is None else max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                continue


def main(root: str = ".") -> None:
    """Run both servers until Ctrl-C, or until one of them ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets background processes ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    servers: dict[str, subprocess.Popen] = {}
    try:
        print(f"the sign-in page of the Prefect server asks for the auth_string in {ensure_access(Path(root))}")
        for name, command in commands(Path(root)).items():
            servers[name] = subprocess.Popen(
                command, cwd=root, start_new_session=True, env=os.environ | environment.SETTINGS | retention(Path(root))
            )
        watch(servers)
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        stop(list(servers.values()))


if __name__ == "__main__":
    run(lambda: main(*sys.argv[1:2]))
