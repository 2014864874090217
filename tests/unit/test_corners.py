"""corners.csv: written, read back, and refused in plain words where it is wrong."""

import pytest

from pinspect.core.corners import Corners, read_corners, write_corners
from pinspect.core.errors import CaptureError

HEADER = "file,x0,y0,x1,y1,x2,y2,x3,y3\n"
MARKED = Corners("b.jpg", ((41, 38.5), (600, 40), (598, 170), (43, 168)))


def test_corners_are_read_back_as_they_were_written(tmp_path):
    path, other = tmp_path / "corners.csv", Corners("a.jpg", ((1, 2), (3, 4), (5, 6), (7, 8)))
    write_corners(path, [MARKED, other])
    assert path.read_text() == HEADER + "a.jpg,1,2,3,4,5,6,7,8\nb.jpg,41,38.5,600,40,598,170,43,168\n"
    assert read_corners(path, ["a.jpg", "b.jpg", "c.jpg"]) == (other, MARKED)


def test_without_corners_there_is_no_file(tmp_path):
    path = tmp_path / "corners.csv"
    assert read_corners(path, ["a.jpg"]) == ()
    write_corners(path, [MARKED])
    write_corners(path, [])
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "row 1: expected the columns file,x0.* found ''"),
        ("file,x,y\n", "row 1: expected the columns file,x0.* found 'file,x,y'"),
        (HEADER + "a.jpg,1,2,3\n", r"row 2 \(a.jpg\): expected eight numbers, found '1,2,3'"),
        (HEADER + "a.jpg,1,2,3,4,5,6,7,nan\n", r"row 2 \(a.jpg\): expected eight numbers"),
        (HEADER + "z.jpg,1,2,3,4,5,6,7,8\n", "row 2: 'z.jpg' is no reference in labels.csv; mark the corners in"),
        (HEADER + "a.jpg,1,2,3,4,5,6,7,8\n" * 2, "row 3: an earlier row marks a.jpg; keep one of the two"),
    ],
)
def test_a_wrong_file_is_refused_by_row(tmp_path, text, message):
    (tmp_path / "corners.csv").write_text(text)
    with pytest.raises(CaptureError, match=message):
        read_corners(tmp_path / "corners.csv", ["a.jpg"])
