"""The station's API on a real station: answers, refusals, and robustness."""

import hashlib
import io
import socket
from pathlib import Path

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pinspect.station.settings import StationSettings
from tests.support.problem_answers import refusal
from tests.support.sample import contents, line, set_values
from tests.support.station_stack import station
from tests.unit.test_uploads import HTML, JPEG, SVG, encoded, png_header

TOKEN = "a-token-that-nobody-guesses"
QUEUE = 4

schemathesis.openapi.format("binary", st.sampled_from([capture.jpeg for capture in line()[:3]]))


@pytest.fixture(scope="module")
def running(registered, tmp_path_factory):
    """A station whose queue is short, with a folder for temporary files of its own."""
    set_values(registered, "station", queue=QUEUE, requests_a_minute=100_000)
    temporary = tmp_path_factory.mktemp("temporary")
    with station(registered, TMPDIR=str(temporary)) as running:
        running.temporary = temporary
        yield running


def inspect(running, *images: tuple[str, bytes], headers=None, **form) -> requests.Response:
    files = [("images", image) for image in images]
    return requests.post(f"{running.url}/inspect", files=files, data=form, headers=headers, timeout=600)


def get(running, path: str, **query) -> requests.Response:
    return requests.get(f"{running.url}{path}", params=query, timeout=600)


def metrics(running) -> dict[tuple, float]:
    """Return the station's metrics: (name, labels) -> value."""
    text = get(running, "/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


# Inspection


def test_an_answered_image_is_in_the_results_with_its_picture(running):
    answer = inspect(running, ("left_1.jpg", JPEG), shape="CYLN")
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert (result["file"], result["model_version"], result["error"]) == ("left_1.jpg", "1", None)
    assert result["sha256"] == hashlib.sha256(JPEG).hexdigest()
    assert len(result["address_probabilities"]) == 27
    assert result["judgement"] in ("passed", "defective")
    assert get(running, f"/results/{result['id']}").json() == result
    picture = get(running, f"/results/{result['id']}/picture")
    assert (picture.content, picture.headers["content-type"]) == (JPEG, "image/jpeg")
    assert get(running, "/results", limit=1).json()["results"] == [result]


def test_images_of_one_request_are_answered_in_their_order(running):
    captures = [(f"{number}.jpg", capture.jpeg) for number, capture in enumerate(line()[:3])]
    results = inspect(running, *captures).json()["results"]
    assert [result["file"] for result in results] == ["0.jpg", "1.jpg", "2.jpg"]
    assert len({result["id"] for result in results}) == 3


def test_an_image_that_cannot_be_aligned_gets_an_error_with_the_reason(running):
    answer = inspect(running, ("grey.png", encoded("PNG", size=(640, 260))))
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    assert result["judgement"] is None
    assert result["error"]
    assert get(running, f"/results/{result['id']}").json()["error"] == result["error"]


def test_a_16_bit_capture_is_inspected_as_its_8_bit_original(running):
    gray = Image.open(io.BytesIO(JPEG)).convert("L")
    files = []
    for image in (gray, gray.point(lambda level: level * 257, "I").convert("I;16")):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(("deep.png", file.getvalue()))
    eight, sixteen = inspect(running, *files).json()["results"]
    assert sixteen["error"] is None
    assert sixteen["answer"] == eight["answer"]


def test_a_repeated_request_gets_the_first_answer(running):
    key = {"Idempotency-Key": "shift-3/0001"}
    first = inspect(running, ("a.jpg", JPEG), ("b.jpg", line()[1].jpeg), headers=key).json()
    again = inspect(running, ("a.jpg", JPEG), ("b.jpg", line()[1].jpeg), headers=key)
    assert (again.status_code, again.json()) == (200, first)
    other = inspect(running, ("a.jpg", line()[2].jpeg), ("b.jpg", line()[1].jpeg), headers=key)
    assert refusal(other) == (409, "this Idempotency-Key was used before with other images; use a new key")
    assert refusal(inspect(running, ("a.jpg", JPEG), headers=key))[0] == 409
    ids = [entry["id"] for entry in get(running, "/results", limit=500).json()["results"]]
    assert [ids.count(result["id"]) for result in first["results"]] == [1, 1]


def test_images_beyond_the_queue_get_429_with_retry_after(running):
    before = metrics(running)
    images = [(f"{number}.jpg", JPEG) for number in range(3 * QUEUE)]
    answer = inspect(running, *images)
    assert refusal(answer)[0] == 429
    assert int(answer.headers["Retry-After"]) > 0
    refused = ("pinspect_refused_uploads_total", ("reason", "queue"))
    assert metrics(running)[refused] == before.get(refused, 0) + 1


def test_results_come_in_pages_and_by_filters(running):
    inspect(running, ("unique-name.jpg", JPEG), ("other.jpg", JPEG))
    named = get(running, "/results", text="UNIQUE-na").json()["results"]
    assert [result["file"] for result in named] == ["unique-name.jpg"]
    whole = get(running, "/results", limit=500).json()
    assert whole["next"] is None
    paged, before = [], None
    while True:
        page = get(running, "/results", limit=2, before=before).json()
        paged += page["results"]
        before = page["next"]
        if before is None:
            break
    assert paged == whole["results"]
    for query in ({"judgement": "passed"}, {"version": "1"}, {"since": paged[0]["received"]}, {"corrected": True}):
        results = get(running, "/results", limit=500, **query).json()["results"]
        assert {result["id"] for result in results} <= {result["id"] for result in paged}
    assert get(running, "/results", version="7").json() == {"results": [], "next": None}


def test_a_result_includes_its_correction(running):
    (result,) = inspect(running, ("c.jpg", line()[5].jpeg)).json()["results"]
    verdict = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U", "by": "Mori"}
    url = f"{running.url}/results/{result['id']}/correction"
    answer = requests.post(url, json=verdict, timeout=600)
    assert answer.status_code == 200, answer.text
    correction = answer.json()["correction"]
    assert {name: correction[name] for name in verdict} == verdict
    assert (running.root / "data/captures/images" / correction["capture"]).is_file()
    assert get(running, "/results", corrected=True).json()["results"][0]["id"] == result["id"]
    assert get(running, "/health").json()["waiting_corrections"] >= 1
    wrong = requests.post(url, json=verdict | {"defect_position": "X:33, Y:U"}, timeout=600)
    assert refusal(wrong)[0] == 422
    gone = requests.post(f"{running.url}/results/nothing/correction", json=verdict, timeout=600)
    assert refusal(gone)[0] == 404


# Refusals


HOSTILE_NAMES = [
    *("../../../../evil.png", "..\\..\\evil.png", "/etc/cron.d/evil", "C:\\evil.png", "evil\0.png", "a/../../evil.png"),
    *("%2e%2e%2fevil.png", "....//evil.png", "\u202egnp.evil", "evil\r\nX-Evil: 1", "x" * 3000 + ".png", ".", "~/evil"),
    *("data/captures/labels.csv", "con", "'; DROP TABLE station_inspections; --"),
]
HOSTILE_FILES = {
    "empty.png": (b"", 422, "0 bytes"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], 422, "cut short"),
    "cut.png": (encoded("PNG")[:60], 422, "cut short"),
    "small.png": (encoded("PNG", "L", (8, 8)), 422, "8 x 8 px is no photograph"),
    "float.tif": (encoded("TIFF", "F"), 422, "floating-point pixels have no agreed white"),
    "page.png": (HTML, 415, "expected JPEG, PNG"),
    "drawing.svg": (SVG, 415, "expected JPEG, PNG"),
    "moving.gif": (encoded("GIF", "P"), 415, "expected JPEG, PNG"),
    "bomb.png": (png_header(50_000, 50_000), 413, "too many pixels"),
    "zeros.png": (encoded("PNG", "1", (7000, 7000)), 413, "7000 x 7000 px"),
    "wide.png": (encoded("PNG", "L", (20_000, 100)), 413, "20000 x 100 px"),
}


