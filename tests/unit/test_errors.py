"""What an entry point shows of an error."""

import sqlite3
from pathlib import Path

import pytest

from pinspect.core.errors import CaptureError, run
from pinspect.core.temporary_database import temporary_database


def fill_device() -> None:
    Path("/dev/full").write_text("x")


def fill_temporary_database() -> None:
    database = temporary_database("CREATE TABLE names (name TEXT); PRAGMA max_page_count = 4")
    database.executemany("INSERT INTO names VALUES (?)", (("x" * 1000,) for _ in range(100)))


def refuse() -> None:
    raise CaptureError("pin.jpg: not a photograph")


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (refuse, "pin.jpg: not a photograph\n"),
        (fill_device, "a file: the disk is full; free some space and run this again\n"),
        (
            fill_temporary_database,
            "a database or the folder SQLITE_TMPDIR: the disk is full; free some space and run this again\n",
        ),
    ],
)
def test_errors_that_are_no_defect_are_one_line(work, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(work)
    assert end.value.code == 2
    assert capsys.readouterr().err == message


def test_a_defect_keeps_its_traceback():
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        run(lambda: temporary_database("DROP TABLE names"))
    with pytest.raises(FileNotFoundError):
        run(Path("/nowhere").read_text)
