"""The station's page, rendered on the server.

It works without scripts: plain forms upload, confirm and correct. `static/station.js` adds drag and drop, keyboard
shortcuts and clicks on pins, with the same forms and addresses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from http import HTTPStatus
from itertools import groupby
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from pinspect.core.answers import DEFECTIVE, PASSED, VERDICT, VIEWS
from pinspect.core.charts import Axis, Chart
from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.params import Params
from pinspect.station import access
from pinspect.station.corrections import LONGEST_NAME, correct
from pinspect.station.messages import ModelTimeoutError, ModelUnavailableError
from pinspect.station.model_process import ModelProcess
from pinspect.station.picture_store import PictureStore
from pinspect.station.pictures import CAPTURE, ShownPictures, box, preview
from pinspect.station.problems import Problem
from pinspect.station.results import Correction, Inspection, ResultsTable
from pinspect.station.settings import StationSettings
from pinspect.station.texts import LANGUAGES, chosen_language, mode_name, text

HERE = Path(__file__).parent
LANGUAGE_COOKIE = "pinspect_language"
NAME_COOKIE = "pinspect_name"
HISTORY_LENGTH = 50
LATEST_LENGTH = 8
MOST_SHOWN = 16
CHART_DAYS = 60
_MOST_DATES = 8  # on the axis of the chart
_STROKES = {  # color, dashes, hollow dots: no line differs by color alone
    "yield": ("var(--yield)", "", False),
    "escape_rate": ("var(--escape)", "7 4", True),
    "overkill_rate": ("var(--soft)", "2 3", False),
}
HEAT_LEVELS = 10
_YEAR = 365 * 24 * 3600
_PICTURE_CACHE = {"Cache-Control": "private, max-age=3600"}
_FILTERS = ("judgement", "mode", "version", "serial", "lot", "since", "until", "corrected", "text")


def add_page(
    app: FastAPI,
    root: Path,
    params: Params,
    settings: StationSettings,
    results: ResultsTable,
    pictures: PictureStore,
    model: ModelProcess,
) -> None:
    """Add the page to the application, whose `state` must have `intake`, `condition` and `token`."""
    page = Page(root, params, settings, results, pictures, model)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    routes = APIRouter(include_in_schema=False)
    for path, show in {
        "/": page.inspect,
        "/history": page.history,
        "/figures": page.figures,
        "/inspection/{id}": page.inspection,
        "/inspection/{id}/picture/{view}": page.picture,
        access.LOGIN: page.login,
    }.items():
        routes.add_api_route(path, show, methods=["GET"], response_model=None)
    for path, take in {
        "/upload": page.upload,
        "/inspection/{id}/judgement": page.judge,
        access.LOGIN: page.log_in,
    }.items():
        routes.add_api_route(path, take, methods=["POST"], response_model=None)
    app.include_router(routes)


@dataclass(frozen=True)
class Pin:
    """A pin of the heat map.

    Attributes:
        address: Such as `X:3, Y:U`.
        value: How defective the pin looks, 0..1 (`inspection.records.pin_map`); None if unknown.
        level: Color level, 0..10.
    """

    address: str
    value: float | None
    level: int


class Page:
    """The routes of the page; each returns a whole HTML document, a picture or a redirect."""

    def __init__(
        self,
        root: Path,
        params: Params,
        settings: StationSettings,
        results: ResultsTable,
        pictures: PictureStore,
        model: ModelProcess,
    ):
        self._root = root
        self._params, self._settings = params, settings
        self._layout = params.layout.layout()
        self._results = results
        self._store = pictures
        self._pictures = ShownPictures(model, pictures)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"local": _local}
        self._templates.tests |= {"same_verdict": _same_verdict}

    async def inspect(self, request: Request) -> Response:
        """Show the upload form with the results `?id=`, or with a list of the latest results."""
        ids = request.query_params.getlist("id")[:MOST_SHOWN]
        inspections = [inspection for id in ids if (inspection := await run_in_threadpool(self._results.get, id))]
        latest = await run_in_threadpool(partial(self._results.list, limit=LATEST_LENGTH))
        shown = [self._shown(inspection) for inspection in inspections]
        return await self._render(request, "inspect.html", shown=shown, latest=latest, failure=None)

    async def upload(self, request: Request) -> Response:
        """Inspect the form of a browser without scripts; a script sends file by file to `POST /inspect`."""
        try:
            inspections = await request.app.state.intake.take(request)
        except Problem as problem:
            return await self._render(
                request, "inspect.html", problem.status, shown=[], latest=[], failure=str(problem)
            )
        if len(inspections) == 1:
            return RedirectResponse(f"/inspection/{quote(inspections[0].id, safe='')}", 303)
        return RedirectResponse("/?" + urlencode([("id", inspection.id) for inspection in inspections]), 303)

    async def inspection(self, request: Request, id: str) -> Response:
        """Show a result in full."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None:
            return await self._missing(request, id)
        return await self._render(request, "inspection.html", shown=self._shown(inspection))

    async def picture(self, request: Request, id: str, view: str) -> Response:
        """Return a view (`RAW`, `DST`) of a capture as the model sees it, or the file itself (`capture`)."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None or view not in (*VIEWS, CAPTURE):
            raise Problem(404, "no such picture")
        try:
            content = await self._pictured(inspection, view)
        except (ModelUnavailableError, ModelTimeoutError, ImageError) as error:
            raise Problem(503, str(error)) from error
        if content is None:
            raise Problem(404, "the picture has expired or cannot be drawn")
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, media_type=kind, headers=_PICTURE_CACHE)

    async def judge(self, request: Request, id: str) -> Response:
        """Store the verdict of the form: a confirmation or a correction."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None:
            return await self._missing(request, id)
        form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
        verdict = _verdict(form, inspection)
        failure = _incomplete(verdict)
        if failure is None:
            try:
                await run_in_threadpool(
                    partial(correct, self._root, self._params, self._results, self._store, id, **verdict)
                )
            except CaptureError as error:
                failure = ("refused", {"reason": str(error)})
        if failure is not None:
            shown = self._shown(inspection, verdict, failure)
            return await self._render(request, "inspection.html", 422, shown=shown)
        answer = RedirectResponse(f"/inspection/{quote(id, safe='')}", 303)
        self._remember(answer, NAME_COOKIE, quote(verdict["by"].strip()))
        return answer

    async def history(self, request: Request) -> Response:
        """List results, the newest first, filtered and in pages."""
        filters = {name: request.query_params.get(name, "").strip() for name in _FILTERS}
        conditions = {name: value or None for name, value in filters.items()}
        conditions |= {"since": _midnight(filters["since"]), "until": _midnight(filters["until"], days=1)}
        conditions |= {"corrected": {"yes": True, "no": False}.get(filters["corrected"])}
        before = request.query_params.get("before")
        query = partial(self._results.list, limit=HISTORY_LENGTH + 1, before=before, **conditions)
        inspections = await run_in_threadpool(query)
        rows, active = inspections[:HISTORY_LENGTH], {name: value for name, value in filters.items() if value}
        older = "?" + urlencode(active | {"before": rows[-1].id}) if len(inspections) > len(rows) else None
        newest = "?" + urlencode(active) if before else None
        return await self._render(request, "history.html", rows=rows, filters=filters, older=older, newest=newest)

    async def figures(self, request: Request) -> Response:
        """Show yield, escape rate and overkill rate of the last 60 days."""
        since = datetime.now(UTC) - timedelta(days=CHART_DAYS)
        outcomes = await run_in_threadpool(partial(self._results.outcomes, bucket="day", since=since))
        days = [_rates(day) for day in outcomes]
        counts = await run_in_threadpool(self._results.counts)
        draw = partial(_draw_rates, days)
        return await self._render(request, "figures.html", days=days, draw_rates=draw, counts=counts)

    async def login(self, request: Request) -> Response:
        """Show the login page."""
        return await self._render(
            request, "login.html", next=_local_path(request.query_params.get("next")), wrong=False
        )

    async def log_in(self, request: Request) -> Response:
        """Exchange the token for a cookie."""
        form = await request.form()
        target = _local_path(form.get("next"))
        token = request.app.state.token
        if not access.is_token(str(form.get("token", "")), token):
            return await self._render(request, "login.html", 403, next=target, wrong=True)
        answer = RedirectResponse(target, 303)
        access.log_in(answer, token, secure=request.url.scheme == "https")
        return answer

    async def _pictured(self, inspection: Inspection, view: str) -> bytes | None:
        if view != CAPTURE:
            return await self._pictures.view(inspection, view)
        path = self._store.path(inspection.sha256)
        return path and await run_in_threadpool(preview, path, self._params.raw.max_pixels)

    async def _missing(self, request: Request, id: str) -> Response:
        return await self._render(request, "missing.html", HTTPStatus.NOT_FOUND, id=id)

    async def _render(self, request: Request, template: str, status: int = 200, **values: object) -> HTMLResponse:
        """Render a template in the reader's language; `?lang=` sets a cookie."""
        choice = request.query_params.get("lang")
        language = chosen_language(
            choice if choice in LANGUAGES else request.cookies.get(LANGUAGE_COOKIE),
            request.headers.get("accept-language", ""),
            self._settings.language,
        )
        query = [(name, value) for name, value in request.query_params.multi_items() if name != "lang"]
        content = self._templates.get_template(template).render(
            t=partial(text, language),
            mode_name=partial(mode_name, language),
            mode_names=[(mode, mode_name(language, mode)) for mode in self._params.answers.defect_modes],
            language=language,
            languages={code: ("?" + urlencode([*query, ("lang", code)]), name) for code, name in LANGUAGES.items()},
            path=request.url.path,
            station=self._settings,
            shapes=self._params.answers.shapes,
            modes=(PASSED, *self._params.answers.defect_modes),
            layout=self._layout,
            longest_name=LONGEST_NAME,
            name=unquote(request.cookies.get(NAME_COOKIE, ""))[:LONGEST_NAME],
            health=await request.app.state.condition.health(),
            **values,
        )
        answer = HTMLResponse(content, status, headers={"Cache-Control": "no-store", "Content-Language": language})
        if choice in LANGUAGES:
            self._remember(answer, LANGUAGE_COOKIE, choice)
        return answer

    def _remember(self, answer: Response, cookie: str, value: str) -> None:
        answer.set_cookie(cookie, value, max_age=_YEAR, httponly=True, samesite="strict", path="/")

    def _shown(
        self, inspection: Inspection, verdict: Mapping | None = None, failure: tuple[str, Mapping] | None = None
    ) -> dict:
        """The values of a result's template. verdict, failure: a verdict that was not stored, and the reason."""
        person = inspection.correction
        return {
            "inspection": inspection,
            "verdict": inspection.judgement or "error",
            "pins": self._pins(inspection),
            "box": box(self._layout, inspection.defect_position),
            "person_box": box(self._layout, person.defect_position) if person else None,
            "has_picture": self._store.path(inspection.sha256) is not None,
            "form": verdict or (_verdict_of(person) if person else _prefilled(inspection)),
            "failure": failure,
        }

    def _pins(self, inspection: Inspection) -> list[tuple[str, list[Pin]]]:
        """The pins, row by row."""
        values = inspection.pin_map or (None,) * self._layout.pins
        pins = [
            Pin(str(address), value, math.ceil(round((value or 0) * HEAT_LEVELS, 6)))
            for address, value in zip(self._layout.addresses, values, strict=True)
        ]
        columns = self._layout.columns
        return [(row, pins[i * columns : (i + 1) * columns]) for i, row in enumerate(self._layout.rows)]


