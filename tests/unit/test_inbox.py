"""Captures leave the inbox once the project has them, and not before."""

import shutil
from pathlib import Path

import pytest

from pinspect.captures.inbox import take_captures
from pinspect.captures.labels import IMAGES
from pinspect.core.errors import CaptureError
from tests.support.sample import contents, drop, line, params, read_labels, row, write_labels

CONTRACT = params().contract()


@pytest.fixture
def there(tmp_path):
    return drop(tmp_path / "captures", captures()[:4])


@pytest.fixture
def inbox(tmp_path):
    return drop(tmp_path / "inbox", captures()[4:9])


def captures() -> list:
    return list(line(seed=3, train=8, references=2))


def take(inbox, folder):
    return take_captures(inbox, folder, CONTRACT, max_pixels=1_000_000)


def test_good_captures_move_in_and_the_inbox_is_empty(there, inbox):
    expected = [capture.name for capture in captures()[:9]]
    assert take(inbox, there).added == tuple(expected[4:])
    assert [label["file"] for label in read_labels(there)] == expected
    assert all((there / IMAGES / capture.name).read_bytes() == capture.jpeg for capture in captures()[:9])
    assert not list((inbox / IMAGES).iterdir())
    assert read_labels(inbox) == []


def test_a_bad_capture_is_named_and_stays_with_its_row_as_it_is(there, inbox):
    bad, wrong = captures()[4], captures()[5]
    (inbox / IMAGES / bad.name).write_bytes(bad.jpeg[:500])
    rows = [label | {"judgement": "maybe"} if label["file"] == wrong.name else label for label in read_labels(inbox)]
    write_labels(inbox, rows)
    report = take(inbox, there)
    assert report.added == tuple(capture.name for capture in captures()[6:9])
    assert len(report.refused) == 2
    assert any(bad.name in problem for problem in report.refused)
    assert any(wrong.name in problem and "judgement" in problem for problem in report.refused)
    assert {path.name for path in (inbox / IMAGES).iterdir()} == {bad.name, wrong.name}
    assert read_labels(inbox) == rows[:2]
    (inbox / IMAGES / bad.name).write_bytes(bad.jpeg)
    write_labels(inbox, [row(bad), row(wrong)])
    assert set(take(inbox, there).added) == {bad.name, wrong.name}


def test_a_picture_with_two_labels_stays_with_both(there, inbox):
    first, second = captures()[4], captures()[5]
    (inbox / IMAGES / second.name).write_bytes(first.jpeg)
    passed = row(first) | {
        "judgement": "passed",
        "defect_mode": "passed",
        "defect_position": "passed",
        "role": "inspected",
    }
    bent = passed | {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:1, Y:U"}
    write_labels(inbox, [passed, bent | {"file": second.name}, *read_labels(inbox)[2:]])
    report = take(inbox, there)
    assert not {first.name, second.name} & {*report.added, *report.skipped}
    assert {path.name for path in (inbox / IMAGES).iterdir()} == {first.name, second.name}
    assert any("another label" in problem for problem in report.refused)


def test_a_capture_that_the_project_has_leaves_the_inbox(there, inbox):
    drop(inbox, captures()[:2])
    assert take(inbox, there).skipped == tuple(capture.name for capture in captures()[:2])
    assert not list((inbox / IMAGES).iterdir())


@pytest.mark.parametrize("left", ["images and rows", "rows"])
def test_an_import_killed_before_the_inbox_is_emptied_is_completed(there, inbox, left):
    take_a_copy = contents(inbox)
    take(inbox, there)
    for name, content in take_a_copy.items():
        if left == "images and rows" or name == "labels.csv":
            (inbox / name).write_bytes(content)
    before = contents(there)
    assert take(inbox, there).refused == ()
    assert contents(there) == before
    assert read_labels(inbox) == []
    assert not list((inbox / IMAGES).iterdir())


def test_rows_whose_label_the_project_lacks_stay(there, inbox):
    """A row can arrive before its image, and the project can have another capture of the same name."""
    rows = [row(captures()[0]) | {"role": "inspected", "judgement": "defective", "defect_mode": "bend"}]
    rows[0]["defect_position"] = "X:1, Y:U"
    write_labels(inbox, [*rows, *read_labels(inbox)])
    take(inbox, there)
    assert read_labels(inbox) == rows


def test_a_capture_that_cannot_be_read_back_stays(there, inbox, monkeypatch):
    before, copy = contents(inbox), shutil.copyfile

    def damaged(source, target):
        copy(source, target)
        target.write_bytes(target.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(shutil, "copyfile", damaged)
    with pytest.raises(CaptureError, match="the inbox still has it"):
        take(inbox, there)
    assert contents(inbox) == before


def test_a_row_that_arrives_while_the_inbox_is_emptied_stays(there, inbox, monkeypatch):
    late = row(captures()[4]) | {"file": "late.jpg"}
    unlink = Path.unlink

    def while_another_writes(path, **options):
        unlink(path, **options)
        if path.parent == inbox / IMAGES:
            write_labels(inbox, [*read_labels(inbox), late])
            monkeypatch.setattr(Path, "unlink", unlink)

    monkeypatch.setattr(Path, "unlink", while_another_writes)
    take(inbox, there)
    assert read_labels(inbox) == [late]


def test_a_missing_inbox_counts_as_empty(there, tmp_path):
    assert take(tmp_path / "nowhere", there).added == ()
