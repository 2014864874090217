"""Results leave a real station: to a real MQTT broker and to a webhook, over kills of station and broker."""

import contextlib
import subprocess
import threading
from datetime import UTC, datetime

import pytest
import requests

from pinspect.registry.webhook import DeliveryError
from pinspect.station.receivers import open_receiver
from pinspect.station.results import Inspection, ResultsTable
from pinspect.station.settings import StationSettings
from tests.support.receivers import DROP, TOPIC, Subscriber, broker, http_receiver
from tests.support.sample import line, set_values
from tests.support.station_stack import StationProcess, station
from tests.support.waiting import until

CAPTURES = [capture.jpeg for capture in line()]
BEFORE_THE_KILL = 4


@pytest.fixture
def result(tmp_path) -> Inspection:
    with contextlib.closing(ResultsTable(f"sqlite:///{tmp_path}/results.db")) as table:
        table.record({"file": "a.jpg"}, id="one", sha256="0" * 64, source="watch", received=datetime.now(UTC))
        return table.after(0, 1)[0]


def send(running: StationProcess, number: int) -> None:
    images = [("images", (f"{number}.jpg", CAPTURES[number % len(CAPTURES)]))]
    trace = {"serial": f"SN{number}", "lot": "L7"}
    requests.post(f"{running.url}/inspect", files=images, data=trace, timeout=600).raise_for_status()


def health(running: StationProcess) -> dict[str, dict]:
    receivers = requests.get(f"{running.url}/health", timeout=600).json()["receivers"]
    return {receiver["name"]: receiver for receiver in receivers}


def taken_once(documents: list[dict]) -> list[dict]:
    """Return the documents that a receiver takes that ignores sequence numbers which it has seen."""
    taken: list[dict] = []
    for document in documents:
        if not taken or document["sequence"] > taken[-1]["sequence"]:
            taken.append(document)
    return taken


def test_every_result_arrives_once_and_in_order_although_station_and_broker_are_killed(registered, tmp_path):
    with broker(tmp_path / "broker") as running_broker, http_receiver() as mes:
        mes.statuses = [200, DROP, 503]
        set_values(registered, "station", receivers={"plc": running_broker.url, "mes": mes.url})
        plc = Subscriber(running_broker.port)
        with station(registered) as first:
            series = threading.Thread(target=send_until_killed, args=(first,))
            series.start()
            until(lambda: len(plc.documents) >= BEFORE_THE_KILL and mes.documents, "results before the kill")
            first.kill()
            series.join()
        running_broker.stop()
        with station(registered) as second:
            for number in range(100, 105):
                send(second, number)  # inspection goes on without a broker
            until(lambda: health(second)["mes"]["behind"] == 0, "the webhook's results")
            until(lambda: health(second)["plc"]["error"], "the broker's error")
            assert health(second)["plc"]["behind"] >= 5
            assert requests.get(f"{second.url}/health", timeout=600).json()["status"] == "degraded"
            running_broker.start()
            until(lambda: health(second)["plc"]["behind"] == 0, "the broker's results")
            assert health(second)["plc"]["error"] is None
            assert second.stop() == 0
        with contextlib.closing(ResultsTable.of_project(registered, StationSettings())) as table:
            stored = [inspection.to_dict() for inspection in table.after(0, 10_000)]
        until(lambda: plc.documents[-1] == stored[-1], "the subscriber")
        plc.close()
    assert len(stored) >= BEFORE_THE_KILL + 5
    assert taken_once(plc.documents) == taken_once(mes.documents) == stored
    assert plc.ids == [document["id"] for document in plc.documents]
    assert mes.keys == [document["id"] for document in mes.documents]
    assert all(len(document["answer"].split("\n")) == 5 for document in stored if document["error"] is None)
    assert {document["lot"] for document in stored} == {"L7"}
    assert [document["serial"] for document in stored[-5:]] == [f"SN{number}" for number in range(100, 105)]


def send_until_killed(running: StationProcess) -> None:
    with contextlib.suppress(requests.RequestException):
        for number in range(100):
            send(running, number)


def test_a_broker_that_refuses_user_or_topic_confirms_nothing(tmp_path, result, monkeypatch):
    (tmp_path / "users").write_text("line:right\n")
    subprocess.run(["mosquitto_passwd", "-U", tmp_path / "users"], check=True)
    (tmp_path / "rights").write_text(f"user line\ntopic write {TOPIC}\n")
    further = ("allow_anonymous false", f"password_file {tmp_path}/users", f"acl_file {tmp_path}/rights")
    with broker(tmp_path / "broker", *further) as running:
        address = running.url.replace("//", "//line@")
        monkeypatch.setenv("PINSPECT_RECEIVER_PLC", "wrong")
        with pytest.raises(DeliveryError, match=f"mqtt://127.0.0.1:{running.port}: not connected: Not authorized"):
            open_receiver("plc", address).send(result)
        monkeypatch.setenv("PINSPECT_RECEIVER_PLC", "right")
        with contextlib.closing(open_receiver("plc", address)) as receiver:
            receiver.send(result)
            running.stop()
            running.start()
            with pytest.raises(DeliveryError):  # the connection was lost; the next try opens another one
                receiver.send(result)
            receiver.send(result)
        with pytest.raises(DeliveryError, match="not confirmed: Not authorized"):
            open_receiver("plc", f"{address}/elsewhere").send(result)
    with pytest.raises(DeliveryError, match=r"does not answer .*refused"):
        open_receiver("plc", address).send(result)