def _verdict(form: Mapping[str, str], inspection: Inspection) -> dict[str, str]:
    """The verdict in a form. To confirm repeats the model's verdict; a passed capture has no mode and no position."""
    by = form.get("by", "")[: 2 * LONGEST_NAME]
    if form.get("says") == "confirm":
        return _verdict_of(inspection) | {"by": by}
    judgement = form.get("judgement", "")
    if judgement == PASSED:
        return {"judgement": PASSED, "defect_mode": PASSED, "defect_position": NO_ADDRESS, "by": by}
    return {name: form.get(name, "") for name in VERDICT} | {"by": by}


def _verdict_of(source: Inspection | Correction) -> dict[str, str]:
    return {name: getattr(source, name) or "" for name in VERDICT}


def _prefilled(inspection: Inspection) -> dict[str, str]:
    """First values of the correction form: a passed capture can only be corrected to a defective one."""
    if inspection.judgement == PASSED:
        return {"judgement": DEFECTIVE, "defect_mode": "", "defect_position": ""}
    return _verdict_of(inspection)


def _incomplete(verdict: Mapping[str, str]) -> tuple[str, Mapping] | None:
    """The text about what a verdict lacks; None if it is complete."""
    if not verdict["judgement"]:
        return "need_judgement", {}
    if verdict["judgement"] == DEFECTIVE and verdict["defect_mode"] in ("", PASSED):
        return "need_mode", {}
    if verdict["judgement"] == DEFECTIVE and verdict["defect_position"] in ("", NO_ADDRESS):
        return "need_position", {}
    return None if verdict["by"].strip() else ("need_name", {})


