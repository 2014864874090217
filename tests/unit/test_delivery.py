"""Results leave the station: real databases, and receivers that are down, refuse, or lose a connection."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from pinspect.core.errors import ParamsError
from pinspect.registry.webhook import SecretError
from pinspect.station import delivery
from pinspect.station.delivery import delivering
from pinspect.station.outbox import Outbox
from pinspect.station.receivers import open_receiver
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings, load_station_settings
from tests.support.mlflow_server import free_port
from tests.support.receivers import DROP, http_receiver
from tests.support.waiting import until

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ANSWER = (
    "- image type->CYLN_RAW\n- number of pins->27 pins\n- your judgement->passed\n- defect mode->passed\n"
    "- defect position->passed"
)


@pytest.fixture
def table(tmp_path):
    with contextlib.closing(ResultsTable.of_project(tmp_path, StationSettings())) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(delivery, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 0.05)


def keep(table, *numbers: int) -> None:
    for number in numbers:
        record = {"file": f"{number}.jpg", "judgement": "passed", "answer": ANSWER, "serial": f"S{number}"}
        table.record(record, id=f"id {number}", sha256="0" * 64, source="station", received=NOON)


def files(receiver) -> list[str]:
    return [document["file"] for document in receiver.documents]


def names(*numbers: int) -> list[str]:
    return [f"{number}.jpg" for number in numbers]


def settings(**receivers: str) -> StationSettings:
    return StationSettings(receivers=receivers)


def state(table, name: str = "mes"):
    return Outbox(table).states([name])[0]


# The outbox.


def test_results_are_numbered_in_the_order_in_which_they_were_stored_and_a_repeated_one_takes_no_number(table):
    keep(table, 3, 1, 1, 2)
    assert [(i.file, i.sequence) for i in table.after(0, 10)] == [("3.jpg", 1), ("1.jpg", 2), ("2.jpg", 3)]
    assert [i.sequence for i in table.after(1, 1)] == [2]


def test_a_number_is_not_used_again_after_old_results_were_deleted(table):
    keep(table, 1, 2)
    table.prune(NOON + timedelta(days=1))
    keep(table, 3)
    assert [i.sequence for i in table.list()] == [3]


def test_a_new_receiver_gets_what_is_stored_from_now_on_and_a_known_one_continues(table):
    outbox = Outbox(table)
    keep(table, 1)
    outbox.add(["mes"])
    keep(table, 2)
    outbox.add(["mes", "plc"])
    keep(table, 3)
    assert [i.file for i in outbox.next("mes", 10)] == names(2, 3)
    assert [i.file for i in outbox.next("plc", 10)] == names(3)
    outbox.confirm("mes", 2)
    outbox.confirm("mes", 1)  # a position never moves back
    assert [i.file for i in outbox.next("mes", 10)] == names(3)
    outbox.fail("plc", "no answer")
    states = outbox.states(["plc", "mes", "unknown"])
    assert [(s.name, s.position, s.behind, s.error) for s in states] == [
        ("plc", 2, 1, "no answer"),
        ("mes", 2, 1, None),
    ]
    assert states[0].delivered_at is None
    assert states[1].delivered_at.tzinfo is UTC


# Delivery by webhook.


def test_a_webhook_gets_the_record_and_the_five_line_answer_of_each_result_once_and_in_order(
    tmp_path, table, monkeypatch
):
    monkeypatch.setenv("PINSPECT_RECEIVER_MES", "a-secret")
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=receiver.url)):
        keep(table, *range(12))
        until(lambda: state(table).position == 12, "all deliveries", 60, 0.02)
        assert files(receiver) == names(*range(12))
        assert receiver.keys == [f"id {number}" for number in range(12)]
        assert set(receiver.tokens) == {"Bearer a-secret"}
        assert receiver.documents[7] == table.get("id 7").to_dict()
        assert receiver.documents[7]["answer"].splitlines()[4] == "- defect position->passed"
        assert (receiver.documents[7]["sequence"], receiver.documents[7]["serial"]) == (8, "S7")
        assert (state(table).behind, state(table).error) == (0, None)


def test_a_receiver_that_is_down_loses_nothing_and_blocks_nothing(tmp_path, table):
    down = f"http://127.0.0.1:{free_port()}/results?key=secret"
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=down, plc=receiver.url)):
        keep(table, 1, 2, 3)
        until(lambda: state(table, "plc").behind == 0, "the deliveries to the other receiver", 60, 0.02)
        until(lambda: state(table).error, "an error", 60, 0.02)
        assert "does not answer (ConnectionError)" in state(table).error
        assert "secret" not in state(table).error
        assert state(table).behind == 3
        with http_receiver(int(down.split(":")[2].split("/", maxsplit=1)[0])) as up:
            until(lambda: state(table).behind == 0, "the deliveries", 60, 0.02)
            assert files(up) == names(1, 2, 3)
            assert state(table).error is None


def test_a_refused_result_is_sent_again_before_the_next_one(tmp_path, table):
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=receiver.url)):
        receiver.statuses = [200, 500, 307, 404]
        keep(table, 1, 2, 3)
        until(lambda: state(table).behind == 0, "all deliveries", 60, 0.02)
        assert files(receiver) == names(1, 2, 2, 2, 2, 3)


def test_a_refusal_is_shown_with_its_status_and_reason(tmp_path, table):
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=receiver.url)):
        receiver.statuses = [503] * 100_000
        keep(table, 1)
        until(lambda: state(table).error, "an error", 60, 0.02)
        assert state(table).error == f"http://127.0.0.1:{receiver.port} answers 503: taken"
        receiver.statuses = []


def test_a_result_whose_confirmation_is_lost_comes_again_with_the_same_id_and_number(tmp_path, table):
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=receiver.url)):
        receiver.statuses = [200, DROP, 200]
        keep(table, 1, 2, 3)
        until(lambda: state(table).behind == 0, "all deliveries", 60, 0.02)
        assert receiver.keys == ["id 1", "id 2", "id 2", "id 3"]
        taken, last = [], 0  # what docs/station.md asks of a receiver
        for document in receiver.documents:
            if document["sequence"] > last:
                taken.append(document["file"])
                last = document["sequence"]
        assert taken == names(1, 2, 3)


def test_a_restart_continues_after_the_last_confirmed_result(tmp_path, table):
    with http_receiver() as receiver:
        with delivering(tmp_path, settings(mes=receiver.url)):
            keep(table, 1)
            until(lambda: state(table).behind == 0, "the first delivery", 60, 0.02)
        keep(table, 2, 3)
        assert files(receiver) == names(1)
        with delivering(tmp_path, settings(mes=receiver.url), finish=True):
            keep(table, 4)
        assert files(receiver) == names(1, 2, 3, 4)


def test_to_finish_ends_at_the_first_failure(tmp_path, table):
    with delivering(tmp_path, settings(mes=f"http://127.0.0.1:{free_port()}"), finish=True):
        keep(table, 1)
    assert state(table).behind == 1


def test_of_two_processes_one_delivers(tmp_path, table):
    with http_receiver() as receiver:
        both = settings(mes=receiver.url)
        with delivering(tmp_path, both), delivering(tmp_path, both):
            keep(table, *range(8))
            until(lambda: state(table).behind == 0, "all deliveries", 60, 0.02)
        assert files(receiver) == names(*range(8))


# Settings.


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://mes/x", "expected http://HOST/PATH"),
        ("https:///x", "expected http://HOST/PATH"),
        ("http://mes:port/", "not an address"),
        ("http://user@mes/", "a password in the address; remove it and put it into PINSPECT_RECEIVER_LINE_1"),
        ("mqtt://user:word@plc/line", "a password in the address; remove it and put it into PINSPECT_RECEIVER_LINE_1"),
        ("mqtt://plc", "expected http://HOST/PATH"),
        ("mqtts://plc/line/%2B", r"a topic has no \+ and no #"),
    ],
)
def test_an_unusable_address_is_reported_in_one_line(url, message):
    with pytest.raises(ParamsError, match=rf"station.receivers.line-1: .*{message}") as error:
        open_receiver("line-1", url)
    assert "\n" not in str(error.value)
    assert "word@" not in str(error.value)


def test_the_secret_of_a_receiver_can_come_from_a_file(tmp_path, table, monkeypatch):
    monkeypatch.setenv("PINSPECT_RECEIVER_MES_FILE", str(tmp_path / "secret"))
    with pytest.raises(SecretError, match=r"PINSPECT_RECEIVER_MES_FILE: .*secret cannot be read: .*No such file"):
        open_receiver("mes", "http://mes/")
    (tmp_path / "secret").write_text("from a file\n")
    with http_receiver() as receiver, delivering(tmp_path, settings(mes=receiver.url), finish=True):
        keep(table, 1)
    assert receiver.tokens == ["Bearer from a file"]


@pytest.mark.parametrize(
    ("station", "message"),
    [
        ("receivers: {MES: 'http://mes/'}", "station.receivers.MES: string should match pattern"),
        ("names: '('", "station.names: expected a regular expression"),
        ("names: 'L(?P<number>1)'", "station.names: expected the named groups"),
    ],
)
def test_a_mistake_in_the_settings_is_named(tmp_path, station, message):
    (tmp_path / "settings.yaml").write_text(f"station: {{{station}}}\n")
    with pytest.raises(ParamsError, match=message):
        load_station_settings(tmp_path)
