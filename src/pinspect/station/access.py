"""Access control in one ASGI middleware: host names, rates, bodies, token, requests from pages of other sites.

Every response carries headers that keep a browser from running or framing content of other sites.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Collection
from math import ceil
from urllib.parse import quote, urlsplit

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage  # the other one starts a thread a request
from limits.aio.strategies import MovingWindowRateLimiter
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
UPLOADS = ("/inspect", "/upload")
LOGIN_SECONDS = 12 * 3600  # a login lasts a shift
WRONG_TOKENS_A_MINUTE = 10  # of one client, logins included
SHORTEST_TOKEN = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/health", LOGIN)  # paths without a token
_UNCOUNTED = ("/health", "/metrics")  # a monitor must always get an answer
_STATIC = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")
_LARGEST_BODY = 1 << 20  # bytes; uploads have their own limits of bytes and time
_SECONDS_FOR_BODY = 30.0
_TOO_LONG = f"the request has more than {_LARGEST_BODY} bytes"
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


def cookie_of(token: str, until: int) -> str:
    """Return the value of the login cookie: it proves knowledge of the token without containing it.

    Args:
        token: The token.
        until: When the login ends, in seconds since 1970.
    """
    proof = hmac.new(token.encode(), f"pinspect station login until {until}".encode(), hashlib.sha256)
    return f"{until}.{proof.hexdigest()}"


def is_cookie(cookie: str, token: str) -> bool:
    """Whether `cookie` is the cookie of a login that has not ended."""
    until = cookie.partition(".")[0]
    if not (until.isascii() and until.isdecimal() and len(until) < 20 and int(until) > time.time()):
        return False
    return hmac.compare_digest(cookie.encode("utf-8", "replace"), cookie_of(token, int(until)).encode())


def log_in(response: Response, token: str, *, secure: bool) -> None:
    """Set the login cookie. `secure`: the browser sends it over TLS only."""
    value = cookie_of(token, int(time.time()) + LOGIN_SECONDS)
    response.set_cookie(COOKIE, value, max_age=LOGIN_SECONDS, httponly=True, samesite="strict", secure=secure, path="/")


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
        self._wrong_tokens = RateLimitItemPerMinute(WRONG_TOKENS_A_MINUTE, namespace="wrong tokens")
        self._limiter = MovingWindowRateLimiter(MemoryStorage())  # counters let one more through when a minute begins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; other events pass through."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        body = _Body(HTTPConnection(scope), receive)

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if body.endless:
                    headers["Connection"] = "close"
            await send(message)

        if body.too_long:
            await Problem(413, _TOO_LONG, reason="bytes").response()(scope, receive, secured)
        else:
            await self._app(scope, body.receive, secured)

    async def _allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        try:
            await self._count(request)
            self._check_origin(request)
            allowed = await self._has_token(request)
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        if allowed:
            await self._inner(scope, receive, send)
        else:
            await self._refused(request)(scope, receive, send)

    async def _count(self, request: HTTPConnection) -> None:
        path = request.url.path
        if path not in _UNCOUNTED and not path.startswith(_STATIC):
            await self._hit(self._limit, request, "requests")
        if path == LOGIN and request.scope["method"] not in _SAFE:
            await self._hit(self._wrong_tokens, request, "logins")

    async def _hit(self, limit: RateLimitItem, request: HTTPConnection, what: str) -> None:
        client = request.client.host if request.client else ""
        if not await self._limiter.hit(limit, client):
            reset_time = (await self._limiter.get_window_stats(limit, client)).reset_time
            seconds = ceil(max(1, reset_time - time.time()))
            raise Problem(
                429,
                f"more than {limit.amount} {what} per minute from {client}; try again in {seconds} s",
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

    async def _has_token(self, request: HTTPConnection) -> bool:
        path = request.url.path
        if not self._token or path in _OPEN or path.startswith(_STATIC):
            return True
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_token(credentials, self._token):
            return True
        if is_cookie(request.cookies.get(COOKIE, ""), self._token):
            return True
        if credentials:
            await self._hit(self._wrong_tokens, request, "wrong tokens")
        return False

    def _refused(self, request: HTTPConnection) -> Response:
        """Redirect browsers to the login page; refuse other clients."""
        if request.scope["method"] == "GET" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(f"{LOGIN}?next={quote(request.url.path)}", 303)
        headers = {"WWW-Authenticate": "Bearer"}
        return Problem(401, "send the token: Authorization: Bearer TOKEN", reason="token", headers=headers).response()


class _Body:
    """The body of a request, which ends at the limits of bytes and time, whatever the Content-Length header declares.

    The routes that take images have limits of their own.
    """

    def __init__(self, request: HTTPConnection, receive: Receive):
        self._receive, self._is_upload = receive, request.url.path in UPLOADS
        self._bytes, self._until = 0, time.monotonic() + _SECONDS_FOR_BODY
        self._complete = request.scope["method"] in _SAFE
        length = request.headers.get("content-length", "")
        self._declared = int(length) if length.isdecimal() else None

    @property
    def too_long(self) -> bool:
        """Whether the request declares more bytes than it may have."""
        return not self._is_upload and self._declared is not None and self._declared > _LARGEST_BODY

    @property
    def endless(self) -> bool:
        """Whether the rest of the body, which nobody reads, may be long: the connection has to be closed."""
        return not self._complete and (self._declared is None or self._declared > _LARGEST_BODY)

    async def receive(self) -> Message:
        """Return the next part; raise HTTPException at a limit."""
        limited = not (self._is_upload or self._complete)  # after the body comes the end of the connection
        try:
            message = await asyncio.wait_for(self._receive(), self._until - time.monotonic() if limited else None)
        except TimeoutError:
            raise HTTPException(408, f"the request was not complete within {_SECONDS_FOR_BODY:g} s") from None
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if limited and self._bytes > _LARGEST_BODY:
            raise HTTPException(413, _TOO_LONG)
        return message
