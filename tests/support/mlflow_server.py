"""A real MLflow server on loopback for tests; database and artifacts lie in a temporary folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from pinspect.core import environment as quiet

SECONDS_TO_START = 1800


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory) -> Iterator[str]:
    """The server's URI; one server for all tests of a module."""
    with running_server(tmp_path_factory.mktemp("mlflow-server")) as uri:
        yield uri


@contextmanager
def running_server(folder: Path, database: str = "") -> Iterator[str]:
    """Run an MLflow server during the context, and yield its URI; all it stores lies in `folder`, or in `database`."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free_port())),
        *("--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "files")),
        *("--workers", "1"),
    ]
    with running(command, folder / "server.log", "/health") as uri:
        yield uri


@contextmanager
def running(command: list[str], log: Path, path: str) -> Iterator[str]:
    """Run `command` with `--port PORT`; yield once `path` answers. Its process group ends with the context."""
    uri = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | quiet.SETTINGS | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"{uri}{path}", process, log)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(SECONDS_TO_START * 10):
        if process.poll() is not None:
            raise AssertionError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{address} does not answer: {log.read_text()[-2000:]}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
