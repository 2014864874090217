"""The station's page: what an inspector sees and does, rendered on the server.

It works without scripts (a plain form uploads, confirms and corrects); `static/station.js` adds drag and drop, the
keyboard and clicks on pins, by way of the same forms and addresses.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote, urlencode

from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from pinspect.core.answers import DEFECTIVE, PASSED, VIEWS
from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.layout import NO_ADDRESS
from pinspect.core.params import Params
from pinspect.station import access
from pinspect.station.charts import line_chart
from pinspect.station.corrections import LONGEST_NAME, correct
from pinspect.station.model_client import ModelClient, ModelTimeoutError, ModelUnavailableError
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
HEAT_LEVELS = 10
_YEAR = 365 * 24 * 3600
_PICTURE_CACHE = {"Cache-Control": "private, max-age=3600"}
_FILTERS = ("judgement", "mode", "version", "since", "until", "corrected", "text")


def add_page(
    app: FastAPI,
    root: Path,
    params: Params,
    settings: StationSettings,
    results: ResultsTable,
    pictures: PictureStore,
    client: ModelClient,
) -> None:
    """Give `app` the page of the project in `root`. `app.state` has its `intake`, `condition` and `token`."""
    page = Page(root, params, settings, results, pictures, client)
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
    """One pin of the heat map: its address, its probability (None where it is not known) and how hot it is, 0..10."""

    address: str
    probability: float | None
    level: int


class Page:
    """The routes of the page, each of which gives a whole HTML document."""

    def __init__(
        self,
        root: Path,
        params: Params,
        settings: StationSettings,
        results: ResultsTable,
        pictures: PictureStore,
        client: ModelClient,
    ):
        self._root = root
        self._params, self._settings = params, settings
        self._layout = params.layout.layout()
        self._results = results
        self._store = pictures
        self._pictures = ShownPictures(client, pictures)
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
        """The first page: upload, and the results of `?id=`, or else the latest ones in short."""
        ids = request.query_params.getlist("id")[:MOST_SHOWN]
        found = [inspection for id in ids if (inspection := await run_in_threadpool(self._results.get, id))]
        latest = await run_in_threadpool(partial(self._results.list, limit=LATEST_LENGTH))
        shown = [self._shown(inspection) for inspection in found]
        return await self._render(request, "inspect.html", shown=shown, latest=latest, failure=None)

    async def upload(self, request: Request) -> Response:
        """What a browser without scripts sends; one that has them asks `POST /inspect` itself, file by file."""
        try:
            found = await request.app.state.intake.take(request)
        except Problem as problem:
            return await self._render(
                request, "inspect.html", problem.status, shown=[], latest=[], failure=str(problem)
            )
        if len(found) == 1:
            return RedirectResponse(f"/inspection/{quote(found[0].id, safe='')}", 303)
        return RedirectResponse("/?" + urlencode([("id", inspection.id) for inspection in found]), 303)

    async def inspection(self, request: Request, id: str) -> Response:
        """One result in full."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None:
            return await self._missing(request, id)
        return await self._render(request, "inspection.html", shown=self._shown(inspection))

    async def picture(self, request: Request, id: str, view: str) -> Response:
        """A view of a capture as the model sees it, or `capture`: the file as a JPEG."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None or view not in (*VIEWS, CAPTURE):
            raise Problem(404, "no such picture")
        try:
            content = await self._pictured(inspection, view)
        except (ModelUnavailableError, ModelTimeoutError, ImageError) as error:
            raise Problem(503, str(error)) from error
        if content is None:
            raise Problem(404, "the picture is kept no longer, or shows no such view")
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return Response(content, media_type=kind, headers=_PICTURE_CACHE)

    async def judge(self, request: Request, id: str) -> Response:
        """Confirm or correct, as the form says."""
        inspection = await run_in_threadpool(self._results.get, id)
        if inspection is None:
            return await self._missing(request, id)
        form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
        said = _said(form, inspection)
        failure = _incomplete(said)
        if failure is None:
            try:
                await run_in_threadpool(
                    partial(correct, self._root, self._params, self._results, self._store, id, **said)
                )
            except CaptureError as error:
                failure = ("refused", {"reason": str(error)})
        if failure is not None:
            shown = self._shown(inspection, said, failure)
            return await self._render(request, "inspection.html", 422, shown=shown)
        answer = RedirectResponse(f"/inspection/{quote(id, safe='')}", 303)
        self._remember(answer, NAME_COOKIE, quote(said["by"].strip()))
        return answer

    async def history(self, request: Request) -> Response:
        """Results, the newest first, filtered and in pages."""
        asked = {name: request.query_params.get(name, "").strip() for name in _FILTERS}
        wanted = {name: value or None for name, value in asked.items()}
        wanted |= {"since": _midnight(asked["since"]), "until": _midnight(asked["until"], days=1)}
        wanted |= {"corrected": {"yes": True, "no": False}.get(asked["corrected"])}
        before = request.query_params.get("before")
        find = partial(self._results.list, limit=HISTORY_LENGTH + 1, before=before, **wanted)
        found = await run_in_threadpool(find)
        rows, kept = found[:HISTORY_LENGTH], {name: value for name, value in asked.items() if value}
        older = "?" + urlencode(kept | {"before": rows[-1].id}) if len(found) > len(rows) else None
        newest = "?" + urlencode(kept) if before else None
        return await self._render(request, "history.html", rows=rows, asked=asked, older=older, newest=newest)

    async def figures(self, request: Request) -> Response:
        """What came out over the last weeks."""
        since = datetime.now(UTC) - timedelta(days=CHART_DAYS)
        days = await run_in_threadpool(partial(self._results.outcomes, bucket="day", since=since))
        told = [_rates(day) for day in days]
        names = ("yield", "escape_rate", "overkill_rate")
        chart = line_chart([day["bucket"] for day in told], {name: [day[name] for day in told] for name in names})
        counts = await run_in_threadpool(self._results.counts)
        return await self._render(request, "figures.html", days=told, chart=chart, counts=counts)

    async def login(self, request: Request) -> Response:
        """Where a reader without the token is led."""
        return await self._render(request, "login.html", next=_own(request.query_params.get("next")), wrong=False)

    async def log_in(self, request: Request) -> Response:
        """The token, for a cookie."""
        form = await request.form()
        target = _own(form.get("next"))
        token = request.app.state.token
        if not hmac.compare_digest(str(form.get("token", "")).strip().encode(), token.encode()):
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
        """A page in the reader's language, with what every page has. `?lang=` is remembered."""
        asked = request.query_params.get("lang")
        language = chosen_language(
            asked if asked in LANGUAGES else request.cookies.get(LANGUAGE_COOKIE),
            request.headers.get("accept-language", ""),
            self._settings.language,
        )
        kept = [(name, value) for name, value in request.query_params.multi_items() if name != "lang"]
        content = self._templates.get_template(template).render(
            t=partial(text, language),
            mode_name=partial(mode_name, language),
            mode_names=[(mode, mode_name(language, mode)) for mode in self._params.answers.defect_modes],
            language=language,
            languages={code: ("?" + urlencode([*kept, ("lang", code)]), name) for code, name in LANGUAGES.items()},
            path=request.url.path,
            station=self._settings,
            shapes=self._params.answers.shapes,
            modes=(PASSED, *self._params.answers.defect_modes),
            layout=self._layout,
            longest_name=LONGEST_NAME,
            name=unquote(request.cookies.get(NAME_COOKIE, ""))[:LONGEST_NAME],
            health=await request.app.state.condition.told(),
            **values,
        )
        answer = HTMLResponse(content, status, headers={"Cache-Control": "no-store", "Content-Language": language})
        if asked in LANGUAGES:
            self._remember(answer, LANGUAGE_COOKIE, asked)
        return answer

    def _remember(self, answer: Response, cookie: str, value: str) -> None:
        answer.set_cookie(cookie, value, max_age=_YEAR, httponly=True, samesite="strict", path="/")

    def _shown(
        self, inspection: Inspection, said: Mapping | None = None, failure: tuple[str, Mapping] | None = None
    ) -> dict:
        """What a template needs of an inspection. said, failure: a judgement that was not kept, and why."""
        person = inspection.correction
        return {
            "inspection": inspection,
            "verdict": inspection.judgement or "error",
            "pins": self._pins(inspection),
            "box": box(self._layout, inspection.defect_position),
            "person_box": box(self._layout, person.defect_position) if person else None,
            "has_picture": self._store.path(inspection.sha256) is not None,
            "form": said or (_suggested(person) if person else _opening(inspection)),
            "failure": failure,
        }

    def _pins(self, inspection: Inspection) -> list[tuple[str, list[Pin]]]:
        """The pins row by row."""
        known = inspection.address_probabilities or (None,) * self._layout.pins
        pins = [
            Pin(str(address), probability, math.ceil(round((probability or 0) * HEAT_LEVELS, 6)))
            for address, probability in zip(self._layout.addresses, known, strict=True)
        ]
        columns = self._layout.columns
        return [(row, pins[i * columns : (i + 1) * columns]) for i, row in enumerate(self._layout.rows)]


