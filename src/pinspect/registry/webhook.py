"""A JSON document sent by HTTP POST, which its receiver confirms with a status 2xx."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from pinspect.core.errors import PinspectError

SECONDS = 10.0  # to connect, and for each part of the answer
_LONGEST_REASON = 200


class DeliveryError(PinspectError):
    """A receiver did not confirm what was sent to it; another try may help."""

    exit_code = 75  # EX_TEMPFAIL


class SecretError(PinspectError):
    """The file of a secret cannot be read."""


class Webhook:
    """An address that takes JSON documents. The connection stays open between two documents.

    Args:
        url: `http://` or `https://`, without a password.
        token: Sent as `Authorization: Bearer`; empty for none.
    """

    def __init__(self, url: str, token: str = ""):
        self._url, self._token = url, token
        self._session = requests.Session()

    def post(self, document: Mapping[str, Any], id: str) -> None:
        """Send a document.

        Args:
            document: The document, as JSON values.
            id: Sent as `Idempotency-Key`: equal for every try to send this document.

        Raises:
            DeliveryError: The receiver does not answer, or its status is not 2xx. A redirect is not followed.
        """
        where = shown_address(self._url)
        key = id.encode("ascii", "backslashreplace").decode()  # all that a header can hold
        try:
            response = self._session.post(
                self._url,
                data=json.dumps(document, ensure_ascii=False).encode(),
                headers={"Content-Type": "application/json", "Idempotency-Key": key},
                auth=self._authorize,
                timeout=SECONDS,
                allow_redirects=False,  # a browser's rules would repeat the POST as a GET, without the document
            )
        except requests.RequestException as error:
            raise DeliveryError(f"{where} does not answer ({type(error).__name__})") from error
        if not 200 <= response.status_code < 300:
            reason = " ".join(response.text.split())[:_LONGEST_REASON]
            location = f"; its address is {response.headers['Location']}" if response.is_redirect else ""
            raise DeliveryError(f"{where} answers {response.status_code}: {reason}{location}".rstrip(": "))

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the token; without this function, requests would send a password of ~/.netrc."""
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def shown_address(url: str) -> str:
    """Return scheme, host and port of an address: its path and query can contain secrets."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def secret(variable: str) -> str:
    """Return a secret: an environment variable, or the content of the file that `<variable>_FILE` names.

    Args:
        variable: Name of the environment variable.

    Returns:
        The secret without white space around it; empty if neither variable is set.

    Raises:
        SecretError: The file cannot be read.
    """
    if value := os.environ.get(variable):
        return value.strip()
    if not (file := os.environ.get(f"{variable}_FILE")):
        return ""
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SecretError(f"{variable}_FILE: {file} cannot be read: {error}; correct the path or its rights") from None
