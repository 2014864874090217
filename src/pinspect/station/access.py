"""Access control in one ASGI middleware: host names, request rate, token, requests from pages of other sites.

Every response carries headers that keep a browser from running or framing content of other sites.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Collection
from math import ceil
from urllib.parse import quote, urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pinspect.core.errors import PinspectError
from pinspect.station.problems import Problem

COOKIE = "pinspect_station"
LOGIN = "/login"
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/health", LOGIN)  # paths without a token
_UNCOUNTED = ("/health", "/metrics")  # a monitor must always get an answer
_STATIC = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
_LARGEST_BODY = 1 << 20  # bytes; uploads have their own limit
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessError(PinspectError):
    """The station would be reachable without sufficient protection."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str) -> None:
    """Check that a station on `host` is protected.

    Args:
        host: Host name or address on which the station listens.
        token: The token; empty for none.

    Raises:
        AccessError: `host` is not loopback and there is no token, or the token is too short or not plain ASCII.
    """
    if not token and not is_loopback(host):
        raise AccessError(
            f"{host}: other machines can reach this address, so the station needs a token; set PINSPECT_STATION_TOKEN, "
            "or listen on 127.0.0.1"
        )
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise AccessError(
            f"the token has {len(token)} characters; expected at least {SHORTEST_TOKEN} printable ASCII characters "
            "without spaces; make a token with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )


def allowed_hosts(host: str, others: Collection[str] = ()) -> list[str]:
    """List the host names that requests may use.

    On loopback these are the station's own names, against DNS rebinding. On other addresses every name is allowed: the
    token protects the station.

    Args:
        host: Host name or address on which the station listens.
        others: Further names, such as those of a reverse proxy.
    """
    if is_loopback(host):
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return [*dict.fromkeys((*LOOPBACK_NAMES, shown, *others))]
    return ["*"]


def is_token(text: str, token: str) -> bool:
    """Whether `text` is the token; takes the same time for every wrong text."""
    return hmac.compare_digest(text.strip().encode("utf-8", "replace"), token.encode())


def cookie_of(token: str) -> str:
    """Return the value of the login cookie: it proves knowledge of the token without containing it."""
    return hmac.new(token.encode(), b"pinspect station login", hashlib.sha256).hexdigest()


def log_in(response: Response, token: str, *, secure: bool) -> None:
    """Set the login cookie. `secure`: the browser sends it over TLS only."""
    response.set_cookie(COOKIE, cookie_of(token), httponly=True, samesite="strict", secure=secure, path="/")


class Access:
    """The middleware.

    Args:
        app: The application behind it.
        token: The token that clients must send; empty for none.
        hosts: Allowed host names, see `allowed_hosts`.
        requests_a_minute: Most requests of one client address.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: list[str], requests_a_minute: int):
        self._app = TrustedHostMiddleware(self._allowed, allowed_hosts=hosts, www_redirect=False)
        self._inner = app
        self._token = token
        self._limit = RateLimitItemPerMinute(requests_a_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; other events pass through."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, secured)

    async def _allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        try:
            self._count(request)
            self._check_origin(request)
            self._check_length(request)
            allowed = self._has_token(request)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if allowed:
            await self._inner(scope, _limited(request, receive), send)
        else:
            await self._refused(request)(scope, receive, send)

    def _count(self, request: HTTPConnection) -> None:
        path = request.url.path
        if path in _UNCOUNTED or path.startswith(_STATIC):
            return
        client = request.client.host if request.client else ""
        if not self._limiter.hit(self._limit, client):
            seconds = ceil(max(1, self._limiter.get_window_stats(self._limit, client).reset_time - time.time()))
            raise Problem(
                429,
                f"more than {self._limit.amount} requests per minute from {client}; try again in {seconds} s",
                reason="rate",
                headers={"Retry-After": str(seconds)},
            )

    def _check_origin(self, request: HTTPConnection) -> None:
        """Refuse requests with side effects from pages of other sites."""
        if request.scope["method"] in _SAFE:
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
        if foreign or request.headers.get("sec-fetch-site") == "cross-site":
            raise Problem(403, "a page of another site sent this request; open the station's own page", reason="origin")

    def _check_length(self, request: HTTPConnection) -> None:
        length = request.headers.get("content-length", "")
        if not _is_upload(request) and length.isdecimal() and int(length) > _LARGEST_BODY:
            raise Problem(413, f"the request has more than {_LARGEST_BODY} bytes", reason="bytes")

    def _has_token(self, request: HTTPConnection) -> bool:
        path = request.url.path
        if not self._token or path in _OPEN or path.startswith(_STATIC):
            return True
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_token(credentials, self._token):
            return True
        cookie = request.cookies.get(COOKIE, "")
        return hmac.compare_digest(cookie.encode(), cookie_of(self._token).encode())

    def _refused(self, request: HTTPConnection) -> Response:
        """Redirect browsers to the login page; refuse other clients."""
        if request.scope["method"] == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{LOGIN}?next={quote(request.url.path)}", 303)
        headers = {"WWW-Authenticate": "Bearer"}
        return Problem(401, "send the token: Authorization: Bearer TOKEN", reason="token", headers=headers).response()


def _is_upload(request: HTTPConnection) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _limited(request: HTTPConnection, receive: Receive) -> Receive:
    """Wrap `receive` so that it stops at the limit, whatever the Content-Length header declares."""
    if _is_upload(request):
        return receive
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > _LARGEST_BODY:
            raise HTTPException(413, f"the request has more than {_LARGEST_BODY} bytes")
        return message

    return counted
