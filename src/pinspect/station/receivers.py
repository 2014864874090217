"""Receivers of results outside of the station: an address for HTTP POST, or a topic of an MQTT broker.

A receiver gets one result at a time, and confirms it: with a status 2xx, or with the broker's PUBACK (QoS 1).
"""

from __future__ import annotations

import json
import queue
import re
import ssl
import uuid
from typing import Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from pinspect.core.errors import ParamsError
from pinspect.registry.webhook import SECONDS, DeliveryError, Webhook, secret, shown_address
from pinspect.station.results import Inspection

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_KEEP_ALIVE = 30  # s
_EXPECTED = "expected http://HOST/PATH, https://HOST/PATH, mqtt://HOST/TOPIC or mqtts://HOST/TOPIC"


class Receiver(Protocol):
    """Where results go. `address` can be shown: it has no secret."""

    address: str

    def send(self, inspection: Inspection) -> None:
        """Send a result and wait until it is confirmed. Raises DeliveryError."""
        ...

    def close(self) -> None:
        """Close the connection; the next `send` opens it again."""
        ...


def open_receiver(name: str, url: str) -> Receiver:
    """Return a receiver; the connection is opened by its first `send`.

    Its secret, a bearer token or the password of the broker's user, comes from the environment variable
    `PINSPECT_RECEIVER_<NAME>`, or from the file that `PINSPECT_RECEIVER_<NAME>_FILE` names.

    Args:
        name: Its name in `station.receivers`.
        url: Its address.

    Raises:
        ParamsError: The address cannot be used.
        SecretError: The file of the secret cannot be read.
    """
    variable = f"PINSPECT_RECEIVER_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
    where = f"settings.yaml: station.receivers.{name}"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is no number
    except ValueError as error:
        raise ParamsError(f"{where}: not an address ({error}); {_EXPECTED}") from None
    if parts.password is not None or (parts.username is not None and parts.scheme not in _PORTS):
        raise ParamsError(f"{where}: a password in the address; remove it and put it into {variable}")
    if parts.scheme in ("http", "https") and parts.hostname:
        return WebhookReceiver(url, secret(variable))
    topic = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in _PORTS or not parts.hostname or not topic or re.search(r"[+#\0]", topic):
        raise ParamsError(f"{where}: {_EXPECTED}; a topic has no + and no #")
    return MqttReceiver(parts, topic, secret(variable))


class WebhookReceiver:
    """Sends each result as JSON by HTTP POST, with its id as `Idempotency-Key`.

    Args:
        url: The address.
        token: Bearer token; empty for none.
    """

    def __init__(self, url: str, token: str):
        self.address = shown_address(url)
        self._webhook = Webhook(url, token)

    def send(self, inspection: Inspection) -> None:
        """Send a result. Raises DeliveryError."""
        self._webhook.post(inspection.to_dict(), inspection.id)

    def close(self) -> None:
        """Close the connection."""
        self._webhook.close()


class MqttReceiver:
    """Publishes each result as JSON on a topic, with QoS 1 (MQTT 5); its id is also the user property `id`.

    A result is published only after the broker has confirmed the one before, so that the order holds. After any
    problem the connection is given up, so that the library repeats nothing by itself.

    Args:
        url: Scheme, host, port and user of the broker.
        topic: The topic.
        password: Password of the user; empty for none.
    """

    def __init__(self, url: SplitResult, topic: str, password: str):
        from paho.mqtt import client
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self._mqtt, self._properties, self._publish = client, Properties, PacketTypes.PUBLISH
        self.address = shown_address(url.geturl())
        self._scheme, self._host = url.scheme, url.hostname or ""
        self._port = url.port or _PORTS[url.scheme]
        self._user, self._password, self._topic = url.username, password, topic
        self._client: client.Client | None = None
        self._events: queue.SimpleQueue = queue.SimpleQueue()

    def send(self, inspection: Inspection) -> None:
        """Publish a result and wait for the broker's confirmation. Raises DeliveryError."""
        payload = json.dumps(inspection.to_dict(), ensure_ascii=False).encode()
        try:
            connection = self._client or self._connect()
            properties = self._properties(self._publish)
            properties.ContentType = "application/json"
            properties.UserProperty = ("id", inspection.id)
            message = connection.publish(self._topic, payload, qos=1, properties=properties)
            self._wait_for("confirmed", message.mid)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _connect(self):
        mqtt, self._events = self._mqtt, queue.SimpleQueue()
        events = self._events
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"pinspect-{uuid.uuid4().hex[:12]}",
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = SECONDS
        client.on_connect = lambda _client, _data, _flags, reason, _properties: events.put(("connected", None, reason))
        client.on_publish = lambda _client, _data, mid, reason, _properties: events.put(("confirmed", mid, reason))
        client.on_disconnect = lambda _client, _data, _flags, reason, _properties: events.put(("lost", None, reason))
        if self._user:
            client.username_pw_set(unquote(self._user), self._password or None)
        if self._scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context())
        try:
            client.connect(self._host, self._port, _KEEP_ALIVE)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"{self.address} does not answer ({error})") from error
        self._client = client
        client.loop_start()
        self._wait_for("connected", None)
        return client

    def _wait_for(self, event: str, mid: int | None) -> None:
        while True:
            try:
                kind, number, reason = self._events.get(timeout=SECONDS)
            except queue.Empty:
                raise DeliveryError(f"{self.address}: not {event} within {SECONDS:g} s") from None
            if kind == "lost" or reason.is_failure:
                raise DeliveryError(f"{self.address}: not {event}: {reason}")
            if (kind, number) == (event, mid):
                return
