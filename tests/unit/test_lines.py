"""Which captures share references, and which pairs show one connector."""

import pandas as pd
import pytest

from pinspect.core.lines import Line, lines_of, pair_eyes
from pinspect.core.names import eye_of

COLUMNS = ("capture", "shape", "role", "judgement", "defect_mode", "defect_position")


def manifest(*rows: tuple[str, str, str]) -> pd.DataFrame:
    passed = [dict(zip(COLUMNS, (*row, "passed", "passed", "passed"), strict=True)) for row in rows]
    return pd.DataFrame(passed).assign(source="camera", file=[f"file of {capture}" for capture, *_ in rows])


def line_by_name(captures: pd.DataFrame) -> dict[str, str]:
    return {file.removeprefix("file of "): str(line) for file, line in lines_of(captures).items()}


BOTH_EYES = [(f"{eye}_ok.jpg", "CYLN", "reference") for eye in ("left", "right")]


@pytest.mark.parametrize(
    ("name", "eye"),
    [
        ("left_NORMAL_3_2_484_483_89_0_0_OK.jpg", "left"), ("right_1.png", "right"), ("camera0_0_375_OK.jpg", ""),
        ("lefty_1.png", ""), ("leftover.png", ""), ("left_", ""),
    ],
)  # fmt: skip
def test_the_eye_is_the_first_word_of_the_name(name, eye):
    assert eye_of(name) == eye


def test_a_line_without_eyes_is_called_by_its_source_and_shape():
    line = Line("camera", "CYLN")
    assert (str(line), line.aspect, line.unit_space) == ("camera CYLN", "CYLN", "unit_space/camera-CYLN.npz")


def test_eyes_count_shape_by_shape_and_only_where_there_are_both():
    lines = line_by_name(manifest(*BOTH_EYES, ("left_1.jpg", "CYLN", "inspected"), ("left_2.jpg", "SQUR", "reference")))
    assert lines == {
        "left_ok.jpg": "camera CYLN left", "right_ok.jpg": "camera CYLN right", "left_1.jpg": "camera CYLN left",
        "left_2.jpg": "camera SQUR",
    }  # fmt: skip


def test_references_without_an_eye_are_used_for_eyes_without_references():
    views = [(f"{eye}_1.jpg", "CYLN", "inspected") for eye in ("left", "right")]
    captures = manifest(("ok.jpg", "CYLN", "reference"), *views)
    assert set(line_by_name(captures).values()) == {"camera CYLN"}
    pairs, remarks = pair_eyes(captures, lines_of(captures))
    assert pairs == []
    assert remarks == [
        (
            "left_1.jpg and right_1.jpg: no double-eye: an eye has no references; "
            "add passed captures of both eyes with the role 'reference'"
        )
    ]


def test_views_whose_names_agree_are_paired_left_first():
    captures = manifest(*reversed(BOTH_EYES))
    assert pair_eyes(captures, lines_of(captures)) == ([("file of left_ok.jpg", "file of right_ok.jpg")], [])


def test_names_without_an_eye_need_no_partner():
    captures = manifest(("ok.jpg", "CYLN", "reference"), ("camera0_1.jpg", "CYLN", "inspected"))
    assert pair_eyes(captures, lines_of(captures)) == ([], [])
