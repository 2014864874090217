"""The results table and its pictures: real databases, several processes, some of them killed."""

import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from pinspect.station.picture_store import PictureStore
from pinspect.station.pruning import prune_station
from pinspect.station.results import Correction, ResultsTable, watch_id
from pinspect.station.results_database import SCHEMA, ResultsError
from pinspect.station.settings import StationSettings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHA256 = "0" * 64
BEND = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U"}
GOOD = {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}


@pytest.fixture
def table(tmp_path):
    opened = ResultsTable(f"sqlite:///{tmp_path}/results.db")
    yield opened
    opened.close()


def keep(table, id: str, received: datetime = NOON, **record) -> bool:
    result = {"file": f"{id}.jpg", "error": None, "model_version": "3"} | GOOD | record
    return table.record(result, id=id, sha256=SHA256, source="station", received=received)


def judge(table, id: str, verdict: dict, capture: str | None = None) -> None:
    table.correct(id, **verdict, by="Sato", at=NOON, capture=capture)


def ids(inspections) -> list[str]:
    return [inspection.id for inspection in inspections]


def test_a_result_is_read_back_as_it_was_stored(table):
    record = {
        **({"file": "left/1.jpg", "image_type": "CYLN_RAW", "number_of_pins": "27 pins"} | BEND),
        **{"answer": "- your judgement->defective\n", "p_defective": 0.1 + 0.2, "threshold": 0.5},
        **{"address_entropy": 1.25, "address_probabilities": [1 / 27] * 27, "brightness": 0.4, "pin_map": [0.5] * 27},
        **{"dst_background": 0.03, "model_version": "12", "seconds": 0.07, "error": None},
    }
    assert table.record(record, id="a", sha256=SHA256, source="watch", received=NOON)
    result = table.get("a")
    assert {name: getattr(result, name) for name in record} == record | {
        "address_probabilities": (1 / 27,) * 27,
        "pin_map": (0.5,) * 27,
    }
    assert (result.id, result.source, result.sha256, result.received, result.correction) == (
        *("a", "watch", SHA256, NOON, None),
    )
    assert result.received.tzinfo is UTC
    assert result.to_dict()["received"] == "2026-03-01T12:00:00+00:00"
    assert result.to_dict()["address_probabilities"] == [1 / 27] * 27
    assert result.to_dict()["pin_map"] == [0.5] * 27
    assert table.get("b") is None


def test_a_repeated_id_keeps_the_first_result(table):
    assert keep(table, "a")
    assert not keep(table, "a", **BEND)
    assert table.get("a").judgement == "passed"
    assert table.counts()["inspected"] == 1


