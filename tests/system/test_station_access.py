"""Who may send requests to the station: tokens, logins, other sites, other hosts, limits. No model process runs."""

import time

import httpx
import pytest
from fastapi.testclient import TestClient

from pinspect.core.errors import PinspectError
from pinspect.core.params import load_params
from pinspect.station.access import COOKIE, WRONG_TOKENS_A_MINUTE, check_token, cookie_of
from pinspect.station.api import create_app
from pinspect.station.model_process import ModelProcess
from pinspect.station.settings import StationSettings
from tests.support.problem_answers import refusal
from tests.unit.test_uploads import JPEG

TOKEN = "a-token-that-nobody-guesses"


def client_of(project, *, token="", hosts=(), **changes) -> httpx.Client:
    """Return a client of a station without a model process; `changes` are settings of the station."""
    params, settings = load_params(project / "params.yaml"), StationSettings(**changes)
    app = create_app(project, params, settings, ModelProcess(project, settings), token=token, hosts=hosts)
    return TestClient(app, base_url="http://127.0.0.1:8000", follow_redirects=False)


def test_without_a_model_the_station_answers_503(registered):
    client = client_of(registered)
    health = client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["version"]) == (503, "unavailable", None)
    answer = client.post("/inspect", files={"images": ("a.jpg", JPEG)})
    assert refusal(answer)[0] == 503
    assert "Retry-After" in answer.headers
    assert client.get("/results").status_code == 200


def test_with_a_token_only_health_is_open(registered):
    client = client_of(registered, token=TOKEN)
    assert client.get("/health").status_code == 503
    for path in ("/results", "/results/1", "/metrics", "/docs", "/openapi.json", "/"):
        answer = client.get(path)
        assert refusal(answer)[0] == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert refusal(client.post("/inspect", files={"images": ("a.jpg", JPEG)}))[0] == 401
    for wrong in ("Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN):
        assert client.get("/results", headers={"Authorization": wrong}).status_code == 401
    assert client.get("/results", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_logs_in_on_the_page(registered):
    client = client_of(registered, token=TOKEN)
    led = client.get("/history", headers={"Accept": "text/html"})
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=/history")
    assert client.post("/login", data={"token": "wrong"}).status_code == 403
    done = client.post("/login", data={"token": TOKEN, "next": "//elsewhere.example"})
    assert (done.status_code, done.headers["location"]) == (303, "/")
    cookie = done.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/results").status_code == 200
    soon, ended = int(time.time()) + 3600, int(time.time()) - 1
    other = cookie_of("another token altogether", soon)
    for cookie, status in ((cookie_of(TOKEN, soon), 200), (cookie_of(TOKEN, ended), 401), (other, 401), ("9.9", 401)):
        client.cookies.clear()
        client.cookies.set(COOKIE, cookie)
        assert client.get("/results").status_code == status
    client.cookies.clear()
    client.cookies.set(COOKIE, cookie_of(TOKEN, ended).replace(str(ended), str(soon)))
    assert client.get("/results").status_code == 401


def test_wrong_tokens_are_tried_a_few_times_a_minute(registered):
    client = client_of(registered, token=TOKEN)
    tries = [client.post("/login", data={"token": "wrong"}) for _ in range(WRONG_TOKENS_A_MINUTE + 2)]
    assert [answer.status_code for answer in tries] == [403] * WRONG_TOKENS_A_MINUTE + [429] * 2
    assert "logins per minute" in refusal(tries[-1])[1]
    wrong = client.get("/results", headers={"Authorization": "Bearer wrong"})
    assert (wrong.status_code, 0 < int(wrong.headers["Retry-After"]) <= 60) == (429, True)
    assert client.get("/results", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_requests_from_other_sites_are_refused(registered):
    client = client_of(registered)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        assert refusal(client.post("/inspect", files={"images": ("a.jpg", JPEG)}, headers=headers))[0] == 403
    same_site = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/inspect", files={"images": ("a.jpg", JPEG)}, headers=same_site).status_code == 503  # no model


def test_a_station_on_loopback_refuses_foreign_host_names(registered):
    client = client_of(registered)
    for host in ("evil.example", "evil.example:8000", "", "127.0.0.1.evil.example"):
        assert client.get("/results", headers={"Host": host}).status_code == 400
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/results", headers={"Host": host}).status_code == 200
    proxied = client_of(registered, hosts=["station.example"])
    assert proxied.get("/results", headers={"Host": "station.example"}).status_code == 200


def test_too_many_requests_get_429_with_retry_after(registered, monkeypatch):
    client = client_of(registered, requests_a_minute=5)
    last_second = time.time() // 60 * 60 + 59

    def statuses(seconds: float, requests: int) -> list[int]:
        monkeypatch.setattr(time, "time", lambda: last_second + seconds)
        return [client.get("/results").status_code for _ in range(requests)]

    assert statuses(0, 5) == [200] * 5
    assert statuses(2, 2) == [429] * 2  # the next minute of the clock has begun
    answer = client.get("/results")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "58")
    assert "more than 5 requests per minute" in refusal(answer)[1]
    assert client.get("/health").status_code == 503  # a monitor is not counted
    assert statuses(59, 1) == [429]
    assert statuses(61, 6) == [200] * 5 + [429]


def test_a_large_body_that_is_no_upload_gets_413(registered):
    client = client_of(registered)
    large = b"[" + b"0," * 600_000
    assert client.post("/results/1/correction", content=large).status_code == 413
    assert client.post("/results/1/correction", content=iter([large])).status_code == 413
    # Form data is no exception outside of the routes that take images.
    assert client_of(registered, token=TOKEN).post("/login", files={"token": large}).status_code == 413


@pytest.mark.parametrize(
    ("host", "token", "message"),
    [
        ("0.0.0.0", "", "0.0.0.0: other machines can reach this address, so the station needs a token"),
        ("192.168.1.5", "", "needs a token"),
        ("station.example", "", "needs a token"),
        ("0.0.0.0", "short", "the token has 5 characters"),
        ("127.0.0.1", "with a space in it, and long", "expected at least 16 printable ASCII characters"),
    ],
)
def test_a_reachable_station_needs_a_strong_token(host, token, message):
    with pytest.raises(PinspectError, match=message):
        check_token(host, token)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_on_loopback_no_token_is_needed(host):
    check_token(host, "")
