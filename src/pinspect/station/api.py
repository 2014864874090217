"""The station's web application: its JSON API, and the page beside it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version as version_of_package
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
from fastapi import FastAPI, Header, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.templating import Jinja2Templates
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pinspect.core.errors import CaptureError
from pinspect.core.params import Params
from pinspect.station import corrections, problems, uploads
from pinspect.station.access import Access, allowed_hosts
from pinspect.station.condition import Condition, Health
from pinspect.station.intake import Intake
from pinspect.station.model_process import ModelProcess
from pinspect.station.page import add_page
from pinspect.station.picture_store import PictureStore
from pinspect.station.problems import Problem, documented
from pinspect.station.results import Inspection, ResultsTable
from pinspect.station.results_database import ResultsError
from pinspect.station.results_tables import LONGEST_TRACE
from pinspect.station.settings import StationSettings
from pinspect.station.telemetry import MEDIA_TYPE as METRICS_TYPE
from pinspect.station.telemetry import CountRequests, Telemetry
from pinspect.station.trace import LOT, SENT, SERIAL

MOST_RESULTS = 500
_HERE = Path(__file__).parent
_PRUNE_SECONDS = 3600
_MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".webp": "image/webp",
}
_TRACE = {"type": "string", "maxLength": LONGEST_TRACE, "pattern": SENT}
_EVERYWHERE = (400, 401, 403, 429)  # wrong host name, token, page of another site, rate
_INSPECT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    uploads.IMAGES: {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                        "description": f"image files: {uploads.EXPECTED}",
                    },
                    uploads.SHAPE: {"type": "string", "description": "pin shape; empty: the best-fitting one"},
                    SERIAL: {**_TRACE, "description": "serial number of the connector that the images show"},
                    LOT: {**_TRACE, "description": "lot of that connector"},
                },
                "required": [uploads.IMAGES],
                "additionalProperties": False,
            }
        }
    },
}

Id = Annotated[str, InPath(min_length=1, max_length=255, description="id of an inspection")]


class Inspected(BaseModel):
    """Results of the images of a request, in order."""

    results: list[Inspection]


class Results(BaseModel):
    """A page of results, the newest first. `next` is the `before` of the next page; null on the last page."""

    results: list[Inspection]
    next: str | None


class Verdict(BaseModel):
    """A person's verdict on an inspected capture. A passed capture needs no mode and no position."""

    model_config = ConfigDict(extra="forbid")

    judgement: Literal["passed", "defective"]
    defect_mode: str | None = Field(None, max_length=64)
    defect_position: str | None = Field(None, max_length=64, description="such as X:3, Y:U")
    by: str = Field(min_length=1, max_length=80, description="name of the person")


def create_app(
    root: Path,
    params: Params,
    settings: StationSettings,
    model: ModelProcess,
    *,
    token: str = "",
    hosts: Collection[str] = (),
) -> FastAPI:
    """Build the web application of the station.

    Args:
        root: Folder of the project.
        params: The project's parameters.
        settings: The station's settings.
        model: The model process.
        token: Token that clients must send; empty for none.
        hosts: Further host names of the station, such as a reverse proxy's.

    Raises:
        ResultsError: The results table cannot be used.
    """
    results = ResultsTable.of_project(root, settings)
    pictures = PictureStore(root, settings.keep_days, settings.keep_bytes)
    telemetry = Telemetry()
    intake = Intake(params, settings, model, results, pictures, telemetry)
    condition = Condition(root, settings, model, results, intake)
    app = FastAPI(
        title="pinspect station",
        version=version_of_package("pinspect"),
        description="Inspects photographs of wire-harness connectors with the champion of the registry.",
        docs_url=None,
        redoc_url=None,
        lifespan=_pruning(pictures),
    )
    app.state.token = token
    app.state.intake = intake
    app.state.condition = condition
    app.openapi = lambda: _openapi(app, params, settings, token)
    _add_problems(app)
    _add_inspection(app, intake)
    _add_results(app, root, params, results, pictures)
    _add_health(app, condition, telemetry)
    _add_description(app)
    add_page(app, root, params, settings, results, pictures, model)
    app.add_middleware(
        Access,
        token=token,
        hosts=allowed_hosts(settings.host, hosts),
        requests_a_minute=settings.requests_a_minute,
    )
    app.add_middleware(CountRequests, telemetry=telemetry)
    return app


