"""The database of the results table: where it lies, and what is reported if it cannot be used."""

import contextlib
import re
import sys
from datetime import UTC, datetime, timedelta

import pytest

from pinspect.station.picture_store import PictureStore
from pinspect.station.pruning import prune_station
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import ResultsError
from pinspect.station.settings import StationSettings
from tests.support.results import ids, keep


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
        (
            "postgresql+pg8000://u:secret@127.0.0.1:9/x",
            r"u:\*\*\*@.*: expected sqlite:///FILE or postgresql://USER@HOST/",
        ),
        ("postgresql://u:secret@127.0.0.1:9/x", r"u:\*\*\*@127.0.0.1:9/x: cannot be used .* Connection refused"),
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


def test_a_missing_driver_is_reported_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)  # Python then finds no such package
    message = (
        "postgresql+psycopg://u:***@h/x: the database driver is not installed; run pip install 'pinspect[postgres]'"
    )
    with pytest.raises(ResultsError, match=f"^{re.escape(message)}$"):
        ResultsTable("postgresql://u:secret@h/x")


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