def test_an_id_written_by_many_processes_is_stored_once(tmp_path):
    url = f"sqlite:///{tmp_path}/results.db"
    code = (
        "import sys; from datetime import UTC, datetime; from pinspect.station.results import ResultsTable\n"
        "sys.stdin.readline()\n"
        f"table = ResultsTable({url!r})\n"
        "kept = [table.record({'file': sys.argv[1]}, id=str(i), sha256='', source='watch',"
        " received=datetime.now(UTC)) for i in range(40)]\n"
        "print(sum(kept))"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in "abcd"
    ]
    for writer in writers:  # all processes open a database that does not exist yet
        writer.stdin.write("go\n")
        writer.stdin.flush()
    outputs = [writer.communicate()[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert sum(map(int, outputs)) == 40
    table = ResultsTable(url)
    assert sorted(ids(table.list(limit=100)), key=int) == [str(i) for i in range(40)]
    assert [inspection.sequence for inspection in table.after(0, 100)] == [*range(1, 41)]


def test_every_result_that_was_accepted_survives_a_kill(tmp_path):
    url = f"sqlite:///{tmp_path}/results.db"
    code = (
        "import itertools; from datetime import UTC, datetime; from pinspect.station.results import ResultsTable\n"
        f"table = ResultsTable({url!r})\n"
        "for i in itertools.count():\n"
        "    table.record({'file': 'x'}, id=str(i), sha256='', source='watch', received=datetime.now(UTC))\n"
        "    print(i, flush=True)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    accepted = [writer.stdout.readline() for _ in range(20)]
    time.sleep(random.uniform(0, 0.2))
    os.kill(writer.pid, signal.SIGKILL)
    accepted += writer.communicate()[0].splitlines(keepends=True)
    accepted = [line.strip() for line in accepted if line.endswith("\n")]
    table = ResultsTable(url)
    assert table.known(accepted) == set(accepted)
    assert table.counts()["inspected"] in (len(accepted), len(accepted) + 1)
    assert keep(table, "after")


def test_pages_follow_each_other_newest_first_with_nothing_lost_or_doubled(table):
    for number in range(23):
        keep(table, f"{(number * 7) % 23:02}", NOON + timedelta(seconds=number // 5))
    everything = table.list(limit=100)
    assert [(i.received, i.id) for i in everything] == sorted(((i.received, i.id) for i in everything), reverse=True)
    paged, before = [], None
    while page := table.list(limit=4, before=before):
        paged += page
        before = page[-1].id
        keep(table, f"new {len(paged)}", NOON + timedelta(hours=1))  # stored between two page requests
    assert ids(paged) == ids(everything)
    assert table.list(before="no such id") == []


def test_filters_select_the_matching_results(table):
    keep(table, "good", NOON)
    keep(table, "bent", NOON + timedelta(hours=1), **BEND, file="Left_100%_1.JPG", model_version="4")
    keep(table, "unread", NOON + timedelta(hours=2), judgement=None, defect_mode=None, error="0 bytes")
    judge(table, "good", GOOD)
    chosen = {
        "unread bent good": {},
        "good": {"judgement": "passed"},
        "bent": {"mode": "bend"},
        "unread good": {"version": "3"},
        "unread bent": {"since": NOON + timedelta(hours=1)},
        "bent good": {"until": NOON + timedelta(hours=2)},
        " good": {"corrected": True},
        " unread bent": {"corrected": False},
        " bent": {"text": "left_100%"},
        "": {"text": "100_1"},
        "  bent": {"judgement": "defective", "since": NOON, "corrected": False},
    }
    assert {key: ids(table.list(**filters)) for key, filters in chosen.items()} == {key: key.split() for key in chosen}


def test_times_are_stored_in_utc(table):
    tokyo = timezone(timedelta(hours=9))
    keep(table, "a", datetime(2026, 3, 2, 1, 30, tzinfo=tokyo))
    assert table.get("a").received == datetime(2026, 3, 1, 16, 30, tzinfo=UTC)
    assert table.outcomes(bucket="hour")[0]["bucket"] == "2026-03-01T16"
    assert ids(table.list(since=datetime(2026, 3, 2, 1, 0, tzinfo=tokyo))) == ["a"]
    assert ids(table.list(until=datetime(2026, 3, 1, 16, 0))) == []


def test_the_latest_correction_or_confirmation_counts(table):
    keep(table, "a")
    keep(table, "b")
    judge(table, "a", BEND, capture="station_a_bend.jpg")
    judge(table, "a", GOOD, capture="station_a_OK.jpg")
    assert table.get("a").correction == Correction(**GOOD, by="Sato", at=NOON, capture="station_a_OK.jpg")
    assert table.get("a").to_dict()["correction"]["at"] == "2026-03-01T12:00:00+00:00"
    assert table.get("b").correction is None
    assert (table.counts()["judged"], table.counts()["escapes"]) == (1, 0)
    with pytest.raises(ResultsError, match="no inspection 'c'"):
        judge(table, "c", GOOD)


def test_outcomes_count_yield_escapes_and_overkill_per_day_and_month(table):
    for number in range(8):
        keep(table, f"1-{number}", NOON, **(BEND if number < 2 else GOOD))
    keep(table, "1-unread", NOON, judgement=None, error="0 bytes")
    keep(table, "2-0", NOON + timedelta(days=1), **BEND)
    keep(table, "3-0", NOON + timedelta(days=31))
    judge(table, "1-0", BEND)
    judge(table, "1-1", GOOD)
    judge(table, "1-2", BEND)
    judge(table, "1-3", BEND)
    judge(table, "1-3", GOOD)
    first = {"bucket": "2026-03-01", "inspected": 8, "defective": 2, "yield": 0.75}
    first |= {"judged": 4, "judged_defective": 2, "escapes": 1, "overkill": 1}
    nothing = {"judged": 0, "judged_defective": 0, "escapes": 0, "overkill": 0}
    second = {"bucket": "2026-03-02", "inspected": 1, "defective": 1, "yield": 0.0} | nothing
    third = {"bucket": "2026-04-01", "inspected": 1, "defective": 0, "yield": 1.0} | nothing
    assert table.outcomes() == [first, second, third]
    assert table.outcomes(since=NOON + timedelta(hours=1)) == [second, third]
    assert [(row["bucket"], row["inspected"]) for row in table.outcomes(bucket="month")] == [
        *(("2026-03", 9), ("2026-04", 1)),
    ]
    assert table.counts() == {
        **{"inspected": 10, "defective": 3, "errors": 1},
        **{"judged": 4, "judged_defective": 2, "escapes": 1, "overkill": 1},
    }
    with pytest.raises(ValueError, match="expected one of"):
        table.outcomes(bucket="fortnight")


def test_the_latest_captures_come_as_a_table_without_those_that_could_not_be_inspected(table):
    for number in range(5):
        keep(table, str(number), NOON + timedelta(seconds=number), p_defective=number / 10, brightness=None)
    keep(table, "unread", NOON + timedelta(minutes=1), error="0 bytes")
    latest = table.latest(3, ["p_defective", "brightness"])
    assert list(latest.columns) == ["p_defective", "brightness"]
    assert list(latest["p_defective"]) == [0.4, 0.3, 0.2]
    assert latest["brightness"].isna().all()
    assert list(table.latest(2, ["id", "error"])["id"]) == ["unread", "4"]
    assert list(table.latest(0, ["id"])["id"]) == []


def test_text_that_a_database_cannot_store_is_replaced_readably(table):
    keep(table, "a", file="camera \udcff\0.jpg", error="\ud800")
    assert table.get("a").file == "camera \\udcff\\0.jpg"
    assert table.get("a").error == "\\ud800"


def test_thousands_of_ids_are_looked_up(table):
    keep(table, "7")
    assert table.known(str(number) for number in range(5000)) == {"7"}
    assert table.known([]) == set()


def test_a_watched_capture_is_known_by_its_name_and_its_bytes():
    shas = [hashlib.sha256(content).hexdigest() for content in (b"1", b"2")]
    identities = {watch_id(name, sha256) for name in ("a.jpg", "b/a.jpg", "\udcff.jpg") for sha256 in shas}
    assert len(identities) == 6
    assert all(re.fullmatch(r"[\w-]{1,255}", id) for id in identities)
    assert watch_id("a.jpg", shas[0]) in identities


def test_results_are_stored_in_the_project_unless_the_settings_name_a_database(tmp_path):
    table = ResultsTable.of_project(tmp_path, StationSettings())
    keep(table, "a")
    assert (tmp_path / "data/station/results.db").is_file()
    elsewhere = StationSettings(results=f"sqlite:///{tmp_path}/new/folder/other.db")
    assert ResultsTable.of_project(tmp_path, elsewhere).get("a") is None
    assert ResultsTable.of_project(tmp_path, StationSettings()).get("a").id == "a"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "cannot be used as results table"),
        ("nosuch://x", "cannot be used as results table"),
        ("postgresql+pg8000://user:secret@127.0.0.1:9/x", r"\*\*\*@127.*driver is not .*; run pip install pg8000"),
        ("sqlite:///{folder}/text.db", "text.db: cannot be used as results table: file is not a database"),
        ("sqlite:///{folder}/text.db/results.db", "cannot be used as results table"),
    ],
)
def test_an_unusable_database_is_reported_in_one_line(tmp_path, url, message):
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(ResultsError, match=message) as caught:
        ResultsTable(url.format(folder=tmp_path))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_of_an_older_pinspect_gets_the_new_columns(tmp_path):
    url = f"sqlite:///{tmp_path}/results.db"
    older = ResultsTable(url)
    keep(older, "old")
    older.close()
    with sa.create_engine(url).begin() as connection:
        for index in ("sequence", "serial", "lot"):
            connection.execute(sa.text(f"DROP INDEX station_inspections_{index}"))
        connection.execute(sa.text("DROP TABLE station_counter"))
        for column in ("localizer_position", "localizer_disagrees", "pin_map", "sequence", "serial", "lot"):
            connection.execute(sa.text(f"ALTER TABLE station_inspections DROP COLUMN {column}"))
        connection.execute(sa.text("UPDATE station_schema SET version = 1"))
    table = ResultsTable(url)
    record = {"file": "a.jpg", "localizer_position": "X:2, Y:D", "localizer_disagrees": True, "pin_map": [0.5]}
    table.record(record, id="1", sha256="0" * 64, source="station", received=datetime.now(UTC))
    stored = table.get("1")
    assert (stored.localizer_position, stored.localizer_disagrees, stored.pin_map) == ("X:2, Y:D", True, (0.5,))
    assert (stored.sequence, table.get("old").sequence) == (1, None)
    with sa.create_engine(url).begin() as connection:
        assert connection.scalar(sa.text("SELECT version FROM station_schema")) == SCHEMA


def test_a_database_of_a_newer_pinspect_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/results.db"
    ResultsTable(url).close()
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text(f"UPDATE station_schema SET version = {SCHEMA + 1}"))
    with pytest.raises(ResultsError, match=f"schema {SCHEMA + 1}, this one reads up to {SCHEMA}.*update pinspect"):
        ResultsTable(url)


def test_a_lost_database_is_reported_in_one_line_and_used_again_once_it_is_back(tmp_path):
    table = ResultsTable(f"sqlite:///{tmp_path}/place/results.db")
    keep(table, "a")
    table.close()
    (tmp_path / "place").rename(tmp_path / "away")
    with pytest.raises(ResultsError, match="unable to open database file") as caught:
        table.get("a")
    assert "\n" not in str(caught.value)
    (tmp_path / "away").rename(tmp_path / "place")
    assert table.get("a").id == "a"


def test_a_picture_is_stored_once_under_its_sha256(tmp_path):
    store = PictureStore(tmp_path, 90, 10**9)
    sha256 = store.put(b"picture", ".JPG")
    assert sha256 == hashlib.sha256(b"picture").hexdigest()
    assert store.path(sha256) == tmp_path / f"data/station/pictures/{sha256[:2]}/{sha256}.jpg"
    assert store.path(sha256).read_bytes() == b"picture"
    assert store.put(b"picture", ".png") == sha256
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [store.path(sha256)]


@pytest.mark.parametrize("name", ["", "../../../params", "0" * 63, "0" * 64, "*" * 64, "0" * 63 + "/"])
def test_an_invalid_hash_finds_no_picture(tmp_path, name):
    store = PictureStore(tmp_path, 90, 10**9)
    store.put(b"picture", ".jpg")
    assert store.path(name) is None


@pytest.mark.parametrize("suffix", ["", "jpg", "./x", ".jpg/../../x", ".a b"])
def test_an_invalid_suffix_is_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match="expected a suffix"):
        PictureStore(tmp_path, 90, 10**9).put(b"picture", suffix)
    assert list(tmp_path.iterdir()) == []


