"""`pinspect watch`: real processes, some of them killed, on an inbox into which tests write as cameras do."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from pinspect.core import environment as quiet
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import ResultsTable
from pinspect.station.watch import Inbox, InboxError
from tests.support.sample import line, set_values
from tests.support.station_stack import PINSPECT, make_champion
from tests.support.waiting import until

CAPTURES = [capture.jpeg for capture in line(seed=8, train=10, references=5)]
PATIENCE = 60


@pytest.fixture
def inbox(tmp_path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path}/results.db"


class Watch:
    """A running `pinspect watch --json`."""

    def __init__(self, project: Path, inbox: Path, url: str, *options: str):
        command = [PINSPECT, "watch", inbox, "--results", url, "--json", *options]
        environment = os.environ | quiet.SETTINGS | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, cwd=project, env=environment, stdout=-1, stderr=-1, text=True)
        self.records: list[dict] = []
        self.messages: list[str] = []
        self._readers = [
            threading.Thread(target=lambda: self.records.extend(map(json.loads, self.process.stdout))),
            threading.Thread(target=lambda: self.messages.extend(self.process.stderr)),
        ]
        for reader in self._readers:
            reader.start()

    def wait_until(self, true) -> None:
        def state() -> bool:
            if true():
                return True
            assert self.process.poll() is None, self.messages
            return False

        until(state, "a state of the watcher", longest=0.05)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        code = self.process.wait(timeout=600)
        for reader in self._readers:
            reader.join()
        return code


@contextlib.contextmanager
def watching(*arguments):
    running = Watch(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.ended()


def kept(url: str) -> list:
    table = ResultsTable(url)
    try:
        return table.list(limit=1000)
    finally:
        table.close()


def put(inbox: Path, name: str, content: bytes) -> None:
    (inbox / name).parent.mkdir(parents=True, exist_ok=True)
    (inbox / name).write_bytes(content)


# Scanning: which files are complete.


def test_a_file_is_ready_once_unchanged_for_the_settle_time(inbox):
    watched = Inbox(inbox, settle=0.3, patience=10)
    put(inbox, "a.jpg", b"1")
    assert watched.scan() == []
    time.sleep(0.35)
    put(inbox, "a.jpg", b"12")
    assert watched.scan() == []
    time.sleep(0.35)
    assert watched.scan() == ["a.jpg"]
    watched.done("a.jpg")
    assert watched.scan() == []
    assert watched.unfinished == []
    put(inbox, "a.jpg", b"123")
    assert watched.scan() == []
    time.sleep(0.35)
    assert watched.scan() == ["a.jpg"]


def test_a_file_that_changes_before_it_is_read_is_not_ready(inbox):
    watched = Inbox(inbox, settle=0, patience=10)
    put(inbox, "a.jpg", b"1")
    assert watched.scan() == ["a.jpg"]
    put(inbox, "a.jpg", b"12")
    assert watched.read("a.jpg", 1000) is None
    assert watched.sha256("a.jpg") is None
    watched.scan()
    assert watched.read("a.jpg", 1000)[0].content == b"12"
    (inbox / "a.jpg").unlink()
    assert watched.sha256("a.jpg") is None
    assert watched.scan() == watched.unfinished == []


def test_another_picture_of_the_same_size_and_time_is_ready_again(inbox):
    watched = Inbox(inbox, settle=0, patience=10)
    put(inbox, "a.jpg", b"1")
    assert watched.scan() == ["a.jpg"]
    watched.done("a.jpg")
    status = (inbox / "a.jpg").stat()
    put(inbox, "a.jpg", b"2")
    os.utime(inbox / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert watched.scan() == ["a.jpg"]


def test_a_damaged_file_is_retried_until_patience_ends_or_it_changes(inbox):
    watched = Inbox(inbox, settle=0, patience=3)
    put(inbox, "a.jpg", b"half")
    assert watched.scan() == ["a.jpg"]
    assert not watched.gives_up("a.jpg")
    assert watched.scan() == []
    put(inbox, "a.jpg", b"half and half")
    assert watched.scan() == ["a.jpg"]
    assert not watched.gives_up("a.jpg")
    time.sleep(3.1)
    assert watched.scan() == ["a.jpg"]
    assert watched.gives_up("a.jpg")


def test_temporary_names_and_other_files_are_ignored_and_folders_are_searched(inbox):
    for name in ("1.jpg.part", "2.tmp", ".3.jpg", ".git/4.jpg", "5.txt", "6.jpg.tmp"):
        put(inbox, name, b"1")
    put(inbox, "day/shift/7.JPG", b"1")
    put(inbox, "8.png", b"1")
    os.utime(inbox / "8.png", (0, 0))
    (inbox / "9.jpg").mkdir()
    assert Inbox(inbox, settle=0, patience=0).scan() == ["8.png", "day/shift/7.JPG"]  # oldest first


def test_a_vanished_inbox_is_an_error(inbox):
    watched = Inbox(inbox, settle=0, patience=0)
    put(inbox, "1.jpg", b"1")
    assert watched.scan() == ["1.jpg"]
    shutil.move(inbox, inbox.with_name("away"))
    with pytest.raises(InboxError, match="inbox: the folder cannot be read: No such file or directory"):
        watched.scan()
    shutil.move(inbox.with_name("away"), inbox)
    assert watched.scan() == ["1.jpg"]


# Watching: real processes.


def test_once_inspects_the_inbox_and_ends_with_the_exit_code_of_inspect(registered, inbox, url):
    put(inbox, "1.jpg", CAPTURES[0])
    put(inbox, "day/2.jpg", CAPTURES[1])
    put(inbox, "day/3.jpg", CAPTURES[1])  # the same bytes under another name
    put(inbox, "cut.jpg", CAPTURES[2][:3000])
    put(inbox, "empty.png", b"")
    set_values(registered, "station", names=r"(?P<lot>\w+)/(?P<serial>\d+)")
    with watching(registered, inbox, url, "--once", "--patience", "2") as watch:
        assert watch.ended() == 2
    inspections = {inspection.file: inspection for inspection in kept(url)}
    assert set(inspections) == {"1.jpg", "day/2.jpg", "day/3.jpg", "cut.jpg", "empty.png"}
    assert {name for name, inspection in inspections.items() if inspection.error} == {"cut.jpg", "empty.png"}
    assert (inspections["day/3.jpg"].lot, inspections["day/3.jpg"].serial) == ("day", "3")
    assert inspections["1.jpg"].serial is None
    assert {(inspection.source, inspection.model_version) for inspection in inspections.values()} == {("watch", "1")}
    assert inspections["1.jpg"].seconds > 0
    assert len(inspections["1.jpg"].address_probabilities) == 27
    assert {record["id"] for record in watch.records} == {inspection.id for inspection in inspections.values()}
    store = PictureStore(registered, 90, 10**9)
    assert store.path(inspections["1.jpg"].sha256).read_bytes() == CAPTURES[0]


def test_a_watcher_inspects_each_complete_file_and_ends_by_a_signal(registered, inbox, url):
    with watching(registered, inbox, url, "--patience", str(PATIENCE)) as watch:
        watch.wait_until(lambda: watch.messages == ["version 1 inspects\n"])
        put(inbox, "whole.jpg", CAPTURES[0])
        with (inbox / "slow.jpg").open("wb") as camera:  # pauses for longer than the settle time
            camera.write(CAPTURES[1][:4000])
            camera.flush()
            watch.wait_until(lambda: len(watch.records) == 1)
            put(inbox, "later.jpg", CAPTURES[2])
            watch.wait_until(lambda: len(watch.records) == 2)
            camera.write(CAPTURES[1][4000:])
        watch.wait_until(lambda: len(watch.records) == 3)
        put(inbox, "whole.jpg", CAPTURES[3])  # changed in place: a new capture
        watch.wait_until(lambda: len(watch.records) == 4)
        second = Watch(registered, inbox, url)
        assert second.ended() == 2
        assert second.messages == [f"{inbox}: another pinspect watch is running on this folder; stop it first\n"]
        assert watch.end(signal.SIGTERM) == 0
    assert [record["file"] for record in watch.records] == ["whole.jpg", "later.jpg", "slow.jpg", "whole.jpg"]
    assert [record["error"] for record in watch.records] == [None] * 4
    assert Counter(inspection.id for inspection in kept(url)) == Counter(record["id"] for record in watch.records)
    assert sorted(path.name for path in inbox.iterdir()) == ["later.jpg", "slow.jpg", "whole.jpg"]


def test_every_file_is_inspected_once_however_often_the_watcher_is_killed(registered, inbox, url):
    count = 72  # so many that killed watchers leave some of them
    for number in range(count):
        put(inbox, f"{number}.jpg", CAPTURES[number % 20] + bytes([number]))  # decoders ignore the byte after a JPEG
    records = []
    for _ in range(2):
        with watching(registered, inbox, url) as watch:
            before = len(kept(url))
            watch.wait_until(lambda before=before: len(kept(url)) > min(before, count - 1))
            time.sleep(random.uniform(0, 0.5))
            watch.end(signal.SIGKILL)
        records += watch.records
    with watching(registered, inbox, url, "--once") as watch:
        assert watch.ended() == (1 if watch.records else 0)
    records += watch.records
    counts = Counter(inspection.file for inspection in kept(url))
    assert counts == {f"{number}.jpg": 1 for number in range(count)}
    assert max(Counter(record["id"] for record in records).values()) == 1
    assert {record["id"] for record in records} <= {inspection.id for inspection in kept(url)}


def test_a_new_champion_takes_over_and_a_broken_one_does_not(registered, inbox, url):
    set_values(registered, "station", champion_check_seconds=1.0)
    with watching(registered, inbox, url) as watch:
        watch.wait_until(lambda: watch.messages == ["version 1 inspects\n"])
        put(inbox, "1.jpg", CAPTURES[0])
        watch.wait_until(lambda: len(watch.records) == 1)
        make_champion(registered, "2")
        watch.wait_until(lambda: "version 2 inspects\n" in watch.messages)
        put(inbox, "2.jpg", CAPTURES[1])
        watch.wait_until(lambda: len(watch.records) == 2)
        with broken(registered, "1"):
            make_champion(registered, "1")
            watch.wait_until(lambda: len(watch.messages) == 3)
            put(inbox, "3.jpg", CAPTURES[2])
            watch.wait_until(lambda: len(watch.records) == 3)
        assert watch.end(signal.SIGINT) == 0
    assert [record["model_version"] for record in watch.records] == ["1", "2", "2"]
    assert re.search("version 1, the champion.* cannot be loaded.*; still watching\n", watch.messages[2])


def test_an_invalid_inbox_or_results_table_is_reported_in_one_line(registered, tmp_path, inbox):
    (tmp_path / "text.db").write_text("no database " * 100)
    for arguments, message in (
        ((tmp_path / "nowhere", "sqlite://"), f"{tmp_path}/nowhere: not a folder"),
        ((inbox, f"sqlite:///{tmp_path}/text.db"), "text.db: cannot be used as results table: file is not a database"),
    ):
        with watching(registered, *arguments) as watch:
            assert watch.ended() == 2
        assert len(watch.messages) == 1
        assert message in watch.messages[0]


@contextlib.contextmanager
def broken(project: Path, version: str):
    """A version whose adapter has lost its weights."""
    with open_registry(project, load_register_settings(project)) as client:
        stored = Path(client.get_model_version_download_uri("pin-inspector", version).removeprefix("file://"))
    weights = next(stored.rglob("adapter_model.safetensors"))
    away = weights.rename(weights.with_suffix(".away"))
    try:
        yield
    finally:
        away.rename(weights)
