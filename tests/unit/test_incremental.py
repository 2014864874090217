"""Incremental folders: only changed items are made again, and the result equals that of a clean run."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pinspect.captures.incremental import IncrementalFolder, Item, Product, code_version, source_files
from pinspect.core.errors import CaptureError
from tests.support.states import read_hashes, write_hash


def make_upper_case(payload: str) -> Product:
    """A small stage: one text file for each item."""
    name = f"texts/{payload[:1]}/{payload}.txt"
    return Product({name: payload.upper().encode()}, {"text": name, "letters": len(payload)})


def make_but_stumble(payload: str) -> Product:
    """Do the same, and fail at an unusable payload."""
    if payload == "stumble":
        raise CaptureError("stumble: cannot be used")
    return make_upper_case(payload)


def run(path: Path, words: list[str], make=make_upper_case, params: object = None, workers: int = 1) -> list[str]:
    """Run the stage once; return the names of the items it made."""
    folder = IncrementalFolder(path)
    with folder:
        items = [Item(word, (word,), word) for word in words]
        records = folder.map(make, items, params=params, title="texts", batch_size=2, workers=workers)
        folder.new_file("manifest.csv").write_text("".join(f"{record['text']}\n" for record in records))
    return folder.made


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def folders(path: Path) -> set[str]:
    return {str(folder.relative_to(path)) for folder in path.rglob("*") if folder.is_dir()}


def test_an_unchanged_run_makes_nothing(tmp_path):
    assert sorted(run(tmp_path / "out", ["pin", "row"])) == ["pin", "row"]
    assert run(tmp_path / "out", ["pin", "row"]) == []


def test_a_new_item_is_the_only_one_made(tmp_path):
    run(tmp_path / "out", ["pin", "row"])
    assert run(tmp_path / "out", ["pin", "column", "row"]) == ["column"]


@pytest.mark.parametrize("params", [{"size": 1}, {"size": 2, "more": True}])
def test_new_params_make_everything_again(tmp_path, params):
    run(tmp_path / "out", ["pin", "row"], params={"size": 2})
    assert sorted(run(tmp_path / "out", ["pin", "row"], params=params)) == ["pin", "row"]


def test_new_code_makes_everything_again(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small/letters.py").write_text("def size(word):\n    return len(word)\n")
    (tmp_path / "small/stage.py").write_text(SMALL_STAGE)
    made = []
    for edit in ("", "", "# edited\n"):
        with (tmp_path / "small/letters.py").open("a") as module:
            module.write(edit)
        command = [sys.executable, "-c", "from small import stage; print(stage.run())"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        made.append(int(result.stdout))
    assert made == [2, 0, 2]


def test_an_incremental_run_equals_a_clean_one_byte_for_byte(tmp_path):
    run(tmp_path / "grown", ["pin", "shell", "row"])
    run(tmp_path / "grown", ["row", "column", "pin"], workers=2)
    run(tmp_path / "grown", ["row", "address", "column", "pin"])
    run(tmp_path / "clean", ["row", "address", "column", "pin"], workers=2)
    assert contents(tmp_path / "grown") == contents(tmp_path / "clean")
    assert folders(tmp_path / "grown") == folders(tmp_path / "clean")


def test_orphans_are_pruned_with_their_empty_folders(tmp_path):
    run(tmp_path / "out", ["pin", "row"])
    (tmp_path / "out/texts/stray.txt").write_text("left by hand")
    run(tmp_path / "out", ["row"])
    assert set(contents(tmp_path / "out")) == {"texts/r/row.txt", "manifest.csv", "products.jsonl"}
    assert folders(tmp_path / "out") == {"texts", "texts/r"}


def test_a_lost_or_damaged_file_is_made_again(tmp_path):
    run(tmp_path / "out", ["pin", "row", "column"])
    (tmp_path / "out/texts/p/pin.txt").write_text("damaged")
    (tmp_path / "out/texts/r/row.txt").unlink()
    assert sorted(run(tmp_path / "out", ["pin", "row", "column"])) == ["pin", "row"]
    assert (tmp_path / "out/texts/p/pin.txt").read_text() == "PIN"


def test_a_damaged_file_of_the_same_size_and_time_is_made_again(tmp_path):
    run(tmp_path / "out", ["pin", "row"])
    damaged = tmp_path / "out/texts/p/pin.txt"
    times = damaged.stat()
    damaged.write_text("PAN")
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(tmp_path / "out", ["pin", "row"]) == ["pin"]
    assert run(tmp_path / "out", ["pin", "row"]) == []


def test_an_unchanged_file_is_not_read_again(tmp_path):
    run(tmp_path / "out", ["pin", "row"])
    write_hash(tmp_path / "out.states.sqlite", tmp_path / "out/texts/p/pin.txt", "the hash of other bytes")
    assert run(tmp_path / "out", ["pin", "row"]) == ["pin"]


@pytest.mark.parametrize("content", [None, "", "no database"])
def test_lost_or_damaged_states_cost_a_reading_and_nothing_else(tmp_path, content):
    run(tmp_path / "out", ["pin", "row"])
    states = tmp_path / "out.states.sqlite"
    before = read_hashes(states)
    assert before.keys() == {tmp_path / "out/texts/p/pin.txt", tmp_path / "out/texts/r/row.txt"}
    states.unlink() if content is None else states.write_text(content)
    assert run(tmp_path / "out", ["pin", "row"]) == []
    assert read_hashes(states) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_run_leaves_the_folder_as_it_was(tmp_path, workers):
    run(tmp_path / "out", ["pin", "row"], make=make_but_stumble)
    before = contents(tmp_path / "out")
    with pytest.raises(CaptureError, match="stumble: cannot be used"):
        run(tmp_path / "out", ["a", "b", "c", "d", "stumble"], make=make_but_stumble, workers=workers)
    assert contents(tmp_path / "out") == before


def test_a_failed_run_is_resumed(tmp_path):
    with pytest.raises(CaptureError):
        run(tmp_path / "out", ["a", "b", "c", "d", "stumble"], make=make_but_stumble)
    assert run(tmp_path / "out", ["a", "b", "c", "d", "e"], make=make_but_stumble) == ["e"]
    assert not (tmp_path / "out.partial").exists()


def test_two_items_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two items have the same name"):
        run(tmp_path / "out", ["pin", "pin"])


SMALL_STAGE = """
from pathlib import Path
from small.letters import size
from pinspect.captures.incremental import IncrementalFolder, Item, Product

