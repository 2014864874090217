"""When a run is due for the files of the inbox."""

import pytest

from flows.inbox import Arrivals


@pytest.fixture
def inbox(tmp_path):
    (tmp_path / "inbox/images").mkdir(parents=True)
    return tmp_path / "inbox"


def looks(arrivals: Arrivals, *, busy: bool = False) -> int:
    """Look twice, as a file is complete if it is the same at two looks; announce what is due."""
    arrivals.look(busy=busy)
    if images := arrivals.look(busy=busy):
        arrivals.announced()
    return images


def test_images_are_announced_once_they_no_longer_change(inbox):
    arrivals = Arrivals(inbox)
    image = inbox / "images/OK_1.jpg"
    for content in (b"a", b"ab", b"abc"):
        image.write_bytes(content)
        assert not arrivals.look(busy=False)
    assert arrivals.look(busy=False) == 1
    assert arrivals.look(busy=False) == 1, "an event that was not sent is due again"
    arrivals.announced()
    assert not looks(arrivals), "an image that a run has left there starts no second run"
    (inbox / "images/OK_2.jpg").touch()
    assert looks(arrivals) == 2


def test_images_that_come_while_a_run_works_wait_and_its_own_changes_start_none(inbox):
    arrivals = Arrivals(inbox)
    for name in ("images/OK_1.jpg", "images/OK_2.jpg", "labels.csv"):
        (inbox / name).write_text(name)
    assert looks(arrivals) == 2
    (inbox / "images/OK_1.jpg").unlink()  # the run takes a capture and its row
    (inbox / "labels.csv").write_text("file")
    assert not looks(arrivals, busy=True)
    assert not looks(arrivals)
    (inbox / "images/OK_3.jpg").touch()
    assert not looks(arrivals, busy=True)
    assert looks(arrivals) == 2


def test_a_corrected_label_is_announced_while_its_image_waits(inbox):
    arrivals = Arrivals(inbox)
    (inbox / "labels.csv").write_text("file")
    assert not looks(arrivals), "labels without images start no run"
    (inbox / "images/one.jpg").touch()
    assert looks(arrivals) == 1
    (inbox / "labels.csv").write_text("file,judgement")
    assert looks(arrivals) == 1


@pytest.mark.parametrize("name", [".OK_1.jpg", "OK_1.jpg.part", "notes.txt"])
def test_hidden_and_unfinished_files_are_no_images(inbox, name):
    (inbox / "images" / name).touch()
    assert not looks(Arrivals(inbox))


def test_a_missing_inbox_is_empty(tmp_path):
    assert not looks(Arrivals(tmp_path / "inbox"))
