"""Receivers of results and notices for tests: an HTTP server in a thread, and a real MQTT broker (mosquitto)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from paho.mqtt import client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.mlflow_server import free_port
from tests.support.waiting import until

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "/usr/sbin/mosquitto"
TOPIC = "line 1/results"
DROP = 0  # instead of a status: take the document, then close the connection without an answer


class HttpReceiver:
    """Takes documents by POST.

    Attributes:
        statuses: Statuses of the next answers, or `DROP`; then 200.
        documents: All documents that came in.
        keys: Their `Idempotency-Key`.
        tokens: Their `Authorization`.
    """

    def __init__(self, port: int = 0):
        self.statuses: list[int] = []
        self.documents: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.tokens: list[str | None] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.documents.append(json.loads(body))
                receiver.keys.append(self.headers["Idempotency-Key"])
                receiver.tokens.append(self.headers["Authorization"])
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == DROP:
                    self.close_connection = True
                    return
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://127.0.0.1/elsewhere")
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"taken\n")

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/results"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def http_receiver(port: int = 0) -> Iterator[HttpReceiver]:
    """A receiver that ends with the context."""
    receiver = HttpReceiver(port)
    try:
        yield receiver
    finally:
        receiver.close()


class Broker:
    """A mosquitto that keeps its state over restarts; `further` are lines of its configuration."""

    def __init__(self, folder: Path, *further: str):
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}/{TOPIC.replace(' ', '%20')}"
        self._folder = folder
        lines = [f"listener {self.port} 127.0.0.1", "persistence true", f"persistence_location {folder}/"]
        lines += ["user root", *(further or ["allow_anonymous true"])]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        assert Path(MOSQUITTO).is_file(), "mosquitto is not installed; run apt-get install mosquitto"
        with (self._folder / "mosquitto.log").open("a") as log:
            command = [MOSQUITTO, "-c", self._folder / "mosquitto.conf"]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        until(self._answers, "the broker", 60)

    def stop(self) -> None:
        """End the broker as a service manager does; it writes its state."""
        if self._process:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, (self._folder / "mosquitto.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def broker(folder: Path, *further: str) -> Iterator[Broker]:
    """A broker that ends with the context."""
    folder.mkdir(exist_ok=True)
    running = Broker(folder, *further)
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Subscriber:
    """Takes all messages of `TOPIC`; the broker keeps its session, so that none is lost over restarts."""

    def __init__(self, port: int):
        self.documents: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="test", protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe(TOPIC, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self._client.loop_start()
        assert self._subscribed.wait(60)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        assert message.qos == 1
        self.documents.append(json.loads(message.payload))
        self.ids.append(dict(message.properties.UserProperty)["id"])
