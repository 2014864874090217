"""The station's pages as the server renders them, in both languages, without a model process."""

import re
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pinspect.core.params import load_params
from pinspect.station import page
from pinspect.station.api import create_app
from pinspect.station.model_process import ModelProcess
from pinspect.station.outbox import Outbox
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings
from pinspect.station.texts import LANGUAGES, TEXTS, chosen_language
from tests.support.evaluated_project import write_params
from tests.support.sample import drop, line

TEMPLATES = Path(page.__file__).parent / "templates"
OURS = sorted(path for path in TEMPLATES.glob("*.html") if path.name != "openapi.html")
TOKEN = "a token that nobody guesses".replace(" ", "-")
PASSED = {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed", "p_defective": 0.01}
BEND = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U", "p_defective": 0.99}
KNOWN = {"image_type": "CYLN_RAW", "model_version": "7", "threshold": 0.5, "answer": "- image type->CYLN_RAW"}
DAY = datetime(2026, 3, 4, 12, tzinfo=UTC)


class Station:
    def __init__(self, root: Path, token: str = "", receivers: dict[str, str] | None = None):
        write_params(root)
        drop(root / "data/captures", line()[:4])
        self.root = root
        self.params, settings = load_params(root / "params.yaml"), StationSettings(receivers=receivers or {})
        self.results = ResultsTable.of_project(root, settings)
        self.pictures = PictureStore(root, 90, 10**9)
        self.app = create_app(root, self.params, settings, ModelProcess(root, settings), token=token)

    def visitor(self, **headers) -> TestClient:
        return TestClient(self.app, "http://127.0.0.1", follow_redirects=False, headers=headers)

    def keep(self, id: str, answer: dict, received: datetime = DAY, **more) -> str:
        """Store a result and its picture; return its id."""
        sha256 = self.pictures.put(line()[-1].jpeg, ".jpg")
        record = KNOWN | {"file": f"{id}.jpg", "pin_map": [1 / 27] * 27} | answer | more
        self.results.record(record, id=id, sha256=sha256, source="station", received=received)
        return id


@pytest.fixture
def station(tmp_path):
    return Station(tmp_path)


@pytest.fixture
def visitor(station):
    return station.visitor()


def rows(html: str) -> list[list[str]]:
    """Return the body rows of the page's table as lists of words."""
    body = re.search(r'<table class="list">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)
    lines = re.findall(r"<tr.*?</tr>", body[1], re.DOTALL) if body else []
    cells = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in lines)
    return [[" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in row] for row in cells]


def files(html: str) -> list[str]:
    return re.findall(r'<td class="file">(.*?)</td>', html)


def test_both_languages_have_the_same_texts_and_placeholders():
    english, *others = LANGUAGES
    gaps = {
        language: {
            key: sorted(name for _, name, _, _ in string.Formatter().parse(text) if name) for key, text in texts.items()
        }
        for language, texts in TEXTS.items()
    }
    for other in others:
        assert gaps[other] == gaps[english]
        untranslated = [key for key in TEXTS[other] if TEXTS[other][key] == TEXTS[english][key]]
        assert untranslated == []


@pytest.mark.parametrize("template", OURS, ids=lambda path: path.name)
def test_templates_contain_no_text(template):
    html = re.sub(r"{#.*?#}|{%.*?%}|{{.*?}}|<kbd>.*?</kbd>", " ", template.read_text(), flags=re.DOTALL)
    words = re.sub(r"<!DOCTYPE html>|<[^<>]*>", " ", html)
    assert not re.search(r"[^\W\d_]", words), words.split()
    attributes = re.findall(r'(?:title|aria-label|placeholder|alt)="([^"{]*[a-z][^"{]*)"', template.read_text())
    assert not attributes


def test_scripts_contain_no_visible_text():
    script = (TEMPLATES.parent / "static/station.js").read_text()
    shown = re.findall(r'(?:textContent|innerText|innerHTML|alert)\s*[=(]\s*["`](.*?)["`]', script)
    assert not shown


def test_every_text_is_used_and_every_used_text_exists():
    sources = " ".join(path.read_text() for path in [*OURS, Path(page.__file__)])
    named = set(re.findall(r'["\'](\w+)["\']', sources))
    patterns = [
        re.compile(prefix + r"\w+") for prefix in ("judged_", "mode_", "view_", "upload_", "key_", "source_", "box_")
    ]
    unused = [
        key
        for key in TEXTS["en"]
        if not {key, key.removesuffix("_n")} & named and not any(pattern.fullmatch(key) for pattern in patterns)
    ]
    assert unused == []
    missing = (
        set(re.findall(r'\bt\("(\w+)"', sources))
        - TEXTS["en"].keys()
        - {"key_", "judged_", "source_", "upload_", "view_"}
    )
    assert missing == set()


@pytest.mark.parametrize(
    ("chosen", "accepted", "default", "expected"),
    [
        ("ja", "en", "en", "ja"),
        (None, "ja,en;q=0.8", "en", "ja"),
        (None, "de, en-GB;q=0.7, ja;q=0.9", "en", "ja"),
        (None, "de", "ja", "ja"),
        (None, "", "ja", "ja"),
        ("xx", "en;q=0, de", "ja", "ja"),
        (None, "en;q=nonsense", "ja", "ja"),
    ],
)
def test_the_language_follows_choice_then_accept_language_then_default(chosen, accepted, default, expected):
    assert chosen_language(chosen, accepted, default) == expected


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("address", ["/", "/history", "/figures", "/inspection/bent", "/inspection/nowhere", "/login"])
def test_every_page_speaks_the_language_and_remembers_it(station, visitor, address, language):
    station.keep("bent", BEND)
    answer = visitor.get(address, params={"lang": language})
    assert f'<html lang="{language}">' in answer.text
    assert answer.headers["content-language"] == language
    again = visitor.get(address)
    assert f'<html lang="{language}">' in again.text


def test_accept_language_counts_until_a_reader_chooses(station):
    visitor = station.visitor(**{"Accept-Language": "ja, en;q=0.5"})
    assert '<html lang="ja">' in visitor.get("/").text
    visitor.get("/", params={"lang": "en"})
    assert '<html lang="en">' in visitor.get("/").text


def test_the_language_links_keep_the_filters(visitor):
    html = visitor.get("/history", params={"judgement": "passed", "text": "a&b"}).text
    assert 'href="?judgement=passed&amp;text=a%26b&amp;lang=ja"' in html


def test_without_a_model_every_page_shows_a_notice(visitor):
    for address in ("/", "/history", "/figures"):
        html = visitor.get(address).text
        assert "Captures cannot be inspected at present. the model process has ended or is still starting" in html
        assert "No model" in html


def test_a_missing_inspection_is_a_404_page(visitor):
    answer = visitor.get("/inspection/%3Cb%3E")
    assert answer.status_code == 404
    assert "There is no inspection &lt;b&gt;." in answer.text


def test_file_names_and_answers_are_escaped(station, visitor):
    hostile = '"><script>alert(1)</script>.jpg'
    station.keep("one", BEND | {"file": hostile, "answer": hostile, "model_version": hostile})
    for address in ("/", "/history", "/inspection/one", "/?id=one"):
        html = visitor.get(address).text
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_an_inspection_page_shows_the_whole_answer(station, visitor):
    pin_map = [0.0] * 27
    pin_map[2], pin_map[4], pin_map[26] = 0.98, 0.95, 0.02
    station.keep("one", BEND, pin_map=pin_map, seconds=0.25)
    html = visitor.get("/inspection/one").text
    for words in ("DEFECTIVE", "bend <b>X:3, Y:U</b>", "0.990", "threshold 0.500", ">7<", "0.25", "one.jpg"):
        assert words in html
    assert '<pre lang="en" tabindex="0">- image type-&gt;CYLN_RAW</pre>' in html
    assert '<td class="heat-10 chosen" title="X:3, Y:U: 0.9800">98</td>' in html
    assert '<td class="heat-10" title="X:5, Y:U: 0.9500">95</td>' in html, "a second defect shows as well"
    assert '<td class="heat-1" title="X:9, Y:D: 0.0200">2</td>' in html
    assert html.count('class="heat-') == 27
    assert html.count('<rect class="model" x="3" y="1" width="1" height="1"/>') == 2, "in RAW and in DST"


def test_serial_number_and_lot_are_shown_and_searched(station, visitor):
    station.keep("one", PASSED, serial="SN<1>", lot="L7")
    station.keep("two", PASSED, lot="L7")
    assert '<dd class="serial">SN&lt;1&gt;</dd>' in visitor.get("/inspection/one").text
    assert 'class="serial"' not in visitor.get("/inspection/two").text
    html = visitor.get("/history", params={"serial": "SN<1>", "lot": "L7"}).text
    assert "one.jpg" in html
    assert "two.jpg" not in html
    api = visitor.get("/results", params={"lot": "L7"}).json()["results"]
    assert {(result["id"], result["serial"], result["lot"]) for result in api} == {
        ("one", "SN<1>", "L7"),
        ("two", None, "L7"),
    }


def test_a_receiver_that_is_behind_shows_on_every_page_in_health_and_in_the_metrics(tmp_path):
    station = Station(tmp_path, receivers={"mes": "https://mes.local/results?key=secret", "plc": "mqtt://me@plc/line"})
    outbox = Outbox(station.results)
    outbox.add(["mes", "plc"])
    station.keep("one", PASSED)
    station.keep("two", PASSED)
    outbox.fail("mes", "https://mes.local answers 503: busy")
    outbox.confirm("plc", 1)
    visitor = station.visitor()
    health = visitor.get("/health").json()["receivers"]
    assert [(each["name"], each["address"], each["behind"], each["error"]) for each in health] == [
        ("mes", "https://mes.local", 2, "https://mes.local answers 503: busy"),
        ("plc", "mqtt://plc", 1, None),
    ]
    banner = "Results do not reach mes; waiting: 2. https://mes.local answers 503: busy"
    for address in ("/", "/history", "/figures"):
        assert banner in visitor.get(address).text
    table = visitor.get("/figures").text.split('id="receivers"')[1]
    assert '<th scope="row">plc</th><td>mqtt://plc</td><td class="number">1</td>' in table
    assert "secret" not in table
    metrics = visitor.get("/metrics").text
    assert 'pinspect_receiver_behind{receiver="mes"} 2.0' in metrics
    assert 'pinspect_receiver_up{receiver="mes"} 0.0' in metrics
    assert 'pinspect_receiver_up{receiver="plc"} 1.0' in metrics


def test_a_failed_inspection_shows_its_reason_and_no_form(station, visitor):
    nothing = dict.fromkeys((*PASSED, "image_type", "threshold", "answer", "pin_map"))
    station.keep("one", nothing | {"error": "too far off the unit space"})
    html = visitor.get("/inspection/one").text
    assert "NOT INSPECTED" in html
    assert "too far off the unit space" in html
    assert 'src="/inspection/one/picture/capture"' in html
    assert "<form" not in html
    picture = visitor.get("/inspection/one/picture/capture")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")


def test_without_a_model_a_view_gets_503_and_an_unknown_picture_404(station, visitor):
    station.keep("one", BEND)
    assert visitor.get("/inspection/one/picture/RAW").status_code == 503
    assert visitor.get("/inspection/one/picture/passwd").status_code == 404
    assert visitor.get("/inspection/none/picture/RAW").status_code == 404


def test_a_deleted_picture_is_marked_as_deleted(station, visitor):
    station.keep("one", BEND)
    station.pictures.prune(datetime(2100, 1, 1, tzinfo=UTC))
    assert "The picture has expired." in visitor.get("/inspection/one").text
    assert visitor.get("/inspection/one/picture/RAW").status_code == 404


def test_an_upload_without_a_model_is_refused_with_a_message(visitor):
    files = {"images": ("a.jpg", line()[-1].jpeg, "image/jpeg")}
    answer = visitor.post("/upload", files=files)
    assert answer.status_code == 503
    assert 'role="alert">not inspected: the model process has ended' in answer.text
    refused = visitor.post("/upload", files={"images": ("a.png", b"<html>", "image/png")})
    assert refused.status_code == 415
    assert "a.png: expected JPEG, PNG, BMP, TIFF or WebP, but the file has another format" in refused.text


def test_the_history_has_filters_and_pages(station, visitor):
    for number in range(60):
        answer = BEND if number % 3 == 0 else PASSED
        at = DAY + timedelta(minutes=number) + timedelta(days=number // 30)
        station.keep(f"n{number:02}", answer, at, model_version=str(7 + number // 40))
    station.results.correct("n03", **{name: PASSED[name] for name in list(PASSED)[:3]}, by="Sato", at=DAY, capture=None)

    first = visitor.get("/history").text
    assert files(first) == [f"n{number:02}.jpg" for number in range(59, 9, -1)]
    older = re.search(r'href="([^"]*)" rel="next"', first)[1].replace("&amp;", "&")
    assert files(visitor.get(older).text) == [f"n{number:02}.jpg" for number in range(9, -1, -1)]

    def count(**filters):
        return len(files(visitor.get("/history", params=filters).text))

    assert count(judgement="defective") == count(mode="bend") == 20
    assert count(version="8") == 20
    assert files(visitor.get("/history", params={"corrected": "yes"}).text) == ["n03.jpg"]
    assert count(judgement="defective", corrected="no") == 19
    assert files(visitor.get("/history", params={"text": "N4"}).text) == [
        f"n4{digit}.jpg" for digit in range(9, -1, -1)
    ]
    local = (DAY + timedelta(days=1)).astimezone().date().isoformat()
    assert count(since=local) == 30
    assert count(since=local, until=local) == 30
    assert count(since="nonsense") == 50
    assert "No inspection matches." in visitor.get("/history", params={"text": "nowhere"}).text


def test_every_rate_shows_its_counts(station, visitor):
    day = datetime.now(UTC).replace(hour=1) - timedelta(days=3)
    escape = {name: BEND[name] for name in list(BEND)[:3]}
    passed = {name: PASSED[name] for name in list(PASSED)[:3]}
    for number in range(10):
        station.keep(f"a{number}", BEND if number < 2 else PASSED, day)
    for id, verdict in (("a0", passed), ("a2", escape), ("a1", escape)):
        station.results.correct(id, **verdict, by="Sato", at=day, capture=None)
    station.keep("b", PASSED, day + timedelta(days=1))

    html = visitor.get("/figures").text

    assert rows(html) == [
        [f"{day + timedelta(days=1):%Y-%m-%d}", "100.0 % (1)", "– (0)", "– (0)"],
        [f"{day:%Y-%m-%d}", "80.0 % (10)", "50.0 % (2)", "100.0 % (1)"],
    ]
    assert html.count("<polyline") == 3
    assert 'role="img" aria-label="Daily yield, escape rate and overkill rate' in html


def test_the_page_counts_corrections_waiting_for_retraining(station, visitor):
    assert "Waiting for retraining: 0" in visitor.get("/").text
    station.keep("one", PASSED)
    answer = visitor.post("/inspection/one/judgement", data=judgement_form(by="Sato"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/inspection/one")
    html = visitor.get("/inspection/one").text
    assert "Waiting for retraining: 1" in html
    assert "Corrected by Sato" in html
    assert "defective · bend · X:3, Y:U" in html
    assert html.count('<rect class="person" x="3" y="1" width="1" height="1"/>') == 2


def judgement_form(**more) -> dict:
    form = {"says": "correct"} | {name: BEND[name] for name in ("judgement", "defect_mode", "defect_position")}
    return form | {"by": "Sato"} | more


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (judgement_form(defect_position=""), "Choose the pin."),
        (judgement_form(defect_mode=""), "Choose the defect mode."),
        (judgement_form(judgement=""), "Choose passed or defective."),
        (judgement_form(by=" "), "Enter your name."),
        (judgement_form(by="S" * 90), "Not saved: by: expected the name of a person"),
        (judgement_form(defect_mode="rusty"), "Not saved: defect mode: expected one of"),
        ({"says": "confirm"}, "Enter your name."),
    ],
)
def test_an_incomplete_judgement_shows_a_message_and_keeps_the_form(station, visitor, form, message):
    station.keep("one", PASSED)
    answer = visitor.post("/inspection/one/judgement", data=form)
    assert answer.status_code == 422
    assert message in answer.text.replace("&#39;", "'")
    if form.get("defect_position"):
        assert re.search(r'value="X:3, Y:U" aria-label="X:3, Y:U" checked', answer.text)
    assert station.results.get("one").correction is None


def test_confirming_stores_the_models_answer_and_ignores_other_fields(station, visitor):
    station.keep("one", PASSED)
    visitor.post("/inspection/one/judgement", data=judgement_form(says="confirm"))
    correction = station.results.get("one").correction
    assert (correction.judgement, correction.by, correction.capture) == ("passed", "Sato", None)
    assert "Confirmed by Sato" in visitor.get("/inspection/one").text


def test_passed_ignores_mode_and_pin(station, visitor):
    station.keep("one", BEND)
    visitor.post("/inspection/one/judgement", data=judgement_form(judgement="passed"))
    assert station.results.get("one").correction.judgement == "passed"


def test_a_japanese_name_is_remembered(station, visitor):
    station.keep("one", PASSED)
    visitor.post("/inspection/one/judgement", data={"says": "confirm", "by": "佐藤 花子"})
    assert 'name="by" value="佐藤 花子"' in visitor.get("/inspection/one").text


def test_another_site_cannot_judge(station, visitor):
    station.keep("one", PASSED)
    answer = visitor.post("/inspection/one/judgement", data=judgement_form(), headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403
    assert station.results.get("one").correction is None


def test_the_page_opens_only_with_the_token(tmp_path):
    visitor = Station(tmp_path, TOKEN).visitor(accept="text/html")
    refused = visitor.get("/history")
    assert (refused.status_code, refused.headers["location"]) == (303, "/login?next=/history")
    login = visitor.get("/login", params={"next": "/history"})
    assert 'name="next" value="/history"' in login.text
    assert "cannot be inspected" not in login.text, "the login page reveals nothing about the line"
    wrong = visitor.post("/login", data={"token": "x" * 20, "next": "/history"})
    assert wrong.status_code == 403
    assert "Wrong token." in wrong.text
    right = visitor.post("/login", data={"token": TOKEN, "next": "/history"})
    assert (right.status_code, right.headers["location"]) == (303, "/history")
    assert visitor.get("/history").status_code == 200


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", ""])
def test_a_login_never_redirects_to_another_site(tmp_path, target):
    visitor = Station(tmp_path, TOKEN).visitor()
    answer = visitor.post("/login", data={"token": TOKEN, "next": target})
    assert answer.headers["location"] == "/"


def test_the_pages_are_no_part_of_the_api(visitor):
    paths = visitor.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path in ("/", "/history", "/figures", "/upload") or "inspection" in path]
