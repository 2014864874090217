"""`pinspect inspect`: files, folders and globs, streamed, annotated; on a real registered version."""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
from itertools import count

import numpy as np
import pytest
from PIL import Image

from pinspect.cli import main as cli
from pinspect.cli.inspect import print_records
from pinspect.core.answers import FIELDS
from pinspect.core.errors import CaptureError, ImageError
from pinspect.inspection.annotate import RED, AnnotatedPictures
from pinspect.inspection.files import find_images, read_photograph
from pinspect.inspection.line_facts import LINE_FACTS
from pinspect.inspection.photograph_inspector import BATCH
from pinspect.inspection.records import LOCALIZER, SCORES
from pinspect.inspection.stream import inspect_files
from pinspect.registry import loading
from pinspect.registry.loading import load_inspector
from tests.support.sample import contents
from tests.support.station_stack import PINSPECT

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def images(registered):
    """Images of the project's captures, references first."""
    return sorted((registered / "data/captures/images").iterdir())


@pytest.fixture(scope="module")
def inspector(registered):
    """The registered version, loaded once for all commands: a process of its own takes seconds to start."""
    with contextlib.closing(load_inspector(project=registered)) as loaded:
        yield loaded


@pytest.fixture
def pinspect(registered, inspector, monkeypatch, capsys):
    """Run the command line in the project folder; return exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(registered)
        monkeypatch.setattr(loading, "load_inspector", lambda alias: inspector)
        monkeypatch.setattr(sys, "argv", ["pinspect", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


def touch(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def listed(folder, *patterns: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images([f"{folder}/{pattern}" for pattern in patterns])]


def test_folders_mean_all_images_below_them_in_alphabetical_order(tmp_path):
    touch(
        tmp_path,
        "b.jpg",
        "a/2.PNG",
        "a/10.tiff",
        "a/deep/er/1.webp",
        "c.txt",
        ".hidden.jpg",
        ".git/x.jpg",
        "labels.csv",
    )
    touch(tmp_path, "a/1.jpg.annotated.jpg")
    assert listed(tmp_path, "") == ["a/10.tiff", "a/2.PNG", "a/deep/er/1.webp", "b.jpg"]


def test_a_quoted_glob_means_the_images_that_it_matches(tmp_path):
    touch(tmp_path, "day1/1.jpg", "day1/1.txt", "day2/2.jpg", "day2/deep/3.jpg", "other/4.jpg", "[1].jpg", "1.jpg")
    assert listed(tmp_path, "day*/*.jpg") == ["day1/1.jpg", "day2/2.jpg"]
    assert listed(tmp_path, "day*") == ["day1/1.jpg", "day2/2.jpg", "day2/deep/3.jpg"]
    assert listed(tmp_path, "day2/**") == ["day2/2.jpg", "day2/deep/3.jpg"]
    assert listed(tmp_path, "[1].jpg") == ["[1].jpg"]  # an existing file of this name is not treated as a pattern


def test_files_keep_the_order_of_the_arguments_even_if_missing(tmp_path):
    touch(tmp_path, "folder/1.jpg", "capture.dat")
    (tmp_path / "empty").mkdir()
    patterns = ["gone.jpg", "folder", "capture.dat", "empty", "*.png"]
    assert listed(tmp_path, *patterns) == ["gone.jpg", "folder/1.jpg", "capture.dat", "empty", "*.png"]


def test_no_files_to_inspect_is_an_error_before_a_model_is_loaded(tmp_path, pinspect):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptureError, match=r"empty, .*png: no image found; expected .*\.jpg"):
        find_images([f"{tmp_path}/empty", f"{tmp_path}/*.png"])
    code, out, err = pinspect("inspect", tmp_path / "empty")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no image found" in err


def test_each_unreadable_file_has_its_own_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(20 * MAX_PIXELS)
    reasons = {
        "pipe.jpg": "a device or a pipe, not a file",
        "link.jpg": "not found",
        "huge.jpg": "20000000 bytes are more than raw.max_pixels allows",
        "": "a folder without an image",
        "a" * 300 + ".jpg": "cannot be read: File name too long",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            read_photograph(tmp_path / name, MAX_PIXELS)
        assert list(find_images([str(tmp_path / name)])) == [tmp_path / name] if name else True


def test_a_capture_that_cannot_be_inspected_gives_an_error_record_and_the_others_answers(tmp_path, images, pinspect):
    shutil.copy(images[-1], tmp_path / "a.jpg")
    shutil.copy(images[-2], tmp_path / "z.jpg")
    (tmp_path / "b-text.jpg").write_text("no picture")
    touch(tmp_path, "c-empty.png")
    (tmp_path / "d-cut.jpg").write_bytes(images[-1].read_bytes()[:5000])
    Image.new("RGB", (640, 480)).save(tmp_path / "e-black.png")
    code, out, err = pinspect("inspect", "--json", tmp_path, tmp_path / "gone.jpg")
    records = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    names = ["a.jpg", "b-text.jpg", "c-empty.png", "d-cut.jpg", "e-black.png", "z.jpg", "gone.jpg"]
    assert [record["file"] for record in records] == [str(tmp_path / name) for name in names]
    assert [bool(record["error"]) for record in records] == [False, True, True, True, True, False, True]
    columns = {"file", *FIELDS, "answer", *SCORES, *LOCALIZER, *LINE_FACTS, "error", "model_version", "seconds"}
    for record in records:
        assert set(record) == columns
        assert record["model_version"] == "1"
        if record["error"]:
            assert record["error"].startswith(record["file"])
            assert record["judgement"] is record["p_defective"] is None
        else:
            assert len(record["address_probabilities"]) == 27
            assert record["seconds"] > 0


def test_the_table_shows_the_same_as_json(tmp_path, images, pinspect, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shutil.copy(images[-1], tmp_path / "[bold]1.jpg")
    code, out, err = pinspect("inspect", tmp_path)
    assert (code, err) == (1, "")  # an adapter of two steps answers defective to everything
    flat = "".join(out.split()).replace("│", "")
    assert "P(defective)" in flat
    assert "[bold]1.jpg" in "".join(line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│"))


def test_files_are_read_only_as_records_are_consumed(inspector, images):
    taken = []
    endless = (taken.append(number) or images[number % len(images)] for number in count())
    records = inspect_files(inspector, endless)
    for number in range(BATCH + 1):
        assert next(records)["file"] == str(images[number % len(images)])
    assert len(taken) == 2 * BATCH


@pytest.mark.parametrize("as_json", [True, False])
def test_records_are_printed_as_they_arrive_and_returned(as_json, capsys):
    endless = (
        {"file": f"{number}.jpg", "judgement": "passed", "defect_mode": "", "defect_position": "", "error": None}
        | {"p_defective": 0.25, "localizer_position": "X:2, Y:D", "localizer_disagrees": number % 2 == 0}
        for number in count()
    )
    printed = print_records(endless, as_json=as_json)
    assert [next(printed)["file"] for _ in range(100)] == [f"{number}.jpg" for number in range(100)]
    out = capsys.readouterr().out
    assert "40.jpg" in out
    lines = {line.split()[1]: line for line in out.splitlines() if len(line.split()) > 1}
    assert as_json or ("X:2, Y:D" in lines["40.jpg"] and "X:2, Y:D" not in lines["41.jpg"])
    printed.close()


def test_annotated_pictures_box_the_defect_and_leave_the_captures_alone(tmp_path, images, registered, pinspect):
    for day in ("monday", "tuesday"):
        (tmp_path / day).mkdir()
        shutil.copy(images[-1], tmp_path / day / "1.jpg")
        Image.open(images[-2]).save(tmp_path / day / "1.png")
    touch(tmp_path, "monday/empty.jpg")
    inside = registered / "data/captures/images" / images[0].name
    before, kept = contents(tmp_path), inside.read_bytes()
    out = tmp_path / "out/annotated"
    code, output, _ = pinspect(
        "inspect", "--json", "--annotate", out, tmp_path / "monday", tmp_path / "tuesday", inside
    )
    written = {path.relative_to(out): path for path in out.rglob("*") if path.is_file()}
    assert code == 2
    assert len(written) == 5
    assert written.keys() >= {(inside.relative_to(registered)).with_name(f"{inside.name}.annotated.jpg")}
    assert {str(path)[:6] for path in written} == {"data/c", "monday", "tuesda"}
    assert {name: content for name, content in contents(tmp_path).items() if name in before} == before
    assert inside.read_bytes() == kept
    records = {record["file"]: record for record in map(json.loads, output.splitlines())}
    record = records[str(tmp_path / "monday/1.png")]
    place = next(path for name, path in written.items() if str(name).startswith("monday") and name.suffix == ".png")
    picture, original = (np.asarray(Image.open(path).convert("RGB")) for path in (place, tmp_path / "monday/1.png"))
    boxed = np.argwhere((picture[: original.shape[0]] != original).any(axis=2))
    assert len(boxed) > 100
    assert {tuple(picture[y, x]) for y, x in boxed} == {RED}
    # Pins are evenly spaced, so the middle of the box lies in the third of the picture that holds its row.
    column, row = int(record["defect_position"][2]), "UCD".index(record["defect_position"][-1])
    middle = boxed.mean(axis=0) / original.shape[:2]
    assert int(middle[0] * 3) == row
    assert abs(middle[1] - (column - 0.5) / 9) < 0.08
    assert (tuple(picture[-1, -1])) == RED

    code, output, _ = pinspect("inspect", "--json", "--annotate", out, tmp_path)
    again = [json.loads(line)["file"] for line in output.splitlines()]
    assert len(again) == 5
    assert not [name for name in again if ".annotated." in name]


def test_no_two_captures_share_an_annotated_picture(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pictures = AnnotatedPictures(tmp_path / "out")
    paths = ["1.jpg", "1.png", "1", "1.dat", "a/1.jpg", "../a/1.jpg", "../b/1.jpg", "../b/a/1.jpg", "/1.jpg"]
    places = [pictures.place(type(tmp_path)(path)) for path in paths]
    assert len(set(places)) == len(paths)
    assert not [place for place in places if place.is_absolute() or ".." in place.parts]
    assert pictures.place(tmp_path / "here/a/1.jpg") == places[4]


def test_an_unwritable_output_folder_is_reported_in_one_line(tmp_path, images, pinspect):
    (tmp_path / "file").write_text("in the way")
    code, out, err = pinspect("inspect", images[0], "--annotate", tmp_path / "file/out")
    assert (code, out) == (2, "")
    assert err == f"{tmp_path}/file/out: cannot be written: Not a directory; name another --annotate\n"


def test_progress_is_shown_to_a_terminal_and_never_in_the_json(registered, images):
    ours, theirs = pty.openpty()
    command = [PINSPECT, "inspect", "--json", images[0], images[1]]
    with subprocess.Popen(command, cwd=registered, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
        out = process.stdout.read()
    os.close(ours)
    assert [json.loads(line)["file"] for line in out.splitlines()] == [str(images[0]), str(images[1])]
    assert b"inspected" in shown
    assert b"/2" in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the terminal's other end is closed
        return b""
