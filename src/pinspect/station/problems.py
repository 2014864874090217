"""Refused requests, as RFC 9457 describes them (`application/problem+json`)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from pinspect.core.errors import PinspectError

MEDIA_TYPE = "application/problem+json"
SCHEMA = {
    "type": "object",
    "title": "Problem",
    "description": "Why a request was refused (RFC 9457).",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "Name of the HTTP status."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong with the request, and what to do."},
    },
    "required": ["type", "title", "status", "detail"],
}


class Problem(PinspectError):
    """A refused request.

    Args:
        status: HTTP status.
        detail: What is wrong with the request, and what to do.
        reason: One word for the metrics.
        headers: Further headers of the response.
    """

    def __init__(self, status: int, detail: str, *, reason: str = "other", headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the response for the client."""
        body = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return JSONResponse(body | {"detail": str(self)}, self.status, self.headers, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict]:
    """Describe the problems of a route for OpenAPI."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
