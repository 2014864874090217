"""`pinspect station` under load: kills, promotions, a broken champion, hostile clients, and a clean shutdown."""

import os
import resource
import shutil
import socket
import subprocess
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings
from tests.support.mlflow_server import free_port
from tests.support.sample import line, set_values
from tests.support.station_stack import PINSPECT, StationProcess, make_champion, station
from tests.support.waiting import is_gone, until

CLIENTS = 8
TOKEN = {"PINSPECT_STATION_TOKEN": "a-token-that-nobody-guesses"}
LOGIN = {"Authorization": f"Bearer {TOKEN['PINSPECT_STATION_TOKEN']}"}
CAPTURES = [capture.jpeg for capture in line()]


class Load:
    """Clients that send one image after the other, and their results, refusals and broken connections."""

    def __init__(self, url: str):
        self.results: list[dict] = []
        self.refused: list[str] = []
        self.broken = 0
        self._url = url
        self._ends = threading.Event()

    def run(self, number: int) -> None:
        with requests.Session() as session:
            while not self._ends.is_set():
                self._ends.wait(0.05)  # eight clients that never pause leave the other tests no processor
                image = ("images", (f"{number}.jpg", CAPTURES[number % len(CAPTURES)]))
                try:
                    answer = session.post(f"{self._url}/inspect", files=[image], headers=LOGIN, timeout=600)
                except requests.RequestException:
                    self.broken += 1
                    return
                if answer.ok:
                    self.results += answer.json()["results"]
                else:
                    self.refused.append(answer.text)

    def end(self) -> None:
        self._ends.set()


