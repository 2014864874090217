"""The station's JSON API, and everything that a web worker serves."""

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
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pinspect.core.errors import CaptureError
from pinspect.core.params import Params
from pinspect.station import corrections, problems, uploads
from pinspect.station.access import Access, allowed_hosts
from pinspect.station.condition import Condition, Health
from pinspect.station.intake import Intake
from pinspect.station.model_client import ModelClient
from pinspect.station.page import add_page
from pinspect.station.picture_store import PictureStore
from pinspect.station.problems import Problem, documented
from pinspect.station.results import Inspection, ResultsError, ResultsTable
from pinspect.station.settings import StationSettings
from pinspect.station.telemetry import MEDIA_TYPE as METRICS_TYPE
from pinspect.station.telemetry import CountRequests, Telemetry

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
_EVERYWHERE = (400, 401, 403, 429)  # host name, token, another site's page, rate
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
                    uploads.SHAPE: {"type": "string", "description": "pin shape; the best-fitting one where not given"},
                },
                "required": [uploads.IMAGES],
                "additionalProperties": False,
            }
        }
    },
}

Id = Annotated[str, InPath(min_length=1, max_length=255, description="of an inspection")]


class Inspected(BaseModel):
    """The results of the images of a request, in their order."""

    results: list[Inspection]


class Results(BaseModel):
    """A page of results, the newest first. next: the `before` of the next page; null on the last one."""

    results: list[Inspection]
    next: str | None


class Said(BaseModel):
    """What a person says about an inspection. A passed capture needs no mode and no position."""

    model_config = ConfigDict(extra="forbid")

    judgement: Literal["passed", "defective"]
    defect_mode: str | None = Field(None, max_length=64)
    defect_position: str | None = Field(None, max_length=64, description="such as X:3, Y:U")
    by: str = Field(min_length=1, max_length=80, description="who says so")


def create_app(
    root: Path,
    params: Params,
    settings: StationSettings,
    client: ModelClient,
    *,
    token: str = "",
    hosts: Collection[str] = (),
) -> FastAPI:
    """What a web worker of the station serves for the project in `root`.

    token: who does not send it is turned away; empty: nobody is asked. hosts: further host names that the station is
    called by, such as a reverse proxy's. Raises ResultsError when the results table cannot be used.
    """
    results = ResultsTable.of_project(root, settings)
    pictures = PictureStore(root, settings.keep_days)
    telemetry = Telemetry()
    intake = Intake(params, settings, client, results, pictures, telemetry)
    condition = Condition(root, settings, client, results, intake)
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
    add_page(app, root, params, settings, results, pictures, client)
    app.add_middleware(
        Access,
        token=token,
        hosts=allowed_hosts(settings.host, hosts),
        requests_a_minute=settings.requests_a_minute,
    )
    app.add_middleware(CountRequests, telemetry=telemetry)
    return app


def _pruning(pictures: PictureStore):
    """Pictures that are kept no longer go every hour."""

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
        return Problem(422, "; ".join(_in_words(found) for found in error.errors())).response()

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return Problem(400, "the request broke off before it was complete").response()

    @app.exception_handler(ResultsError)
    async def no_table(_: Request, error: ResultsError) -> JSONResponse:
        return Problem(503, str(error), headers={"Retry-After": "2"}).response()


def _in_words(found: Mapping) -> str:
    where = ".".join(str(part) for part in found["loc"][1:]) or "the request"
    message = found["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}"


def _add_inspection(app: FastAPI, intake: Intake) -> None:
    @app.post(
        "/inspect",
        response_model=Inspected,
        responses=documented(*_EVERYWHERE, 408, 409, 413, 415, 422, 503, 504),
        openapi_extra={"requestBody": _INSPECT_BODY},
        summary="Inspect one image or several",
    )
    async def inspect(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=200,
                pattern=r"^[!-~]+$",
                description="a request that is repeated with its key is answered with what was found the first time",
            ),
        ] = None,
    ) -> Any:
        """Each result is in the results table before it is answered. An image that cannot be laid over the line is
        answered with its `error`; a file that is no image refuses the whole request."""
        return {"results": await intake.take(request, idempotency_key)}