def test_old_pictures_are_deleted_unless_they_were_stored_again(tmp_path):
    store = PictureStore(tmp_path, 30, 10**9)
    old, again, new = store.put(b"old", ".jpg"), store.put(b"again", ".jpg"), store.put(b"new", ".jpg")
    now = datetime.now(UTC)
    long_ago = (now - timedelta(days=31)).timestamp()
    partial = store.path(old).with_name(".partial-left-behind")
    partial.write_bytes(b"half")
    for path in (store.path(old), store.path(again), partial):
        os.utime(path, (long_ago, long_ago))
    store.put(b"again", ".jpg")
    assert store.prune(now) == 2
    assert [store.path(sha256) is None for sha256 in (old, again, new)] == [True, False, False]
    assert not partial.exists()
    assert store.prune(now) == 0


def test_the_oldest_pictures_beyond_the_bytes_to_keep_are_deleted(tmp_path):
    store, now = PictureStore(tmp_path, 30, keep_bytes=10), datetime.now(UTC)
    stored = [store.put(content, ".jpg") for content in (b"1" * 4, b"2" * 5, b"3" * 5)]
    for age, sha256 in enumerate(reversed(stored)):
        moment = (now - timedelta(hours=age)).timestamp()
        os.utime(store.path(sha256), (moment, moment))
    assert store.prune(now) == 1
    assert [store.path(sha256) is None for sha256 in stored] == [True, False, False]