def measure(word):
    return Product({}, {"size": size(word)})

def run():
    with IncrementalFolder(Path("out")) as folder:
        folder.map(measure, [Item(word, (word,), word) for word in ("pin", "row")], params=None, title="words")
    return len(folder.made)
"""

SLOW_STAGE = """
import time
from pathlib import Path
from pinspect.captures.incremental import IncrementalFolder, Item, Product

def make_slowly(payload):
    time.sleep(0.2)
    return Product({f"{payload}.txt": str(payload).encode()}, {"number": payload})

def main():
    folder = IncrementalFolder(Path("out"))
    with folder:
        items = [Item(f"{number:02}", (str(number),), number) for number in range(12)]
        records = folder.map(make_slowly, items, params=None, title="numbers", batch_size=1, workers=WORKERS)
        folder.new_file("manifest.csv").write_text(str(records))
    print(len(folder.made))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_is_resumed_and_ends_with_the_same_bytes(tmp_path, workers):
    for place in ("killed", "clean"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "slow_stage.py").write_text(SLOW_STAGE.replace("WORKERS", str(workers)))
    command = [sys.executable, "slow_stage.py"]
    first = subprocess.Popen(command, cwd=tmp_path / "killed", start_new_session=True)
    journal = tmp_path / "killed/out.partial/products.jsonl"
    while not journal.exists() or journal.read_text().count("\n") < 3:
        assert first.poll() is None
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    with journal.open("a") as file:
        file.write('{"name": "11", "fil')  # as after a write that was killed halfway
    assert not (tmp_path / "killed/out").exists()
    resumed = subprocess.run(command, cwd=tmp_path / "killed", capture_output=True, text=True, check=True)
    clean = subprocess.run(command, cwd=tmp_path / "clean", capture_output=True, text=True, check=True)
    assert int(clean.stdout) == 12
    assert 0 < int(resumed.stdout) <= 9
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "clean/out")


def test_the_code_version_covers_every_imported_module(tmp_path):
    for name, text in {
        "line/__init__.py": "",
        "line/start.py": "import other\nfrom line import near\nfrom line.far.deep import thing",
        "line/near.py": "def f():\n    import line.inside\n",
        "line/inside.py": "import line.near",
        "line/far/__init__.py": "",
        "line/far/deep.py": "thing = 1",
        "line/unused.py": "",
        "other/__init__.py": "",
        "other.py": "",  # beside the package, as in site-packages
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    sources = [str(path.relative_to(tmp_path)) for path in source_files(tmp_path / "line/start.py", tmp_path / "line")]
    assert sources[0] == "line/start.py"
    assert set(sources[1:]) == {  # line/__init__.py only exports names
        "line/near.py",
        "line/inside.py",
        "line/far/__init__.py",
        "line/far/deep.py",
    }


def test_the_code_version_of_a_partial_is_its_functions():
    assert code_version(functools.partial(make_upper_case, folder=Path())) == code_version(make_upper_case)
