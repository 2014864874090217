"""File names of the public series: their facts, and the label, eye and shot that these give."""

import pytest

from pinspect.captures.labels import read_captures
from pinspect.captures.splits import SplitRule
from pinspect.core.answers import AnswerContract
from pinspect.core.layout import Layout
from pinspect.core.names import NamedLabel, SeriesName, eye_of, label_in_name, series_name, shot_of
from tests.support.candidates import Candidate, assign
from tests.support.sample import ROOT, line, params, read_labels

CONTRACT = AnswerContract(
    Layout(("U", "C", "D"), 9), ("CYLN", "SQUR"), ("X-plus", "X-minus", "Y-plus", "Y-minus", "pullout")
)
# Names of the series line, each with its shape, defect mode and position as its labels.csv has them.
NAMES = {
    "11D05_camera8_2_334_361_92_m002_009_NUKENG.jpg": ("CYLN", "pullout", "X:1, Y:U"),
    "11X8_camera11_2_341_422_87_005_014_BENDNG.jpg": ("CYLN", "X-plus", "X:1, Y:U"),
    "33Xm10_camera5_2_436_359_90_008_005_BENDNG.jpg": ("CYLN", "X-minus", "X:3, Y:D"),
    "63X10_camera8_2_437_474_92_015_02_BENDNG.jpg": ("CYLN", "X-plus", "X:6, Y:D"),
    "42Ym10_camera9_2_389_432_89_0_0_BENDNG.jpg": ("CYLN", "Y-minus", "X:4, Y:C"),
    "93X12_camera12_0_459_425_89_m014_m005_BENDNG.jpg": ("CYLN", "X-plus", "X:9, Y:D"),
    "SQ93Y8_camera16_2_426_318_88_m007_017_BENDNG.jpg": ("SQUR", "Y-plus", "X:9, Y:D"),
    "SQ91Ym10_camera7_0_378_397_87_m008_m006_BENDNG.jpg": ("SQUR", "Y-minus", "X:9, Y:U"),
    "42D03_camera19_2_440_389_88_m006_m02_NUKENG.jpg": ("CYLN", "pullout", "X:4, Y:C"),
    "OK_camera26_0_354_399_90_015_0_OK.jpg": ("CYLN", "passed", ""),
    "OK_camera30_2_498_408_89_m016_m003_OK.jpg": ("CYLN", "passed", ""),
    "SQOK_camera1_2_463_407_89_0_0_OK.jpg": ("SQUR", "passed", ""),
}


@pytest.mark.parametrize("name", [*NAMES, "left_set_camera3_1_484_483_89_0_m02_NUKE31NG.png"])
def test_a_name_of_the_series_is_read_and_written(name):
    assert str(SeriesName.parse(name)) == name


def test_each_part_of_a_name_has_its_meaning():
    assert SeriesName.parse("set_A_SQ83D04_camera12_2_495_393_91_012_m02_NUKENG.jpg") == SeriesName(
        set_name="set_A", shape="SQUR", column=8, row=3, direction="D", amount=0.4, shot=12, eye="right",
        lamps=(495, 393), rotation=91, shift=(0.12, -0.2), label="NUKENG", suffix=".jpg",
    )  # fmt: skip
    bent = SeriesName.parse("42Ym10_camera0_0_300_346_89_0_016_BENDNG.jpg")
    assert (bent.direction, bent.amount, bent.shift, bent.mode, bent.eye) == ("Ym", 10, (0, 0.16), "Y-minus", "left")


def test_older_labels_count_rows_from_zero():
    old = SeriesName.parse("camera0_1_375_421_89_0_0_NUKE31NG.jpg")
    assert (old.column, old.row, old.mode, old.eye, old.shape) == (3, 2, "pullout", "center", "")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("IMG_0001.jpg", "no shot: expected a word such as camera0"),
        ("camera0_3_375_421_89_0_0_OK.jpg", r"eye: expected 0 \(left\), 1 \(center\) or 2 \(right\), found '3'"),
        ("camera0_0_375_OK.jpg", "expected 7 words after camera0 .*, found 3"),
        ("OK_camera0_0_dim_421_89_0_0_OK.jpg", "lamp 1: expected a number, found 'dim'"),
        ("OK_camera0_0_375_421_89_0_p1_OK.jpg", "shift y: expected a share such as 016 or m02, found 'p1'"),
    ],
)
def test_an_error_about_another_name_shows_the_wrong_part(name, problem):
    with pytest.raises(ValueError, match=problem):
        SeriesName.parse(name)
    assert series_name(name) is None


@pytest.mark.parametrize(("name", "facts"), NAMES.items())
def test_a_name_of_the_series_reveals_shape_mode_and_pin(name, facts):
    label = label_in_name(name, CONTRACT)
    assert (label.usual_shape, label.defect_mode, label.defect_position) == facts
    assert label.judgement == ("passed" if facts[1] == "passed" else "defective")
    assert label.shape == ("SQUR" if facts[0] == "SQUR" else "")