def test_a_picture_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/station").write_text("in the way")
    with pytest.raises(ResultsError, match="data/station/pictures: cannot write a picture: Not a directory"):
        PictureStore(tmp_path, 30, 10**9).put(b"picture", ".jpg")


def test_pruning_deletes_old_inspections_with_their_verdicts_and_nothing_else(table):
    for days in (10, 3, 2):
        keep(table, f"{days} days", NOON - timedelta(days=days))
    judge(table, "10 days", BEND)
    judge(table, "2 days", BEND)
    limit = NOON - timedelta(days=2)
    assert table.prune(limit, dry_run=True) == 2
    assert len(table.list()) == 3
    assert table.prune(limit) == 2
    assert ids(table.list()) == ["2 days"]
    assert table.counts()["judged"] == 1
    assert table.prune(limit) == 0


def test_a_project_prunes_its_results_and_pictures_and_makes_no_table_for_it(tmp_path):
    (tmp_path / "settings.yaml").write_text("station: {}\n")
    assert prune_station(tmp_path, results_days=1) == {"results": 0, "pictures": 0}
    assert not list(tmp_path.rglob("*.db"))
    with contextlib.closing(ResultsTable.of_project(tmp_path, StationSettings())) as table:
        keep(table, "old", datetime.now(UTC) - timedelta(days=2))
        keep(table, "new", datetime.now(UTC))
        store = PictureStore(tmp_path, keep_days=1, keep_bytes=10)
        for content in (b"first", b"second"):
            store.put(content, ".jpg")
        (tmp_path / "settings.yaml").write_text("station: {keep_bytes: 10}\n")
        assert prune_station(tmp_path, results_days=1, dry_run=True) == {"results": 1, "pictures": 0}
        assert prune_station(tmp_path, results_days=1) == {"results": 1, "pictures": 1}
        assert ids(table.list()) == ["new"]
