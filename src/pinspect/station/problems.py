"""Why the station turns a request away, as RFC 9457 tells it (`application/problem+json`)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from pinspect.core.errors import PinspectError

MEDIA_TYPE = "application/problem+json"
SCHEMA = {
    "type": "object",
    "title": "Problem",
    "description": "Why a request was turned away (RFC 9457).",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, and what to do."},
    },
    "required": ["type", "title", "status", "detail"],
}


class Problem(PinspectError):
    """A request that is turned away. status: of HTTP. reason: one word for the metrics. headers: of the response."""

    def __init__(self, status: int, detail: str, *, reason: str = "other", headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """What the client gets."""
        told = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        return JSONResponse(told | {"detail": str(self)}, self.status, self.headers, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict]:
    """The problems of a route, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
