"""Runs the Prefect server on loopback, for requests of its own page and of programs only.

    python -m flows.prefect_app --port PORT

`prefect server start` checks neither the Host header (so a page can reach it under another host name, by DNS rebinding)
nor the Origin of a WebSocket, to which CORS does not apply.
"""

from __future__ import annotations

import argparse

import uvicorn
from prefect.server.api.server import create_app
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")


class SameOrigin:
    """Refuse requests that name another host, and requests of web pages of another origin."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        problem = _problem(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else ""
        answer = PlainTextResponse(problem, status_code=403) if problem else self._app
        await answer(scope, receive, send)


def _problem(headers: Headers) -> str:
    host, origin = headers.get("host", ""), headers.get("origin")
    if host.rpartition(":")[0] not in _NAMES:
        return f"unknown host; use http://{HOST}"
    if origin is not None and origin != f"http://{host}":
        return "requests of other web pages are refused"
    return ""


def main() -> None:
    """Run the server until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run the Prefect server on loopback.")
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    # Around the app, not in it: Prefect's services call the app itself, under a host name of their own.
    uvicorn.run(SameOrigin(create_app(final=True)), host=HOST, port=port, timeout_keep_alive=5)


if __name__ == "__main__":
    main()