def _said(form: Mapping[str, str], inspection: Inspection) -> dict[str, str]:
    """What a person says by the form: to confirm is to repeat the model, and a passed capture has no defect."""
    by = form.get("by", "")[: 2 * LONGEST_NAME]
    if form.get("says") == "confirm":
        return _suggested(inspection) | {"by": by}
    judgement = form.get("judgement", "")
    if judgement == PASSED:
        return {"judgement": PASSED, "defect_mode": PASSED, "defect_position": NO_ADDRESS, "by": by}
    said = {name: form.get(name, "") for name in ("judgement", "defect_mode", "defect_position")}
    return said | {"by": by}


def _suggested(verdict: Inspection | Correction) -> dict[str, str]:
    names = ("judgement", "defect_mode", "defect_position")
    return {name: getattr(verdict, name) or "" for name in names}


def _opening(inspection: Inspection) -> dict[str, str]:
    """What the correction form begins with: a defect may be another one, but what passed has to become defective."""
    if inspection.judgement == PASSED:
        return {"judgement": DEFECTIVE, "defect_mode": "", "defect_position": ""}
    return _suggested(inspection)


def _incomplete(said: Mapping[str, str]) -> tuple[str, Mapping] | None:
    """The text that tells what is missing in what a person said; None when nothing is."""
    if not said["judgement"]:
        return "need_judgement", {}
    if said["judgement"] == DEFECTIVE and said["defect_mode"] in ("", PASSED):
        return "need_mode", {}
    if said["judgement"] == DEFECTIVE and said["defect_position"] in ("", NO_ADDRESS):
        return "need_position", {}
    return None if said["by"].strip() else ("need_name", {})


def _same_verdict(person: Correction, inspection: Inspection) -> bool:
    return _suggested(person) == _suggested(inspection)


def _rates(day: Mapping) -> dict:
    """A day of `ResultsTable.outcomes` with its rates; None where there is nothing that one could be of."""
    defective = day["judged_defective"]
    passed = day["judged"] - defective
    return {
        **day,
        "judged_passed": passed,
        "escape_rate": day["escapes"] / defective if defective else None,
        "overkill_rate": day["overkill"] / passed if passed else None,
    }


def _midnight(given: str, days: int = 0) -> datetime | None:
    """The beginning of a day here, `days` later; None for what is no date."""
    try:
        return datetime.combine(date.fromisoformat(given) + timedelta(days), time()).astimezone()
    except (ValueError, OverflowError):
        return None


def _local(moment: datetime) -> str:
    """A time as the clock of the station has it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def _own(target: object) -> str:
    """A path of this station; nobody is sent elsewhere."""
    path = str(target or "/")
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
