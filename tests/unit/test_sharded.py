"""Folders with shards: archives hold the products, one door reads them, and a run touches only what has changed."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pandas as pd
import pytest

from pinspect.captures.incremental import Item, Product
from pinspect.captures.sharded import stage_folder
from pinspect.core.errors import CaptureError, StageInputError
from pinspect.core.manifests import MANIFEST, manifest_windows, read_manifest
from pinspect.core.product_files import has_product, read_product
from tests.support.sample import contents
from tests.support.states import read_hashes, write_hash

WORDS = [f"word {number}" for number in range(60)]


def file_of(word: str) -> str:
    sha256 = hashlib.sha256(word.encode()).hexdigest()
    return f"images/{sha256[:2]}/{sha256[:20]}.txt"


def make_upper_case(payload: str) -> Product:
    """A small stage: a product for each word, and a file of its own for some."""
    if payload == "stumble":
        raise CaptureError("stumble: cannot be used")
    file = file_of(payload)
    files = {file: payload.upper().encode()}
    if payload.endswith("0"):
        files[f"aside/{payload}.txt"] = payload.encode()
    return Product(files, {"file": file, "letters": len(payload)})


def make_list(payload: list[str]) -> Product:
    """An item of all shards."""
    return Product({file_of(word): word.encode() for word in payload}, {})


def run(path, words, *, shards=16, listed=(), make=make_upper_case) -> list[str]:
    """Run the stage once, four shards at a time; return the names of the items it made."""
    folder = stage_folder(path, shards)
    with folder:
        folder.map(make_list, [Item("list", tuple(listed), list(listed))], params=None, title="list")
        by_shard = {}
        for word in sorted(words):
            by_shard.setdefault(folder.shard(file_of(word)), []).append(word)
        order = sorted(by_shard)
        for start in range(0, len(order), 4):
            window = order[start : start + 4]
            items = [Item(word, (word,), word, shard) for shard in window for word in by_shard[shard]]
            records = folder.map(make, items, params=None, title="texts", workers=1)
            folder.write_manifest(pd.DataFrame(records))
            folder.settle(window)
    return folder.made


def times(path) -> dict[str, int]:
    return {file.relative_to(path).as_posix(): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def written(path, before: dict[str, int]) -> set[str]:
    return {name for name, time_ns in times(path).items() if before.get(name) != time_ns}


def archive(word: str) -> str:
    return f"images/{file_of(word)[7]}.zip"


@pytest.mark.parametrize("shards", [0, 16, 256, 4096])
def test_products_are_read_by_their_path_in_every_form(tmp_path, shards):
    run(tmp_path / "out", WORDS, shards=shards, listed=["listed"])
    for word in WORDS:
        assert read_product(tmp_path / "out" / file_of(word)) == word.upper().encode()
    assert read_product(tmp_path / "out" / file_of("listed")) == b"listed"
    with pytest.raises(FileNotFoundError):
        read_product(tmp_path / "out" / file_of("absent"))
    table = read_manifest(tmp_path / "out" / MANIFEST, ("letters", "file"))
    assert dict(zip(table["file"], table["letters"], strict=True)) == {file_of(word): str(len(word)) for word in WORDS}
    for is_there in (True, False):
        assert {has_product(tmp_path / "out" / file_of(word)) for word in WORDS} == {is_there}
        shutil.rmtree(tmp_path / "out/images", ignore_errors=True)
    windows = manifest_windows(tmp_path / "out" / MANIFEST, rows=10)
    parts = [read_manifest(tmp_path / "out" / MANIFEST, ("file",), window) for window in windows]
    assert sorted(file for part in parts for file in part["file"]) == sorted(map(file_of, WORDS))


def test_an_archive_that_is_replaced_is_read_anew(tmp_path):
    run(tmp_path / "out", WORDS)
    assert read_product(tmp_path / "out" / file_of("word 1"))
    run(tmp_path / "out", WORDS[2:])
    with pytest.raises(FileNotFoundError):
        read_product(tmp_path / "out" / file_of("word 1"))
    assert read_product(tmp_path / "out" / file_of("word 2")) == b"WORD 2"


def test_a_new_product_writes_its_own_shard_only_and_the_folder_equals_a_clean_one(tmp_path):
    run(tmp_path / "grown", [*WORDS, "gone"], listed=["listed"])
    before = times(tmp_path / "grown")
    assert run(tmp_path / "grown", [*WORDS, "gone"], listed=["listed"]) == []
    assert written(tmp_path / "grown", before) == {MANIFEST}
    assert run(tmp_path / "grown", [*WORDS, "new"], listed=["listed"]) == ["new"]
    assert {name for name in written(tmp_path / "grown", before) if name.endswith(".zip")} == {
        archive("new"),
        archive("gone"),
    }
    run(tmp_path / "clean", [*WORDS, "new"], listed=["listed"])
    assert contents(tmp_path / "grown") == contents(tmp_path / "clean")
    assert run(tmp_path / "grown", [], listed=[]) == ["list"]
    assert sorted(contents(tmp_path / "grown")) == [MANIFEST, "products/rest.jsonl"]


def test_archives_without_a_change_are_not_read(tmp_path):
    run(tmp_path / "out", WORDS, listed=["listed"])
    states = tmp_path / "out.states.sqlite"
    recorded = read_hashes(states)
    write_hash(states, tmp_path / "out" / archive("word 1"), "the hash of other bytes")
    before = times(tmp_path / "out")
    assert run(tmp_path / "out", WORDS, listed=["listed"]) == []  # this archive is read: its members are whole
    assert written(tmp_path / "out", before) == {MANIFEST, archive("word 1")}
    states.unlink()
    assert run(tmp_path / "out", WORDS, listed=["listed"]) == []
    assert read_hashes(states).keys() == recorded.keys()


@pytest.mark.parametrize("damage", ["a member", "its end", "lost"])
def test_a_damaged_archive_is_made_again(tmp_path, damage):
    run(tmp_path / "out", WORDS)
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / archive("word 1")
    with zipfile.ZipFile(path) as members:
        words = [members.read(name).decode().lower() for name in members.namelist()]
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(content.replace(b"WORD 1", b"WORD ?", 1) if damage == "a member" else content[:-30])
    if damage != "lost":
        with pytest.raises(OSError, match="the archive is damaged"):
            read_product(tmp_path / "out" / file_of("word 1"))
    made = run(tmp_path / "out", WORDS)
    assert "word 1" in made
    assert set(made) == set(words) if damage != "a member" else len(made) == 1
    assert contents(tmp_path / "out") == before


def test_a_failed_run_leaves_the_folder_as_it_was_and_is_resumed(tmp_path):
    run(tmp_path / "out", WORDS)
    before = contents(tmp_path / "out")
    more = [f"more {number}" for number in range(20)]
    with pytest.raises(CaptureError, match="stumble"):
        run(tmp_path / "out", [*WORDS, *more, "stumble"])
    assert contents(tmp_path / "out") == before
    waiting = [name for name in contents(tmp_path / "out.partial") if name.endswith(".txt")]
    assert all(name.startswith("aside/") for name in waiting)  # the others lie in an archive for each batch
    made = run(tmp_path / "out", [*WORDS, *more])
    assert len(made) < len(more)
    run(tmp_path / "clean", [*WORDS, *more])
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    assert not (tmp_path / "out.partial").exists()


def test_a_folder_without_shards_is_taken_over_without_making_products_again(tmp_path):
    run(tmp_path / "out", WORDS, shards=0)
    assert run(tmp_path / "out", WORDS) == []
    run(tmp_path / "clean", WORDS)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_part_that_is_missing_is_named(tmp_path):
    run(tmp_path / "out", WORDS)
    (tmp_path / "out/manifest/3.parquet").unlink()
    with pytest.raises(StageInputError, match=r"3.parquet: not found, but manifest.csv lists it"):
        read_manifest(tmp_path / "out" / MANIFEST, ("file",))


SLOW_STAGE = """
import hashlib, time
from pathlib import Path
import pandas as pd
from pinspect.captures.incremental import Item, Product
from pinspect.captures.sharded import stage_folder

