"""The stored pictures: real files, none damaged or too old."""

import hashlib
import os
from datetime import UTC, datetime, timedelta

import pytest

from pinspect.station.picture_store import PictureStore
from pinspect.station.results_database import ResultsError


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
