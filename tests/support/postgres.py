"""A real PostgreSQL server on loopback for tests, as an unprivileged user; its databases lie in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support.mlflow_server import free_port
from tests.support.waiting import until

USER, PASSWORD = "pinspect", "a-password"


@dataclass
class PostgresServer:
    """A server: folder with its databases and its log, port, process."""

    folder: Path
    port: int
    process: subprocess.Popen | None = None

    def url(self, database: str = "postgres", password: str = PASSWORD) -> str:
        """Return the URL of a database, without a driver."""
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, url: str = "") -> list[tuple]:
        """Run a statement, and return its rows."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        # Durability after a power cut is not what tests with this server prove; `kill -9` of a client does not need it.
        settings = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [_program("postgres"), "-D", self.folder / "data", *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_unprivileged(),
            )
        until(self._answers, "the PostgreSQL server")

    def stop(self) -> None:
        """Stop the server at once; open connections break."""
        if self.process:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        try:
            return self.execute("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Run a server during the context."""
    folder = Path(tempfile.mkdtemp(prefix="pinspect-postgres-"))  # pytest's folders are closed to other users
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if owner := _unprivileged():
            for path in (folder, secret):
                shutil.chown(path, owner["user"], owner["group"])
        subprocess.run(
            [
                *(_program("initdb"), "--no-sync", "--username", USER, "--auth", "scram-sha-256"),
                *("--pwfile", secret, "--encoding", "UTF8", "--locale", "C.UTF-8", "-D", folder / "data"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **owner,
        )
        server = PostgresServer(folder, free_port())
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of a test session; each worker has its own."""
    with postgres_server() as server:
        yield server


def _program(name: str) -> Path:
    """Return a program of the newest PostgreSQL of this machine; Debian keeps them out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    path = shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.environ["PATH"]]))
    assert path, "no PostgreSQL server is installed: apt-get install postgresql"
    return Path(path)


def _unprivileged() -> dict:
    """Return whom the server runs as: PostgreSQL refuses to run as root."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