def outside_of_the_data(running) -> dict[str, bytes]:
    """Return all files in and beside the project that no upload may change."""
    files = contents(running.root.parent)
    kept = (f"{running.root.name}/data/station/", f"{running.root.name}/mlruns/")
    return {name: content for name, content in files.items() if not name.startswith(kept)}


def test_nothing_that_a_client_sends_is_written_outside_of_the_data_folder(running):
    before = outside_of_the_data(running)
    pictures = contents(running.root / "data/station/pictures")
    for name in HOSTILE_NAMES:
        body = b'--b\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n%s\r\n--b--\r\n'
        content = body % (name.encode().replace(b"\\", b"\\\\"), JPEG)
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = requests.post(f"{running.url}/inspect", data=content, headers=headers, timeout=600)
        if answer.status_code == 200:
            shown = answer.json()["results"][0]["file"]
            assert shown.isprintable()
            assert not {"/", "\\"} & set(shown)
        else:
            assert refusal(answer)[0] == 422
    for name, (content, _, _) in HOSTILE_FILES.items():
        inspect(running, (name, content))
    assert outside_of_the_data(running) == before
    new = contents(running.root / "data/station/pictures").keys() - pictures.keys()
    assert {Path(name).stem for name in new} <= {hashlib.sha256(JPEG).hexdigest()}
    assert contents(running.temporary) == {}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_file_is_rejected_with_a_reason(running, name):
    content, status, reason = HOSTILE_FILES[name]
    code, detail = refusal(inspect(running, (name, content)))
    assert code == status
    assert detail.startswith(f"{name}: ")
    assert reason in detail