def make_slowly(payload):
    time.sleep(0.1)
    return Product({payload: payload.encode()}, {"file": payload})

def main():
    folder = stage_folder(Path("out"), 16)
    with folder:
        for shard in "0123456789abcdef":
            files = [f"images/{shard}{number}/{shard}{number:019}.txt" for number in range(3)]
            items = [Item(file, (file,), file, shard) for file in files]
            folder.write_manifest(pd.DataFrame(folder.map(make_slowly, items, params=None, title="texts", workers=1)))
            folder.settle(shard)
    print(len(folder.made))

if __name__ == "__main__":
    main()
"""


def test_a_killed_run_is_resumed_and_ends_with_the_same_bytes(tmp_path):
    for place in ("killed", "clean"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "slow_stage.py").write_text(SLOW_STAGE)
    command = [sys.executable, "slow_stage.py"]
    first = subprocess.Popen(command, cwd=tmp_path / "killed", start_new_session=True)
    partial = tmp_path / "killed/out.partial"
    journal = partial / "products.jsonl"
    while not (partial / "products/2.jsonl").exists() or not (journal.exists() and journal.read_bytes()):
        assert first.poll() is None
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)  # in the middle of a window
    first.wait()
    resumed = subprocess.run(command, cwd=tmp_path / "killed", capture_output=True, text=True, check=True)
    clean = subprocess.run(command, cwd=tmp_path / "clean", capture_output=True, text=True, check=True)
    assert int(clean.stdout) == 48
    assert 0 < int(resumed.stdout) <= 48 - 9
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "clean/out")


def test_a_run_that_is_killed_while_it_moves_its_files_is_completed(tmp_path):
    more = [f"more {number}" for number in range(30)]
    run(tmp_path / "clean", [*WORDS, *more])
    run(tmp_path / "out", WORDS)
    old = tmp_path / "out"
    (old / MANIFEST).unlink()
    for name in (archive("more 1"), archive("more 2")):  # as if moved before the kill, unlike their journals
        (old / name).write_bytes((tmp_path / "clean" / name).read_bytes())
    run(old, [*WORDS, *more])
    assert contents(old) == contents(tmp_path / "clean")
