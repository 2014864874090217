"""Files are written completely or not at all."""

import pytest

from pinspect.core.files import atomic_path, write_file


def test_a_file_appears_with_its_whole_content(tmp_path):
    path = tmp_path / "new/folder/table.csv"
    write_file(path, "Grün\n")
    assert path.read_bytes() == "Grün\n".encode()
    write_file(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "image.jpg"
    write_file(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path, sync=True) as partial:
        partial.write_bytes(b"ha")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_written_beside_its_place_under_a_hidden_name_of_the_same_suffix(tmp_path):
    with atomic_path(tmp_path / "image.jpg", sync=True) as partial:
        partial.write_bytes(b"new")
        assert not (tmp_path / "image.jpg").exists()
    assert (partial.parent, partial.name[0], partial.suffix) == (tmp_path, ".", ".jpg")
    assert (tmp_path / "image.jpg").read_bytes() == b"new"
