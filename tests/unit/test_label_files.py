"""Label files as people and spreadsheets write them, and 40 spoiled ones: one clear line each, and nothing is added."""

import csv
import io
import unicodedata

import psutil
import pytest

from pinspect.captures.adding import add_captures
from pinspect.captures.inbox import take_captures
from pinspect.captures.labels import read_captures
from pinspect.captures.table import Table, read_table
from pinspect.core.errors import CaptureError
from tests.support.sample import contents, drop, line, params, read_labels

CONTRACT = params().contract()
HEADER = ["file", "shape", "judgement", "defect_mode", "defect_position", "role"]
ROWS = [
    ["good.jpg", "CYLN", "passed", "passed", "passed", "inspected"],
    ["bent.jpg", "CYLN", "defective", "bend", "X:3, Y:U", ""],
    ["ガ端子.jpg", "SQUR", "passed", "", "NA", "reference"],
]
LABELS = [
    ("good.jpg", "CYLN", "passed", "passed", "passed", "inspected"),
    ("bent.jpg", "CYLN", "defective", "bend", "X:3, Y:U", "inspected"),
    ("ガ端子.jpg", "SQUR", "passed", "passed", "passed", "reference"),
]


def written(delimiter=",", end="\n", rows=(HEADER, *ROWS)) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue()


@pytest.fixture
def new(tmp_path):
    """A folder with three images and their labels."""
    images = tmp_path / "new/images"
    images.mkdir(parents=True)
    for (name, *_), capture in zip(ROWS, line()[4:7], strict=True):
        (images / name).write_bytes(capture.jpeg)
    (tmp_path / "new/labels.csv").write_text(written(), encoding="utf-8")
    return tmp_path / "new"


@pytest.fixture
def here(tmp_path):
    """A captures folder with two captures."""
    return drop(tmp_path / "captures", line()[:2])


def add(source, folder):
    return add_captures(source, folder, CONTRACT, max_pixels=1_000_000)


def labels_of(folder) -> list[tuple[str, ...]]:
    labels = read_captures(folder, CONTRACT)
    assert not labels.problems
    return [(capture.file, *capture.label) for capture in labels.captures]


