"""Hashes of many files, of which only changed ones are read again."""

import hashlib
import os
import time

import pandas as pd
import pytest

from pinspect.captures.file_states import hash_files

FILES = pd.Series(["pin.jpg", "row.jpg", "line.jpg"], index=[5, 3, 8])


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text(name)
    return tmp_path


def expected(folder) -> dict[int, str]:
    return {index: hashlib.sha256((folder / name).read_bytes()).hexdigest() for index, name in FILES.items()}


def test_each_file_has_the_hash_of_its_bytes(folder):
    record = folder / "states.parquet"
    for _ in range(2):
        assert hash_files(folder, FILES, record).to_dict() == expected(folder)


def test_an_unchanged_file_is_not_read_again(folder):
    record = folder / "states.parquet"
    hash_files(folder, FILES, record)
    recorded = pd.read_parquet(record).assign(sha256=["first", "second", "third"])
    recorded.to_parquet(record)
    assert hash_files(folder, FILES, record).to_list() == ["first", "second", "third"]
    assert hash_files(folder, FILES[::-1], record).to_list() == ["third", "second", "first"]


def test_a_changed_file_of_the_same_size_and_time_is_read_again(folder):
    record = folder / "states.parquet"
    hash_files(folder, FILES, record)
    times = (folder / "row.jpg").stat()
    time.sleep(0.05)  # longer than the clock of a file system
    (folder / "row.jpg").write_text("raw.jpg")
    os.utime(folder / "row.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_files(folder, FILES, record).to_dict() == expected(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_a_damaged_record_costs_a_reading_and_nothing_else(folder, content):
    record = folder / "states.parquet"
    hash_files(folder, FILES, record)
    before = record.read_bytes()
    record.write_bytes(content)
    assert hash_files(folder, FILES, record).to_dict() == expected(folder)
    assert record.read_bytes() == before


def test_no_files_have_no_hashes(folder):
    assert hash_files(folder, FILES[:0], folder / "states.parquet").empty