def test_a_line_without_directions_calls_a_bent_pin_bent():
    label = label_in_name("42Ym10_camera9_2_389_432_89_0_0_BENDNG.jpg", params().contract())
    assert (label.defect_mode, label.defect_position) == ("bend", "X:4, Y:C")
    unknown = label_in_name("83D04_camera9_2_495_393_91_0_0_NUKENG.jpg", params().contract())
    assert unknown == NamedLabel(usual_shape="CYLN")


def test_a_pin_outside_the_layout_is_named(tmp_path):
    name = "44Ym10_camera9_2_389_432_89_0_0_BENDNG.jpg"
    with pytest.raises(ValueError, match=r"the name has row 4, the layout has 3 rows \(U, C, D\)"):
        label_in_name(name, CONTRACT)
    (tmp_path / name).write_bytes(line()[0].jpeg)
    (problem,) = read_captures(tmp_path, CONTRACT).problems
    assert "the name has row 4" in problem
    assert "add the label to labels.csv, or rename the file" in problem


def test_names_label_captures_without_a_row_and_rows_win_over_names(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(line()[0].jpeg)
    rows = {
        "11D05_camera8_2_334_361_92_m002_009_NUKENG.jpg": "CYLN,passed,passed,passed,reference",
        "11X8_camera11_2_341_422_87_005_014_BENDNG.jpg": 'SQUR,,Y-plus,"X:2, Y:U",',
        "OK_camera26_0_354_399_90_015_0_OK.jpg": "CYLN,passed,passed,,",
        "OK_camera30_2_498_408_89_m016_m003_OK.jpg": "CYLN,passed,passed,passed,",
        "42D03_camera19_2_440_389_88_m006_m02_NUKENG.jpg": "CYLN,defective,,,",
    }
    table = "".join(f"{name},{cells}\n" for name, cells in rows.items())
    (tmp_path / "labels.csv").write_text(f"file,shape,judgement,defect_mode,defect_position,role\n{table}")
    labels = read_captures(tmp_path, CONTRACT)
    first, second = list(rows)[:2]
    # The second row contradicts its name without a judgement, so it is not complete.
    assert [problem.partition("): ")[2] for problem in labels.problems] == [
        "judgement: expected passed or defective, found nothing; add it to labels.csv"
    ]
    captures = {capture.file: capture for capture in labels.captures}
    assert captures.keys() == NAMES.keys() - {second}
    assert captures.pop(first).label == ("CYLN", "passed", "passed", "passed", "reference")
    for name, capture in captures.items():
        shape, mode, position = NAMES[name]
        judgement = "passed" if mode == "passed" else "defective"
        assert capture.label == (shape, judgement, mode, position or "passed", "inspected")


@pytest.mark.parametrize(
    ("name", "eye", "shot"),
    [
        ("42Ym10_camera7_0_300_346_90_008_m006_BENDNG.jpg", "left", "42Ym10_camera7"),
        ("42Ym10_camera7_2_444_346_87_0_0_BENDNG.jpg", "right", "42Ym10_camera7"),
        ("OK_camera7_1_444_346_87_0_0_OK.jpg", "", "OK_camera7"),
        ("SQOK_camera7_2_444_346_87_0_0_OK.jpg", "right", "SQOK_camera7"),
        ("left_b_OK_camera7_2_444_346_87_0_0_OK.jpg", "right", "left_b_OK_camera7"),
        ("camera7_2_444_346_87_0_0_BENDNG.png", "right", "camera7_444_346_87_0_0_BENDNG.png"),
        ("left_NORMAL_3_2_484_483_89_0_0_OK.jpg", "left", "_NORMAL_3_2_484_483_89_0_0_OK.jpg"),
        ("camera0_CT004_308_588_101_0_0_RETRACT.jpg", "", ""),
    ],
)
def test_a_name_reveals_eye_and_shot(name, eye, shot):
    assert (eye_of(name), shot_of(name)) == (eye, shot)


def test_all_captures_of_a_shot_share_a_split():
    names = [
        f"{pin}_camera{shot}_{eye}_300_346_{rotation}_0_0_BENDNG.jpg"
        for pin in ("42Ym10", "11X8")
        for shot in range(10)
        for eye, rotation in ((0, 87), (2, 92), (0, 90))
    ]
    candidates = [Candidate(name, f"{number:064x}", f"{number:064x}", False) for number, name in enumerate(names)]
    rule = SplitRule("pinspect", validation_share=0.2, test_share=0.3, near_duplicate_bits=-1)
    splits, remarks = assign(candidates, rule)
    of_shot = {}
    for candidate in candidates:
        of_shot.setdefault(shot_of(candidate.file), set()).add(splits[candidate.sha256])
    assert len(of_shot) == 20
    assert all(len(shares) == 1 for shares in of_shot.values())
    assert len(set(splits.values())) == 3
    assert not remarks


def test_no_name_of_the_sample_line_is_of_the_series():
    names = [row["file"] for row in read_labels(ROOT / "data/captures")]
    assert len(names) == 200
    assert not any(series_name(name) or eye_of(name) or shot_of(name) for name in names)