def test_an_image_beyond_the_size_limit_is_rejected(running):
    most = StationSettings().upload_bytes
    code, detail = refusal(inspect(running, ("large.bmp", b"BM" + bytes(most))))
    assert (code, str(most) in detail) == (413, True)


def test_an_aborted_request_leaves_nothing_behind(running):
    before = len(get(running, "/results", limit=500).json()["results"])
    head = "POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n--b\r\n".encode())
    assert get(running, "/health").json()["status"] in ("ok", "degraded")
    assert len(get(running, "/results", limit=500).json()["results"]) == before
    assert "Traceback" not in running.log.read_text()


def test_an_invalid_request_gets_a_readable_message(running):
    assert refusal(get(running, "/results", limit=0)) == (422, "limit: input should be greater than or equal to 1")
    assert refusal(get(running, "/results", since="yesterday"))[0] == 422
    assert refusal(get(running, "/results", since="0001-01-01T00:00:00+14:00")) == (422, "since: out of range")
    assert refusal(get(running, "/results/nothing")) == (404, "there is no result 'nothing'")
    assert refusal(get(running, "/nowhere")) == (404, "Not Found")
    assert refusal(requests.delete(f"{running.url}/results", timeout=600))[0] == 405


# Health and metrics


def test_health_reports_the_version_that_inspects(running):
    health = get(running, "/health").json()
    assert (health["version"], health["alias"]) == ("1", "champion")
    assert (health["last_error"], health["results_error"]) == (None, None)
    assert health["drift"]["quantities"]


def test_metrics_count_requests_and_inspections(running):
    before = metrics(running)
    (result,) = inspect(running, ("m.jpg", JPEG)).json()["results"]
    inspect(running, ("m.png", HTML))
    after = metrics(running)

    def more(name: str, *labels: tuple[str, str]) -> float:
        return after[name, *labels] - before.get((name, *labels), 0)

    assert more("pinspect_inspections_total", ("judgement", result["judgement"]), ("version", "1")) == 1
    assert more("pinspect_inspection_seconds_count") == 1
    assert more("pinspect_refused_uploads_total", ("reason", "format")) == 1
    upload = (("method", "POST"), ("route", "/inspect"))
    assert more("pinspect_http_requests_total", *upload, ("status", "200")) == 1
    assert more("pinspect_http_requests_total", *upload, ("status", "415")) == 1
    assert after["pinspect_model_info", ("alias", "champion"), ("version", "1")] == 1
    assert after["pinspect_model_up",] == 1
    assert after["pinspect_queue_captures",] == 0
    assert after["pinspect_drift_changed", ("quantity", "brightness")] in (0, 1)


def test_the_api_page_loads_nothing_from_other_hosts(running):
    page = get(running, "/docs")
    assert page.status_code == 200
    for path in get(running, "/openapi.json").json()["paths"]:
        assert path in page.text
    assert "http" not in page.text.replace(running.url, "")
    assert get(running, "/static/openapi.css").headers["content-type"].startswith("text/css")


def test_every_answer_has_the_security_headers(running):
    for answer in (get(running, "/"), get(running, "/health"), get(running, "/nowhere"), get(running, "/docs")):
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Referrer-Policy" in answer.headers
        assert "server" not in answer.headers


# The OpenAPI description


OPERATIONS = [
    *(("POST", "/inspect"), ("GET", "/results"), ("GET", "/results/{id}"), ("GET", "/results/{id}/picture")),
    *(("POST", "/results/{id}/correction"), ("GET", "/health"), ("GET", "/metrics")),
]


@pytest.fixture(scope="module")
def description(running):
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def test_the_fuzz_test_covers_every_operation(description):
    operations = [operation.ok() for operation in description.get_all_operations()]
    assert [(operation.method.upper(), operation.path) for operation in operations] == OPERATIONS


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_matches_the_openapi_description(description, running, method, path, mode):
    try:
        cases = description[path][method].as_strategy(generation_mode=mode)
        # Which ids exist, and which corrections are valid, is not part of the description.
        excluded = [positive_data_acceptance] if "correction" in path else []

        @hypothesis.given(cases)
        @hypothesis.settings(
            max_examples=20 if path == "/inspect" else 60,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def holds(case):
            case.call_and_validate(excluded_checks=excluded, timeout=600)

        holds()
    except hypothesis.errors.Unsatisfiable:  # an operation without parameters has no invalid request
        assert mode is GenerationMode.NEGATIVE
        assert path in ("/health", "/metrics")
    assert "Traceback" not in running.log.read_text()
