"""The results table: real databases, several processes, some of them killed; its migrations."""

import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from pinspect.core.postgres import with_driver
from pinspect.station.migrations import VERSION_TABLE
from pinspect.station.results import Correction, ResultsTable, watch_id
from pinspect.station.results_database import ResultsError
from pinspect.station.results_tables import metadata
from tests.support.results import BEND, GOOD, NOON, SHA256, ids, judge, keep


@pytest.fixture
def results_url(tmp_path) -> str:
    """An empty database. `tests/system/test_results_on_postgres.py` runs the tests of this file with another one."""
    return f"sqlite:///{tmp_path}/results.db"


@pytest.fixture
def table(results_url):
    opened = ResultsTable(results_url)
    yield opened
    opened.close()


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


def test_an_id_written_by_many_processes_is_stored_once(results_url):
    code = (
        "import sys; from datetime import UTC, datetime; from pinspect.station.results import ResultsTable\n"
        "sys.stdin.readline()\n"
        f"table = ResultsTable({results_url!r})\n"
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
    table = ResultsTable(results_url)
    assert sorted(ids(table.list(limit=100)), key=int) == [str(i) for i in range(40)]
    assert [inspection.sequence for inspection in table.after(0, 100)] == [*range(1, 41)]


def test_every_result_that_was_accepted_survives_a_kill(results_url):
    code = (
        "import itertools; from datetime import UTC, datetime; from pinspect.station.results import ResultsTable\n"
        f"table = ResultsTable({results_url!r})\n"
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
    table = ResultsTable(results_url)
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


# Migrations.


@contextlib.contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(with_driver(url))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def differences(url: str) -> list:
    """Return how the tables of a database differ from those that the code uses."""
    with connected(url) as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}), metadata)


def make_older(url: str, schema: int) -> None:
    """Make the tables those of an earlier pinspect, which had a number of its schema instead of revisions."""
    statements = [
        f"DROP TABLE {VERSION_TABLE}",
        "CREATE TABLE station_schema (version INTEGER NOT NULL PRIMARY KEY)",
        f"INSERT INTO station_schema VALUES ({schema})",
    ]
    if schema == 1:
        statements += [f"DROP INDEX station_inspections_{name}" for name in ("sequence", "serial", "lot")]
        columns = ("localizer_position", "localizer_disagrees", "pin_map", "sequence", "serial", "lot")
        statements += [f"ALTER TABLE station_inspections DROP COLUMN {name}" for name in columns]
        statements += ["DROP TABLE station_counter", "DROP TABLE station_receivers"]
    with connected(url) as connection:
        for statement in statements:
            connection.execute(sa.text(statement))


def test_the_migrations_make_the_tables_that_the_code_uses(results_url):
    ResultsTable(results_url).close()
    assert differences(results_url) == []
    with connected(results_url) as connection:
        connection.execute(sa.text("ALTER TABLE station_receivers DROP COLUMN error"))
    assert [difference[0] for difference in differences(results_url)] == ["add_column"]


@pytest.mark.parametrize(("schema", "sequences"), [(1, [None, 1]), (4, [1, 2])])
def test_tables_of_a_pinspect_without_migrations_are_brought_up_to_date(results_url, schema, sequences):
    with contextlib.closing(ResultsTable(results_url)) as table:
        keep(table, "old")
    make_older(results_url, schema)
    with contextlib.closing(ResultsTable(results_url)) as table:
        keep(table, "new", NOON + timedelta(hours=1), pin_map=[0.5], serial="S1")
        assert [(i.id, i.sequence) for i in table.each()] == [*zip(("old", "new"), sequences, strict=True)]
        assert (table.get("new").pin_map, table.get("new").serial) == ((0.5,), "S1")
    assert differences(results_url) == []


def test_tables_of_a_newer_pinspect_or_of_one_that_was_never_released_are_left_alone(results_url):
    ResultsTable(results_url).close()
    with connected(results_url) as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9000'"))
    with pytest.raises(
        ResultsError, match=r"revision 9000 of a newer pinspect, this one reads up to \d+; update"
    ) as error:
        ResultsTable(results_url)
    assert "\n" not in str(error.value)
    make_older(results_url, schema=3)
    with pytest.raises(ResultsError, match="schema 3 of a pinspect that was never released"):
        ResultsTable(results_url)


def test_a_migration_that_fails_changes_nothing(results_url):
    with connected(results_url) as connection:
        connection.execute(sa.text("CREATE TABLE station_receivers (name INTEGER)"))  # the last table of a revision
    with pytest.raises(ResultsError, match=r"station_receivers.* already exists") as error:
        ResultsTable(results_url)
    assert "\n" not in str(error.value)
    with connected(results_url) as connection:
        assert sa.inspect(connection).get_table_names() == ["station_receivers"]