def _add_results(app: FastAPI, root: Path, params: Params, results: ResultsTable, pictures: PictureStore) -> None:
    @app.get("/results", response_model=Results, responses=documented(*_EVERYWHERE, 422, 503), summary="List results")
    def list_results(
        limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = 50,
        before: Annotated[str | None, Query(max_length=255, description="the `next` of the page before")] = None,
        judgement: Annotated[Literal["passed", "defective"] | None, Query()] = None,
        mode: Annotated[str | None, Query(max_length=64, description="defect mode")] = None,
        version: Annotated[str | None, Query(max_length=64, description="model version")] = None,
        since: Annotated[datetime | None, Query(description="received at this time or later")] = None,
        until: Annotated[datetime | None, Query(description="received before this time")] = None,
        corrected: Annotated[bool | None, Query(description="a person has confirmed or corrected it")] = None,
        text: Annotated[str | None, Query(max_length=120, description="occurs in the file's name")] = None,
    ) -> Any:
        found = results.list(
            limit=limit + 1,
            before=before,
            judgement=judgement,
            mode=mode,
            version=version,
            since=_utc(since, "since"),
            until=_utc(until, "until"),
            corrected=corrected,
            text=text,
        )
        return {"results": found[:limit], "next": found[limit - 1].id if len(found) > limit else None}

    @app.get(
        "/results/{id}",
        response_model=Inspection,
        responses=documented(*_EVERYWHERE, 404, 422, 503),
        summary="One result",
    )
    def one_result(id: Id) -> Any:
        return _found(results, id)

    @app.get(
        "/results/{id}/picture",
        response_class=FileResponse,
        responses=documented(*_EVERYWHERE, 404, 422, 503)
        | {200: {"description": "as it was uploaded", "content": {type: {} for type in _MEDIA_TYPES.values()}}},
        summary="The inspected image",
    )
    def picture(id: Id) -> Any:
        path = pictures.path(_found(results, id).sha256)
        if path is None:
            raise Problem(404, "its picture is not kept here, or no longer (station.keep_days)")
        return FileResponse(path, media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"))

    @app.post(
        "/results/{id}/correction",
        response_model=Inspection,
        responses=documented(*_EVERYWHERE, 404, 413, 422, 503),
        summary="Confirm or correct a result",
    )
    def correct(id: Id, said: Said) -> Any:
        """A correction becomes a capture of the project, through the same checks as `pinspect add`."""
        try:
            corrections.correct(root, params, results, pictures, id, **said.model_dump())
        except corrections.UnknownInspectionError as error:
            raise Problem(404, str(error)) from error
        except CaptureError as error:
            raise Problem(422, str(error)) from error
        return _found(results, id)


def _found(results: ResultsTable, id: str) -> Inspection:
    inspection = results.get(id)
    if inspection is None:
        raise Problem(404, "no such result")
    return inspection


def _utc(moment: datetime | None, name: str) -> datetime | None:
    """A time without a zone is one in UTC."""
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
        summary="How the station is",
    )
    async def health() -> Any:
        """Needs no token."""
        told = await condition.told()
        return JSONResponse(told.model_dump(mode="json"), 503 if told.status == "unavailable" else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses=documented(400, 401, 403) | {200: {"description": "metrics", "content": {METRICS_TYPE: {}}}},
        summary="Metrics for Prometheus",
    )
    async def metrics() -> Any:
        told = await condition.told()
        counts = await anyio.to_thread.run_sync(condition.counts)
        return Response(telemetry.exposition(told.model_dump(), counts), media_type=METRICS_TYPE)


def _add_description(app: FastAPI) -> None:
    templates = Jinja2Templates(_HERE / "templates")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> Response:
        """The API in words: FastAPI's own page loads its scripts from elsewhere, and a line may be offline."""
        api = app.openapi()
        schemas = api["components"]["schemas"]
        told = {
            "api": api,
            "in_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
            "named": _schema_name,
            "resolved": lambda schema: schemas.get(_schema_name({"schema": schema}), schema),
        }
        return templates.TemplateResponse(request, "openapi.html", told)


def _schema_name(body: Mapping) -> str:
    """The name of a body's schema among the components; empty where it has none of its own."""
    return body.get("schema", {}).get("$ref", "").rpartition("/")[2]


def _openapi(app: FastAPI, params: Params, settings: StationSettings, token: str) -> dict:
    """The description that FastAPI makes, with what it cannot know: the form, the problems, the token."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schema["components"]["schemas"]["Problem"] = problems.SCHEMA
        body = schema["paths"]["/inspect"]["post"]["requestBody"]["content"]["multipart/form-data"]
        form = body["schema"]["properties"]
        form[uploads.IMAGES] = form[uploads.IMAGES] | {"maxItems": settings.images_a_request}
        form[uploads.SHAPE] = form[uploads.SHAPE] | {"enum": params.answers.shapes}
        if token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            schema["paths"]["/health"]["get"]["security"] = []
        app.openapi_schema = schema
    return app.openapi_schema