def _same_verdict(person: Correction, inspection: Inspection) -> bool:
    return _verdict_of(person) == _verdict_of(inspection)


def _rates(day: Mapping) -> dict:
    """Add the rates to a day of `ResultsTable.outcomes`; a rate of no captures is None."""
    defective = day["judged_defective"]
    passed = day["judged"] - defective
    return {
        **day,
        "judged_passed": passed,
        "escape_rate": day["escapes"] / defective if defective else None,
        "overkill_rate": day["overkill"] / passed if passed else None,
    }


def _draw_rates(days: Sequence[Mapping], title: str) -> Markup:
    """The rates of `_STROKES` over days as SVG; a day without a rate leaves a gap."""
    every = math.ceil(len(days) / _MOST_DATES)
    dates = [(number, days[number]["bucket"][5:]) for number in range(0, len(days), every)]
    shares = [(share, f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)]
    chart = Chart(Axis(-0.5, len(days) - 0.5, dates), Axis(0, 1, shares), title, width=960, height=260)
    for name, (color, dash, hollow) in _STROKES.items():
        for has_rate, group in groupby(enumerate(days), key=lambda day: day[1][name] is not None):
            if has_rate:
                numbers, part = zip(*group, strict=True)
                rates = [day[name] for day in part]
                chart.line(numbers, rates, color, width=2, dash=dash)
                chart.dots(numbers, rates, color, radii=3.5, hollow=hollow)
    return Markup(chart.svg())


def _midnight(day: str, days: int = 0) -> datetime | None:
    """Local midnight of an ISO date, `days` later; None for other texts."""
    try:
        return datetime.combine(date.fromisoformat(day) + timedelta(days), time()).astimezone()
    except (ValueError, OverflowError):
        return None


def _local(moment: datetime) -> str:
    """A time in the station's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _local_path(target: object) -> str:
    """A path of this station; any other target becomes the first page."""
    path = str(target or "/")
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
