"""`pinspect labels`: a template that a person fills in, with the localizer's guess beside it."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from pinspect.captures.adding import add_captures
from pinspect.captures.labels import read_captures
from pinspect.cli.labels import write_labels
from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file
from pinspect.nsoartc.unit_space import build_unit_space
from tests.support.sample import line, params, row

PARAMS = params()
HEADER = ["file", "shape", "judgement", "defect_mode", "defect_position", "role"]
GUESSES = ["guess_judgement", "guess_position", "guess_score"]


def captures() -> list:
    """Return captures of one shape, some of them defective; no name reveals a label."""
    return list(line(seed=4, train=10, references=2, shapes=("CYLN",)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "new").mkdir()
    for capture in captures():
        (tmp_path / "new" / capture.name).write_bytes(capture.jpeg)
    return tmp_path / "new"


def rows(folder) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def run(folder, shape: str = "CYLN") -> None:
    write_labels(folder, folder.parent, PARAMS, shape)


def noise(path, seed: int, size: tuple[int, int] = (640, 260)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)


def test_the_template_has_a_row_and_a_guess_for_each_image(folder, capsys):
    run(folder)
    content = (folder / "labels.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf" + ",".join([*HEADER, *GUESSES]).encode() + b"\r\n")
    truth = {capture.name: capture for capture in captures()}
    table = rows(folder)
    assert [each["file"] for each in table] == sorted(truth)
    assert {(each["shape"], each["judgement"], each["role"]) for each in table} == {("CYLN", "", "inspected")}
    defective = [each for each in table if truth[each["file"]].judgement == "defective"]
    right = [each for each in defective if each["guess_position"] == truth[each["file"]].defect_position]
    assert len(right) >= len(defective) - 1 >= 3
    assert all(each["guess_judgement"] == "defective" and float(each["guess_score"]) >= 2 for each in right)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{folder / 'labels.csv'}: 12 rows written, 12 of them with a guess"
    assert printed[1].startswith(
        "next: fill in judgement, defect_mode and defect_position (on a new line also the role"
    )
    assert printed[1].endswith(f"at least 5 passed captures per shape and eye), then pinspect add {folder}")
    assert len(printed) == 2


def test_a_filled_in_template_can_be_added_and_an_unfilled_one_cannot(folder):
    run(folder)
    contract = PARAMS.contract()
    problems = read_captures(folder, contract).problems
    assert len(problems) == len(captures())
    assert "judgement: expected passed or defective, found nothing; add it to labels.csv" in problems[0]
    truth = {capture.name: row(capture) for capture in captures()}
    with (folder / "labels.csv").open("w", encoding="cp932", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow([*HEADER, *GUESSES])
        writer.writerows([*label.values(), "defective", "3U", "5"] for label in truth.values())
    report = add_captures(folder, folder.parent / "captures", contract, max_pixels=1_000_000)
    assert set(report.added) == truth.keys()


def test_names_fill_in_what_they_reveal(folder):
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"left_{number:02}_{'OK' if number < 8 else 'BENDNG'}.jpg")
    run(folder)
    assert [list(each.values())[1:6] for each in rows(folder)[7:9]] == [
        ["CYLN", "passed", "passed", "passed", "inspected"],
        ["CYLN", "defective", "bend", "", "inspected"],
    ]


def test_rows_that_exist_stay_and_new_images_get_theirs_in_the_same_form(folder, capsys):
    first, second, *_ = names = sorted(path.name for path in folder.iterdir())
    present = f"FILE;Shape;judgement;defect_mode;defect_position;role\r\n{first};CYLN;passed;;;\r\n{second};CYLN;;;;"
    (folder / "labels.csv").write_bytes(present.encode("cp932"))
    run(folder)
    lines = (folder / "labels.csv").read_bytes().decode("cp932").split("\r\n")
    assert lines[:3] == present.split("\r\n")
    assert lines[3:] == [*(f"{name};CYLN;;;;inspected" for name in names[2:]), ""]
    before = (folder / "labels.csv").read_bytes()
    assert f"10 rows added, no columns {', '.join(GUESSES)}" in capsys.readouterr().out
    run(folder)
    assert (folder / "labels.csv").read_bytes() == before
    assert capsys.readouterr().out == f"{folder / 'labels.csv'}: every image has a row; nothing was changed\n"


def test_a_name_that_the_file_s_encoding_cannot_hold_changes_nothing(folder):
    (folder / "labels.csv").write_bytes(f"{';'.join(HEADER)}\n\u7aef.jpg;;;;;\n".encode("cp932"))
    shutil.copy(next(folder.glob("*.jpg")), folder / "\u2713.jpg")
    before = (folder / "labels.csv").read_bytes()
    with pytest.raises(CaptureError, match=r"CP932 text cannot hold '\u2713'; save it as 'CSV UTF-8'"):
        run(folder)
    assert (folder / "labels.csv").read_bytes() == before


def test_strange_and_damaged_images_get_no_guess_and_spoil_no_other(folder, capsys):
    noise(folder / "a noise.png", 1)
    noise(folder / "a small one.png", 2, (320, 130))
    (folder / "b damaged.jpg").write_bytes(b"\xff\xd8 no picture")
    run(folder)
    assert [each["file"] for each in rows(folder) if not each["guess_score"]] == [
        "a noise.png",
        "a small one.png",
        "b damaged.jpg",
    ]
    reasons = capsys.readouterr().out.splitlines()[:3]
    assert reasons[0].startswith("no guess for a noise.png: ")
    assert reasons[1].startswith("no guess for a small one.png: ")
    assert "b damaged.jpg" in reasons[2]


def test_without_a_grid_the_guesses_stay_empty_with_one_reason(tmp_path, capsys):
    (tmp_path / "new").mkdir()
    for number in range(5):
        noise(tmp_path / f"new/{number}.png", seed=7)
    run(tmp_path / "new")
    assert {each["guess_judgement"] for each in rows(tmp_path / "new")} == {""}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("no guess for 5 images (camera CYLN): found no field of 3 x 9 pins")
    assert printed[1].endswith("5 rows written, 0 of them with a guess")


def test_few_images_are_compared_with_the_unit_space_of_the_project(folder):
    first = [capture for capture in captures() if capture.judgement == "passed"][:6]
    images = [np.asarray(Image.open(folder / capture.name)) for capture in first]
    names = [capture.name for capture in first]
    unit_space = build_unit_space(images, names, None, "CYLN", PARAMS.layout.layout(), PARAMS.dst)
    write_file(folder.parent / "data/dst/unit_space/camera-CYLN.npz", unit_space.packed())
    kept = next(capture for capture in captures() if capture.judgement == "defective")
    for path in folder.iterdir():
        if path.name not in (kept.name, first[0].name):
            path.unlink()
    run(folder)
    guesses = {each["file"]: each["guess_position"] for each in rows(folder)}
    assert guesses == {kept.name: kept.defect_position, first[0].name: "passed"}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("", "new: the shape of 12 images is unknown, e.g. virtual-.*; add --shape CYLN or --shape SQUR"),
        ("HEXA", "--shape: expected CYLN or SQUR, found 'HEXA'"),
    ],
)
def test_an_unknown_shape_writes_nothing(folder, shape, message):
    with pytest.raises(CaptureError, match=message):
        run(folder, shape)
    assert not (folder / "labels.csv").exists()


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(CaptureError, match=r"no images found; expected \.bmp, \.jpeg, \.jpg"):
        run(tmp_path)
