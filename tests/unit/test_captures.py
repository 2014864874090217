"""Adding captures: every mistake is one line of the error, and captures are added completely or not at all."""

import errno
import io
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from pinspect.captures.adding import add_captures
from pinspect.captures.labels import conflicting_labels, read_captures
from pinspect.core.errors import CaptureError
from tests.support.sample import ROOT, contents, drop, line, params, read_labels, write_labels

CONTRACT = params().contract()


def add(source, folder, shape=""):
    return add_captures(source, folder, CONTRACT, max_pixels=1_000_000, shape=shape)


@pytest.fixture
def here(tmp_path):
    """A captures folder with four captures."""
    return drop(tmp_path / "captures", line()[:4])


@pytest.fixture
def new(tmp_path):
    """A folder with three captures to add; the first one is defective."""
    defective_first = sorted(line()[4:], key=lambda capture: capture.judgement)
    return drop(tmp_path / "new", defective_first[:3])


def one_problem(folder, **kwargs) -> str:
    problems = read_captures(folder, CONTRACT, **kwargs).problems
    assert len(problems) == 1, problems
    return problems[0]


def change(folder, number, **cells):
    rows = read_labels(folder)
    rows[number] |= cells
    write_labels(folder, rows)


def test_the_sample_line_is_without_a_problem():
    labels = read_captures(ROOT / "data/captures", CONTRACT)
    assert not labels.problems
    assert len(labels.captures) == 200
    assert sum(capture.role == "reference" for capture in labels.captures) == 20


def test_captures_come_in_the_order_of_their_rows(new):
    rows = list(reversed(read_labels(new)))
    write_labels(new, rows)
    assert [capture.file for capture in read_captures(new, CONTRACT).captures] == [label["file"] for label in rows]


def test_all_problems_are_reported_at_once(new):
    change(new, 0, shape="HEXA", role="golden")
    change(new, 2, judgement="maybe")
    problems = read_captures(new, CONTRACT).problems
    assert [problem.partition(" (")[0].rpartition(", ")[2] for problem in problems] == ["row 2", "row 2", "row 4"]
    assert len(read_captures(new, CONTRACT).captures) == 1


@pytest.mark.parametrize(
    ("name", "judgement", "mode"),
    [
        ("left_NORMAL_3_2_484_483_89_0_0_OK.jpg", "passed", "passed"),
        ("camera0_0_375_421_89_0_0_BENDNG.png", "defective", "bend"),
        ("camera0_CT004_308_588_101_0_0_RETRACT.jpg", "defective", "retract"),
    ],
)
def test_names_of_the_public_series_fill_empty_labels(new, name, judgement, mode):
    old = new / "images" / read_labels(new)[0]["file"]
    old.rename(old.with_name(name))
    change(new, 0, file=name, judgement="", defect_mode="", defect_position="X:3, Y:U" if mode != "passed" else "")
    labels = read_captures(new, CONTRACT)
    assert not labels.problems
    assert (labels.captures[0].judgement, labels.captures[0].defect_mode) == (judgement, mode)


@pytest.mark.parametrize("position", ["passed", "NA", ""])
def test_a_passed_capture_needs_no_position(new, position):
    change(new, 0, judgement="passed", defect_mode="passed", defect_position=position)
    labels = read_captures(new, CONTRACT)
    assert not labels.problems
    assert labels.captures[0].defect_position == "passed"


def test_an_image_without_a_row_is_labeled_by_its_name_and_the_given_shape(tmp_path):
    (tmp_path / "left_1_OK.jpg").write_bytes(line()[0].jpeg)
    (tmp_path / "notes.txt").write_text("no capture")
    assert "left_1_OK.jpg: shape: expected CYLN or SQUR, found nothing" in one_problem(tmp_path)
    (capture,) = read_captures(tmp_path, CONTRACT, shape="SQUR").captures
    assert capture.label == ("SQUR", "passed", "passed", "passed", "inspected")


def test_a_defective_capture_without_an_address_cannot_come_in_by_its_name(tmp_path):
    (tmp_path / "camera0_0_375_421_89_0_0_BENDNG.png").write_bytes(line()[0].jpeg)
    assert "defect_position: expected passed or an address, found nothing" in one_problem(tmp_path, shape="CYLN")


def test_a_name_without_facts_gives_no_label(tmp_path):
    (tmp_path / "IMG_0001.jpg").write_bytes(line()[0].jpeg)
    problems = read_captures(tmp_path, CONTRACT, shape="CYLN").problems
    assert any("judgement: expected passed or defective, found nothing" in problem for problem in problems)


def test_adding_appends_labels_and_copies_images(here, new):
    before, rows = read_labels(here), read_labels(new)
    report = add(new, here)
    assert list(report.added) == [row["file"] for row in rows]
    assert not report.skipped
    assert read_labels(here) == [*before, *rows]
    for label in rows:
        assert (here / "images" / label["file"]).read_bytes() == (new / "images" / label["file"]).read_bytes()