@contextmanager
def load(url: str):
    """Run `CLIENTS` clients during the context."""
    traffic = Load(url)
    clients = [threading.Thread(target=traffic.run, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield traffic
    finally:
        traffic.end()
        for client in clients:
            client.join()


@pytest.fixture(scope="module")
def versions(registered):
    """The project; its station checks the registry each second, and does not judge the line, which the same few
    captures over and over would change."""
    judged = {"minimum": 1_000_000}
    set_values(registered, "station", champion_check_seconds=1.0, requests_a_minute=100_000, drift=judged)
    return registered


@pytest.fixture(scope="module")
def running(versions):
    with station(versions, **TOKEN) as running:
        yield running


def health(running: StationProcess) -> dict:
    return requests.get(f"{running.url}/health", timeout=600).json()


def inspected(running: StationProcess) -> requests.Response:
    images = {"images": ("a.jpg", CAPTURES[0])}
    return requests.post(f"{running.url}/inspect", files=images, headers=LOGIN, timeout=600)


def table(project: Path) -> ResultsTable:
    return ResultsTable.of_project(project, StationSettings())


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def model_process(running: StationProcess) -> psutil.Process:
    """Return the model process: the largest child process of the station."""
    children = psutil.Process(running.process.pid).children(recursive=True)
    return max(children, key=lambda child: child.memory_info().rss)


def test_every_answer_before_a_power_cut_is_stored_once(versions):
    with station(versions) as running:
        with load(running.url) as traffic:
            until(lambda: len(traffic.results) >= 3 * CLIENTS, "answers")
            running.kill()
        assert traffic.broken == CLIENTS
        assert not traffic.refused
    answered = Counter(result["id"] for result in traffic.results)
    assert set(answered.values()) == {1}
    with station(versions) as again:
        after = again.url
        assert requests.get(f"{after}/health", timeout=600).json()["status"] == "ok"
        kept, before = [], None
        while True:
            page = requests.get(f"{after}/results", params={"limit": 500, "before": before}, timeout=600).json()
            kept += page["results"]
            before = page["next"]
            if before is None:
                break
        assert inspected(again).ok
        assert again.stop() == 0
    times = Counter(result["id"] for result in kept)
    assert {id: times[id] for id in answered} == dict.fromkeys(answered, 1)
    stored = PictureStore(versions, 1, 10**9)
    assert all(stored.path(result["sha256"]) for result in kept)


def test_a_champion_that_is_promoted_under_load_takes_over_without_a_failed_request(running):
    with load(running.url) as traffic:
        until(lambda: len(traffic.results) >= CLIENTS, "answers")
        make_champion(running.root, "2")
        until(lambda: traffic.results[-1]["model_version"] == "2", "an answer of the new champion")
        enough = len(traffic.results) + CLIENTS
        until(lambda: len(traffic.results) >= enough, "more answers")
    assert (traffic.broken, traffic.refused) == (0, [])
    assert {result["model_version"] for result in traffic.results} == {"1", "2"}
    assert {result["model_version"] for result in traffic.results[-CLIENTS // 2 :]} == {"2"}
    kept = table(running.root)
    assert all(kept.get(result["id"]).model_version == result["model_version"] for result in traffic.results)
    assert health(running)["version"] == "2"


def test_health_reports_a_broken_champion_and_the_last_good_version_stays(running):
    make_champion(running.root, "2")
    until(lambda: health(running)["version"] == "2", "version 2")
    weights = packed(running.root, "3")
    content = weights.read_bytes()
    weights.unlink()
    make_champion(running.root, "3")
    report = until(lambda: (status := health(running))["last_error"] and status, "the reason")
    assert (report["status"], report["version"]) == ("degraded", "2")
    assert "version 3" in report["last_error"]
    assert inspected(running).json()["results"][0]["model_version"] == "2"
    assert "pinspect_model_stale 1.0" in requests.get(f"{running.url}/metrics", headers=LOGIN, timeout=600).text
    weights.write_bytes(content)
    make_champion(running.root, "2")
    until(lambda: health(running)["status"] == "ok", "a sound champion")


def packed(project: Path, version: str) -> Path:
    """Return the weight file of the adapter in a version's package."""
    params = load_register_settings(project)
    with open_registry(project, params) as client:
        model = client.get_model_version(params.model_name, version).source.rpartition("/")[2]
    (weights,) = (project / "mlruns").glob(f"**/{model}/**/adapter_model.safetensors")
    return weights


def test_requests_are_refused_while_the_model_process_restarts(running):
    first = model_process(running)
    with load(running.url) as traffic:
        until(lambda: traffic.results, "answers")
        first.kill()
        until(lambda: traffic.refused, "a refusal")
        assert "model process" in traffic.refused[0]
        answered = len(traffic.results)
        until(lambda: len(traffic.results) > answered, "answers of the new model process")
    assert traffic.broken == 0
    assert model_process(running).pid != first.pid
    assert "it is started again" in running.log.read_text()


def test_a_thousand_half_sent_requests_and_an_endless_body_stop_no_answer(running):
    address = urlsplit(running.url).hostname, urlsplit(running.url).port
    log, stored = running.log.stat().st_size, size_of(running.root)
    half = b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with ExitStack() as connections:
        connections.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1000):
            connections.enter_context(socket.create_connection(address)).sendall(half)
        assert inspected(running).ok
        assert len(psutil.Process(running.process.pid).net_connections()) < 1000
    body = b"Transfer-Encoding: chunked\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n"
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with socket.create_connection(address) as endless:
        endless.sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\n" + body)
        with pytest.raises(ConnectionError):
            for _ in range(2048):  # 2 GB
                endless.sendall(chunk)
    assert inspected(running).ok
    assert running.log.stat().st_size - log < 10_000
    assert size_of(running.root) - stored < 10_000_000


def test_requests_in_progress_are_finished_when_the_station_ends(running):
    answers = []
    images = [("images", (f"{number}.jpg", content)) for number, content in enumerate(CAPTURES)]
    client = threading.Thread(
        target=lambda: answers.append(requests.post(f"{running.url}/inspect", files=images, headers=LOGIN, timeout=600))
    )
    client.start()
    until(lambda: health(running)["queue"], "captures that wait", longest=0.02)
    members = psutil.Process(running.process.pid).children(recursive=True)
    assert running.stop() == 0
    client.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["results"]) == len(images)
    # multiprocessing's resource tracker ends by itself, once the station's process has ended.
    until(lambda: all(is_gone(member.pid) for member in members), "the end of the station's other processes")
    ready = f"{running.url} inspects with version "
    assert [entry for entry in running.log.read_text().splitlines() if entry.startswith(ready)]


# Start


def refused(project: Path, *options: str, **environment: str) -> str:
    """Return the error line of a station that does not start."""
    command = [PINSPECT, "station", *options]
    done = subprocess.run(command, cwd=project, env=os.environ | environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (message,) = done.stderr.splitlines()
    return message


def test_a_station_beyond_loopback_needs_a_token(registered):
    reason = "0.0.0.0: other machines can reach this address, so the station needs a token"
    assert refused(registered, "--host", "0.0.0.0").startswith(reason)
    assert "the token has 5 characters" in refused(registered, "--host", "0.0.0.0", PINSPECT_STATION_TOKEN="short")


def test_a_port_in_use_is_reported_in_one_line(registered):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"127.0.0.1:{port}: cannot listen: Address already in use" in refused(registered, "--port", str(port))


def test_an_error_about_a_missing_version_shows_what_to_do(evaluated_project, tmp_path):
    for name in ("params.yaml", "settings.yaml"):
        shutil.copy(evaluated_project / name, tmp_path)
    assert "run dvc repro, which registers one" in refused(tmp_path, "--port", "0")


def test_an_unusable_results_table_is_reported_before_the_station_starts(registered, tmp_path):
    for name in ("params.yaml", "settings.yaml"):
        shutil.copy(registered / name, tmp_path)
    set_values(tmp_path, "station", results="nonsense://")
    assert "results" in refused(tmp_path, "--port", "0")
    assert not (tmp_path / "mlruns").exists()
