"""Captures leave the inbox once the project has them, and not before."""

import os

import pytest

from pinspect.captures.inbox import take_captures
from pinspect.captures.labels import IMAGES
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


def test_an_import_killed_halfway_is_completed(there, inbox):
    first, second = captures()[4:6]
    place = there / ".adding-killed"
    place.mkdir()
    write_labels(place, [*read_labels(there), row(first), row(second)])
    (there / IMAGES / first.name).write_bytes(first.jpeg)  # moved, not labelled; the second is not moved yet
    (place / second.name).write_bytes(second.jpeg)
    os.utime(place, (0, 0))
    report = take(inbox, there)
    assert (report.refused, len(report.added)) == ((), 5)
    assert not place.exists()
    assert [label["file"] for label in read_labels(there)] == [capture.name for capture in captures()[:9]]


def test_a_missing_inbox_counts_as_empty(there, tmp_path):
    assert take(tmp_path / "nowhere", there).added == ()