def test_adding_twice_changes_nothing_and_reports_skipped_captures(here, new):
    add(new, here)
    before = contents(here)
    report = add(new, here)
    assert not report.added
    assert len(report.skipped) == 3
    assert contents(here) == before


def test_captures_come_into_a_folder_that_does_not_exist_yet(tmp_path, new):
    assert len(add(new, tmp_path / "first/captures").added) == 3
    assert not read_captures(tmp_path / "first/captures", CONTRACT).problems


def test_boxes_of_captures_are_added_with_them(here, new):
    change(new, 0, field_x0="1", field_y0="2", field_x1="30", field_y1="40.5")
    add(new, here)
    rows = read_labels(here)
    assert (rows[4]["field_x0"], rows[4]["field_y1"]) == ("1", "40.5")
    assert rows[0]["field_x0"] == ""


def broken_image(here, new):
    (new / "images" / read_labels(new)[1]["file"]).write_bytes(b"\xff\xd8 no picture")
    return [read_labels(new)[1]["file"]]


def empty_image(here, new):
    (new / "images" / read_labels(new)[1]["file"]).write_bytes(b"")
    return [read_labels(new)[1]["file"], "empty"]


def huge_image(here, new):
    picture = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(picture, "PNG")
    (new / "images" / read_labels(new)[1]["file"]).write_bytes(picture.getvalue())
    return [read_labels(new)[1]["file"], "1000000"]


def two_labels_for_one_picture(here, new):
    first = read_labels(here)[0]
    (new / "images/copy.jpg").write_bytes((here / "images" / first["file"]).read_bytes())
    write_labels(new, [*read_labels(new), first | {"file": "copy.jpg", "role": "inspected"}])
    return ["copy.jpg", first["file"], "another label"]


def name_taken(here, new):
    rows = read_labels(new)
    taken = read_labels(here)[0]["file"]
    (new / "images" / rows[0]["file"]).rename(new / "images" / taken)
    change(new, 0, file=taken)
    return [taken, "another capture of this name"]


def name_alike(here, new):
    taken = read_labels(here)[0]["file"]
    (new / "images" / read_labels(new)[0]["file"]).rename(new / "images" / taken.upper())
    change(new, 0, file=taken.upper())
    return [taken.upper(), "another capture of this name"]


def names_that_some_systems_take_for_one(here, new):
    first, second = ("Stück.jpg", unicodedata.normalize("NFD", "stück.jpg"))
    for number, name in enumerate((first, second)):
        (new / "images" / read_labels(new)[number]["file"]).rename(new / "images" / name)
        change(new, number, file=name)
    return [second, f"the name equals {first} but for case"]


def line_separator_in_a_name(here, new):
    (new / "images" / read_labels(new)[0]["file"]).rename(new / "images/a\u2028b.jpg")
    change(new, 0, file="a\u2028b.jpg")
    return [r"a\u2028b.jpg", "rename the file"]


@pytest.mark.parametrize(
    "spoil",
    [
        name_alike,
        names_that_some_systems_take_for_one,
        line_separator_in_a_name,
        broken_image,
        empty_image,
        huge_image,
        two_labels_for_one_picture,
        name_taken,
    ],
)
def test_one_bad_capture_is_one_line_of_the_error_and_nothing_is_added(here, new, spoil):
    phrases = spoil(here, new)
    before = contents(here)
    with pytest.raises(CaptureError) as caught:
        add(new, here)
    assert len(str(caught.value).splitlines()) == 1
    for words in phrases:
        assert words in str(caught.value)
    assert contents(here) == before


def test_a_disk_that_fails_half_way_leaves_everything_as_it_was(here, new, monkeypatch):
    before, replace = contents(here), Path.replace

    def full_disk(path, target):
        if Path(target).name == "labels.csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(CaptureError, match=r"cannot be written \(No space left on device\); nothing was added"):
        add(new, here)
    assert contents(here) == before
    assert not list(here.glob(".adding-*"))


def test_a_folder_that_cannot_be_locked_is_named(new, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CaptureError, match=r"file: cannot be written \(.*\); correct its permissions"):
        add(new, tmp_path / "file/captures")


@pytest.mark.parametrize(("place", "message"), [("nowhere", "no such folder"), ("captures", "in place already")])
def test_a_folder_that_cannot_be_added_is_named(here, place, message):
    with pytest.raises(CaptureError, match=message):
        add(here.with_name(place), here)


def test_a_folder_without_images_is_named(here, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaptureError, match="no captures found"):
        add(tmp_path / "empty", here)


def test_the_same_picture_twice_in_one_folder_comes_in_once(here, new):
    first = read_labels(new)[0]
    (new / "images/twin.jpg").write_bytes((new / "images" / first["file"]).read_bytes())
    write_labels(new, [*read_labels(new), first | {"file": "twin.jpg"}])
    report = add(new, here)
    assert report.skipped == ("twin.jpg",)
    assert len(report.added) == 3


def test_equal_pictures_with_equal_labels_are_no_conflict():
    (capture,) = read_captures(ROOT / "data/captures", CONTRACT).captures[:1]
    assert conflicting_labels([(capture, "a"), (capture, "a")]) == []