def _pruning(pictures: PictureStore):
    """Delete expired pictures every hour."""

    async def prune() -> None:
        while True:
            await anyio.to_thread.run_sync(pictures.prune, datetime.now(UTC))
            await anyio.sleep(_PRUNE_SECONDS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(prune)
            yield
            tasks.cancel_scope.cancel()

    return lifespan


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def by_status(_: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return Problem(422, "; ".join(_in_words(details) for details in error.errors())).response()

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return Problem(400, "the connection closed before the request was complete").response()

    @app.exception_handler(ResultsError)
    async def no_table(_: Request, error: ResultsError) -> JSONResponse:
        return Problem(503, str(error), headers={"Retry-After": "2"}).response()


def _in_words(details: Mapping) -> str:
    where = ".".join(str(part) for part in details["loc"][1:]) or "the request"
    message = details["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}"


def _add_inspection(app: FastAPI, intake: Intake) -> None:
    @app.post(
        "/inspect",
        response_model=Inspected,
        responses=documented(*_EVERYWHERE, 408, 409, 413, 415, 422, 503, 504),
        openapi_extra={"requestBody": _INSPECT_BODY},
        summary="Inspect images",
    )
    async def inspect(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=200,
                pattern=r"^[!-~]+$",
                description="a request that repeats a key with the same images gets the first answer again",
            ),
        ] = None,
    ) -> Any:
        """Inspect images.

        Each result is stored before it is returned. An image that cannot be aligned to the line is a result with
        `error`; a file that is not an image makes the whole request fail.
        """
        return {"results": await intake.take(request, idempotency_key)}


def _require_iso_time(value: object) -> object:
    """Refuse numbers, which pydantic would read as seconds since 1970; the description promises a date-time."""
    try:
        float(str(value))
    except ValueError:
        return value
    raise ValueError("expected a time such as 2026-01-31T06:00:00Z")


Moment = Annotated[datetime, BeforeValidator(_require_iso_time)]


def _add_results(app: FastAPI, root: Path, params: Params, results: ResultsTable, pictures: PictureStore) -> None:
    @app.get("/results", response_model=Results, responses=documented(*_EVERYWHERE, 422, 503), summary="List results")
    def list_results(
        limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = 50,
        before: Annotated[str | None, Query(max_length=255, description="`next` of the previous page")] = None,
        judgement: Annotated[Literal["passed", "defective"] | None, Query()] = None,
        mode: Annotated[str | None, Query(max_length=64, description="defect mode")] = None,
        version: Annotated[str | None, Query(max_length=64, description="model version")] = None,
        serial: Annotated[str | None, Query(max_length=LONGEST_TRACE, description="serial number")] = None,
        lot: Annotated[str | None, Query(max_length=LONGEST_TRACE)] = None,
        since: Annotated[Moment | None, Query(description="received at this time or later")] = None,
        until: Annotated[Moment | None, Query(description="received before this time")] = None,
        corrected: Annotated[
            bool | None, Query(description="whether a person has confirmed or corrected the result")
        ] = None,
        text: Annotated[str | None, Query(max_length=120, description="part of the file name")] = None,
    ) -> Any:
        listed = results.list(
            limit=limit + 1,
            before=before,
            judgement=judgement,
            mode=mode,
            version=version,
            serial=serial,
            lot=lot,
            since=_utc(since, "since"),
            until=_utc(until, "until"),
            corrected=corrected,
            text=text,
        )
        return {"results": listed[:limit], "next": listed[limit - 1].id if len(listed) > limit else None}

    @app.get(
        "/results/{id}",
        response_model=Inspection,
        responses=documented(*_EVERYWHERE, 404, 422, 503),
        summary="Get a result",
    )
    def get_result(id: Id) -> Any:
        return _inspection(results, id)

    @app.get(
        "/results/{id}/picture",
        response_class=FileResponse,
        responses=documented(*_EVERYWHERE, 404, 422, 503)
        | {200: {"description": "the uploaded file", "content": {type: {} for type in _MEDIA_TYPES.values()}}},
        summary="Get the inspected image",
    )
    def picture(id: Id) -> Any:
        path = pictures.path(_inspection(results, id).sha256)
        if path is None:
            raise Problem(404, "the picture is not stored here, or has expired (station.keep_days)")
        return FileResponse(path, media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"))

    @app.post(
        "/results/{id}/correction",
        response_model=Inspection,
        responses=documented(*_EVERYWHERE, 404, 413, 422, 503),
        summary="Confirm or correct a result",
    )
    def correct(id: Id, verdict: Verdict) -> Any:
        """A correction becomes a capture of the project, after the checks of `pinspect add`."""
        try:
            corrections.correct(root, params, results, pictures, id, **verdict.model_dump())
        except corrections.UnknownInspectionError as error:
            raise Problem(404, str(error)) from error
        except CaptureError as error:
            raise Problem(422, str(error)) from error
        return _inspection(results, id)


def _inspection(results: ResultsTable, id: str) -> Inspection:
    inspection = results.get(id)
    if inspection is None:
        raise Problem(404, f"there is no result {id!r}")
    return inspection


def _utc(moment: datetime | None, name: str) -> datetime | None:
    """Convert to UTC; a time without a zone is taken as UTC."""
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise Problem(422, f"{name}: out of range") from None


def _add_health(app: FastAPI, condition: Condition, telemetry: Telemetry) -> None:
    @app.get(
        "/health",
        response_model=Health,
        responses=documented(400, 403) | {503: {"model": Health, "description": "no model answers"}},
        summary="State of the station",
    )
    async def health() -> Any:
        """Needs no token."""
        state = await condition.health()
        return JSONResponse(state.model_dump(mode="json"), 503 if state.status == "unavailable" else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses=documented(400, 401, 403) | {200: {"description": "metrics", "content": {METRICS_TYPE: {}}}},
        summary="Metrics for Prometheus",
    )
    async def metrics() -> Any:
        state = await condition.health()
        counts = await anyio.to_thread.run_sync(condition.counts)
        return Response(telemetry.exposition(state.model_dump(), counts), media_type=METRICS_TYPE)


def _add_description(app: FastAPI) -> None:
    templates = Jinja2Templates(_HERE / "templates")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        """Show the API. FastAPI's own page loads scripts from the internet, and a line may be offline."""
        api = app.openapi()
        schemas = api["components"]["schemas"]
        values = {
            "api": api,
            "in_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
            "named": _schema_name,
            "resolved": lambda schema: schemas.get(_schema_name({"schema": schema}), schema),
        }
        return templates.TemplateResponse(request, "openapi.html", values)


def _schema_name(body: Mapping) -> str:
    """Name of a body's schema among the components; empty if the schema is inline."""
    return body.get("schema", {}).get("$ref", "").rpartition("/")[2]


def _openapi(app: FastAPI, params: Params, settings: StationSettings, token: str) -> dict:
    """FastAPI's description, completed with the upload form, the problems and the token."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"]["Problem"] = problems.SCHEMA
        body = schema["paths"]["/inspect"]["post"]["requestBody"]["content"]["multipart/form-data"]
        form = body["schema"]["properties"]
        form[uploads.IMAGES] = form[uploads.IMAGES] | {"maxItems": settings.images_a_request}
        form[uploads.SHAPE] = form[uploads.SHAPE] | {"enum": ["", *params.answers.shapes]}
        if token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            schema["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = schema
    return app.openapi_schema
