"""Hashes of files, of which only changed ones are read again."""

import hashlib
import os
import time

import pytest

from pinspect.captures.file_states import FileStates
from tests.support.states import read_hashes, write_hash

NAMES = ("pin.jpg", "row.jpg", os.fsdecode(b"l\xefne.jpg"))  # the last one is no UTF-8


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(os.fsencode(name))
    return tmp_path


def hashes_of(folder, names=NAMES) -> list[str | None]:
    """Return the hashes of files as a run sees them."""
    with FileStates(folder / "states.sqlite") as states:
        hashes = [states.sha256(folder / name) for name in names]
        states.save()
    return hashes


def expected(folder) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES]


def test_each_file_has_the_hash_of_its_bytes(folder):
    for _ in range(2):
        assert hashes_of(folder) == expected(folder)
    assert hashes_of(folder, ["none.jpg", "pin.jpg/row.jpg"]) == [None, None]


def test_an_unchanged_file_is_not_read_again(folder):
    with FileStates(folder / "states.sqlite") as states:
        assert states.recorded(folder / "row.jpg") is None
    hashes_of(folder)
    write_hash(folder / "states.sqlite", folder / "row.jpg", "the hash of other bytes")
    assert hashes_of(folder)[1] == "the hash of other bytes"
    with FileStates(folder / "states.sqlite") as states:
        assert states.recorded(folder / "row.jpg") == "the hash of other bytes"


def test_a_changed_file_of_the_same_size_and_time_is_read_again(folder):
    hashes_of(folder)
    times = (folder / "row.jpg").stat()
    time.sleep(0.05)  # longer than the clock of a file system
    (folder / "row.jpg").write_text("raw.jpg")
    os.utime(folder / "row.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hashes_of(folder) == expected(folder)


def test_only_files_of_the_last_run_are_remembered(folder):
    hashes_of(folder)
    hashes_of(folder, NAMES[1:])
    assert read_hashes(folder / "states.sqlite").keys() == {folder / name for name in NAMES[1:]}


def test_a_killed_run_loses_few_hashes(folder):
    (folder / "many").mkdir()
    files = [folder / f"many/{number}.jpg" for number in range(1500)]
    for file in files:
        file.write_text(file.name)
    with FileStates(folder / "states.sqlite") as states:  # closed without `save`
        for file in files:
            states.sha256(file)
    assert set(files[:1024]) == read_hashes(folder / "states.sqlite").keys()


def damage(path, content: bytes | None) -> None:
    """Write `content`, or cut a database in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3", b"no database", None])
def test_a_damaged_record_costs_a_reading_and_nothing_else(folder, content):
    record = folder / "states.sqlite"
    hashes_of(folder)
    before = read_hashes(record)
    damage(record, content)
    assert hashes_of(folder) == expected(folder)
    assert read_hashes(record) == before