WIDER = [[f" {name.title()}" for name in HEADER], *([f" {cell} " for cell in row] for row in ROWS)]
TEMPLATE = [[*HEADER, "guess_judgement", "Guess_Position"], *([*row, "defective", "X:1, Y:C"] for row in ROWS)]
FORMS = {
    "UTF-8": written().encode(),
    "UTF-8 with a byte order mark": written(end="\r\n").encode("utf-8-sig"),
    "Excel's Unicode text": written("\t", "\r\n").encode("utf-16"),
    "UTF-16, the other byte order": b"\xfe\xff" + written("\t", "\r\n").encode("utf-16-be"),
    "Japanese Excel": written(end="\r\n").encode("cp932"),
    "semicolons": written(";", "\r\n").encode("cp932"),
    "tabs": written("\t").encode(),
    "carriage returns": written(end="\r").encode(),
    "spaces and another case in the header": written(rows=WIDER).encode(),
    "empty rows and columns": written(rows=[[*row, "", ""] for row in (HEADER, *ROWS, [""] * 6)]).encode(),
    "no end of the last line": written().rstrip().encode(),
    "guesses": written(rows=TEMPLATE).encode(),
    "no guesses at the end of a row": written(rows=[TEMPLATE[0], *ROWS]).encode(),
    "an address without quotes": written().replace('"', "").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_label_file_gives_the_same_labels(new, form):
    (new / "labels.csv").write_bytes(FORMS[form])
    assert labels_of(new) == LABELS


LONG = [[f"ガ端子{number}.jpg", "CYLN", "", "two\r\nlines", "", ""] for number in range(4000)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932"])
def test_a_table_longer_than_any_buffer_is_read_whole(tmp_path, encoding, end):
    content = written(end=end, rows=[HEADER, *LONG]).encode(encoding)
    (tmp_path / "labels.csv").write_bytes(content)
    rows = list(read_table(tmp_path / "labels.csv"))
    assert rows == [(2 * number + 3, dict(zip(HEADER, row, strict=True))) for number, row in enumerate(LONG)]
    assert rows == list(Table.parse(tmp_path / "labels.csv", content).rows())


def test_a_table_that_is_not_read_to_its_end_is_closed(tmp_path):
    (tmp_path / "labels.csv").write_text(written(rows=[HEADER, *LONG]), encoding="utf-8")
    rows = read_table(tmp_path / "labels.csv")
    next(rows)
    assert str(tmp_path / "labels.csv") in {file.path for file in psutil.Process().open_files()}
    rows.close()
    assert str(tmp_path / "labels.csv") not in {file.path for file in psutil.Process().open_files()}


def test_a_table_that_changes_while_it_is_read_is_reported(tmp_path):
    (tmp_path / "labels.csv").write_text(written(rows=[HEADER, *LONG]), encoding="utf-8")
    rows = read_table(tmp_path / "labels.csv")
    next(rows)
    (tmp_path / "labels.csv").write_bytes(b"\xff" * 100_000)
    with pytest.raises(CaptureError, match="changed by another program just now; try again"):
        list(rows)


@pytest.mark.parametrize(
    "text", ["X:3 Y:U", "x:3, y:u", "X : 3,Y:U", "X:3;Y:U", "3U", "u 3", "\uff38\uff1a\uff13\uff0c\uff39\uff1a\uff35"]
)
def test_an_address_may_be_written_in_any_unambiguous_form(new, text):
    (new / "labels.csv").write_text(written(";").replace("X:3, Y:U", text if ";" not in text else f'"{text}"'))
    assert labels_of(new) == LABELS


@pytest.mark.parametrize("name", [unicodedata.normalize("NFD", "ガ端子.jpg"), "ガ端子.JPG"])
def test_a_name_belongs_to_its_image_in_any_case_and_unicode_form(here, new, name):
    (new / "labels.csv").write_text(written().replace("ガ端子.jpg", name), encoding="utf-8")
    assert labels_of(new) == LABELS
    assert add(new, here).added == tuple(row[0] for row in ROWS)
    (here / "labels.csv").write_text((here / "labels.csv").read_text().replace("ガ端子.jpg", name))
    assert labels_of(here)[2:] == LABELS


def test_the_project_s_own_file_is_written_as_utf_8_with_commas(here, new):
    rows = read_labels(here)
    (here / "labels.csv").write_bytes(written(";", "\r\n", [HEADER, *(row.values() for row in rows)]).encode("utf-16"))
    add(new, here)
    assert read_labels(here) == [*rows, *(dict(zip(HEADER, label, strict=True)) for label in LABELS)]


@pytest.mark.parametrize(
    "form", ["Excel's Unicode text", "semicolons", "carriage returns", "an address without quotes"]
)
def test_the_rows_of_taken_captures_leave_the_inbox_in_any_form(here, new, form):
    (new / "images/bent.jpg").write_bytes(b"damaged")
    (new / "labels.csv").write_bytes(FORMS[form])
    assert take_captures(new, here, CONTRACT, max_pixels=1_000_000).added == ("good.jpg", "ガ端子.jpg")
    for name in ("good.jpg", "ガ端子.jpg"):
        (new / "images" / name).write_bytes(b"another image of this name")
    problems = read_captures(new, CONTRACT).problems
    assert sum("judgement: expected passed or defective, found nothing" in problem for problem in problems) == 2
    (new / "images/good.jpg").unlink()
    (new / "images/ガ端子.jpg").unlink()
    assert labels_of(new) == LABELS[1:2]


GOOD = "good.jpg,CYLN,passed,passed,passed,inspected\n"
BENT = 'bent.jpg,CYLN,defective,bend,"X:3, Y:U",\n'
SPOILED_TEXT = {
    "a column is missing": (",role\n", "\n", r"row 1: columns \['role'\] are missing; add them to the first row"),
    "a column twice": (",role", ",role,Role", r"row 1: columns \['role'\] occur twice; keep one of each"),
    "an unknown column": (",role", ",role,remark", r"row 1: unknown columns \['remark'\]; known are file, shape"),
    "a misspelled column": ("shape", "from", r"row 1: unknown columns \['from'\].*\['shape'\] are missing"),
    "two delimiters": ("file,shape,", "file;shape;", "row 1: unknown columns"),
    "no header": (",".join(HEADER), GOOD.strip(), "row 1: unknown columns .* are missing"),
    "an unknown shape": ("jpg,CYLN,p", "jpg,HEXA,p", "row 2 .*shape: expected CYLN or SQUR, found 'HEXA'; correct the"),
    "an unknown judgement": ("N,defective", "N,NG", "row 3 .*: judgement: expected passed or defective, found 'NG'"),
    "an unknown mode": ("bend", "bnet", "row 3 .*: defect_mode: expected passed or bend or .*, found 'bnet'"),
    "an unknown role": (",inspected", ",golden", "row 2 .*: role: expected reference or inspected, found 'golden'"),
    "no judgement": ("N,passed,passed,passed", "N,,,", "row 2 .*: judgement: expected passed or defective, found not"),
    "no mode": ("bend", "", "row 3 .*: defect_mode: expected .*, found nothing; add it to labels.csv"),
    "no address": ("X:3, Y:U", "", "row 3 .*: defect_position: expected passed or an address, found nothing; add it"),
    "no address, but NA": ("X:3, Y:U", "NA", "row 3 .*: defect_position: expected an address such as .* found 'NA'"),
    "a column outside": ("X:3", "X:12", "row 3 .*: defect_position: no pin at X:12, Y:U.* columns 1..9"),
    "a row outside": ("X:3, Y:U", "3q", "row 3 .*: defect_position: no pin at X:3, Y:Q: the layout has rows U,C,D"),
    "no such form": ("X:3, Y:U", "third", "row 3 .*: expected an address such as 'X:3, Y:U', found 'third'; correct"),
    "passed at an address": ("passed,passed,passed", "passed,passed,3U", "row 2 .*X:3, Y:U.* not go with judgement"),
    "passed with a mode": (
        "passed,passed,passed",
        "passed,bend,",
        "row 2 .*'bend' does not go with judgement 'passed'",
    ),
    "defective at no pin": ("X:3, Y:U", "passed", "row 3 .*'passed' does not go with judgement 'defective'"),
    "a defective reference": (BENT, BENT[:-1] + "reference\n", "row 3 .*: role: a reference is a passed capture"),
    "a row without an image": (
        GOOD,
        GOOD + "a" + GOOD,
        r"row 3 \(agood.jpg\): file: the image is missing from .*; put",
    ),
    "a row twice": (GOOD, GOOD * 2, r"row 3 \(good.jpg\): an earlier row labels this file; keep one of the two"),
    "a row twice, in another case": (GOOD, GOOD + GOOD.upper(), r"row 3 \(good.jpg\): an earlier row labels this file"),
    "no name": (GOOD, GOOD + GOOD[8:], r"row 3 \(\): file: expected the name of an image in .*, found ''; correct"),
    "a path": (GOOD, GOOD + "../../" + GOOD, "row 3 .*: file: expected the name of an image .*'../../good.jpg'"),
    "a control character": (GOOD, GOOD + "a\a" + GOOD, r"row 3 \(a\\x07good.jpg\): file: .* rename the file"),
    "too many cells": ("inspected", "inspected,x", "row 2 .*: expected 6 cells, found 7; an address .* needs quotes"),
    "too few cells": (",inspected", "", "row 2 .*: expected 6 cells, found 5; correct the row"),
    "an unbalanced quote": ("good", '"good', "row 2: not readable as CSV .*; correct the row"),
    "an open quote at the end": (",reference", ',"reference', "row 4: not readable as CSV .*; correct the row"),
    "half a box": (written(), written(rows=[[*HEADER, "pin_x0"], [*ROWS[0], "9"]]), "pin_x0..pin_y1: expected x0 < x1"),
}
SPOILED_BYTES = {
    "an empty file": (b"", "row 1: columns .* are missing"),
    "an image": (b"\xff\xd8\xff\xe0\0\x10JFIF", "row 1: not text in UTF-8, UTF-16 or CP932 .*; save it as 'CSV UTF-8'"),
    "a workbook": (b"PK\3\4 and so on", "found an Excel workbook, expected text; save it as 'CSV UTF-8'"),
    "a program": (b"\x7fELF\2\1\1\0\0", "row 1: not text in UTF-8"),
    "UTF-8, cut off": (written().encode() + "ガ".encode()[:2], "row 5: not text in UTF-8"),
    "CP932, cut off": ((written() * 999).encode("cp932") + b"\x83", "row 3997: not text in UTF-8"),
    "Latin-1": (written().encode() + "Stück.jpg".encode("latin-1"), "row 5: not text in UTF-8"),
    "UTF-16 without its mark": (written().encode("utf-16-le"), "not text in UTF-8"),
    "UTF-16, cut off": (written().encode("utf-16")[:-1], "not text in UTF-8"),
}
UNLABELED = "images/.*jpg: shape: expected CYLN or SQUR; judgement: expected passed or defective, found nothing; add it"


@pytest.mark.parametrize("fault", [*SPOILED_TEXT, *SPOILED_BYTES])
def test_a_spoiled_label_file_is_one_line_and_nothing_is_added(here, new, fault):
    if fault in SPOILED_TEXT:
        old, replacement, message = SPOILED_TEXT[fault]
        assert old in written()
        content = written().replace(old, replacement, 1).encode()
    else:
        content, message = SPOILED_BYTES[fault]
    (new / "labels.csv").write_bytes(content)
    before = contents(here)
    with pytest.raises(CaptureError, match=message) as caught:
        add(new, here)
    assert str(caught.value).startswith(f"{new / 'labels.csv'}")
    assert len([line for line in str(caught.value).splitlines() if "labels.csv" in line.partition(": ")[0]]) == 1
    assert contents(here) == before


def test_images_without_rows_are_one_line_each(here, new):
    (new / "labels.csv").write_text(written(rows=[HEADER]))
    before = contents(here)
    with pytest.raises(CaptureError, match=UNLABELED) as caught:
        add(new, here)
    assert len(str(caught.value).splitlines()) == 3
    assert contents(here) == before
