"""The score of a labeled folder: what is read, what is counted apart, and what the page shows."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pinspect.captures.labeled_folder import read_labeled_folder
from pinspect.captures.splits import TEST, TRAIN, SplitRule, write_splits
from pinspect.core.errors import CaptureError, PinspectError, StageInputError
from pinspect.evaluation.folder_score import FolderScore
from pinspect.evaluation.score_page import render_score
from pinspect.registry.acceptance import read_acceptance_folder
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    PARAMS,
    REPORT,
    answered,
    chat_row,
    escaped,
    moved,
    overkilled,
    right,
)
from tests.support.sample import drop, line, read_labels, write_labels

WRONG = {2: escaped, 4: moved, 3: overkilled}
NAMES = [f"{number}<b>端子.jpg" for number in range(12)]


def rows() -> list[dict]:
    return [chat_row(number) | {"file": name} for number, name in enumerate(NAMES)]


def score(**changes) -> FolderScore:
    """Twelve captures, six defective: one escape, one wrong address, one overkill, and two that were not inspected."""
    picture = io.BytesIO()
    Image.new("RGB", (640, 256), "teal").save(picture, "JPEG")
    number = {name: number for number, name in enumerate(NAMES)}
    shares = np.zeros(len(ADDRESSES))
    shares[:4] = 0.6, 0.1, 0.25, 0.05

    def answer(row) -> str:
        return "" if number[row["file"]] > 9 else WRONG.get(number[row["file"]], right)(row)

    table = answered(rows(), answer, chance=lambda row: 0.25, shares=lambda row: shares)
    fields = {
        "model": "pin-inspector",
        "version": "7",
        "view": "DST",
        "folder": "acceptance",
        "digest": "ab" * 32,
        "answered": table,
        "not_inspected": {NAMES[10]: "it does not show the line", NAMES[11]: "not an image"},
        "trained_on": (),
        "remarks": (),
        "contract": CONTRACT,
        "settings": REPORT,
        "pictures": {NAMES[2]: picture.getvalue(), NAMES[10]: picture.getvalue(), NAMES[11]: b"no image"},
    }
    return FolderScore(**{**fields, **changes})


def test_captures_that_were_not_inspected_are_counted_apart():
    scores = score().scores
    assert (scores["inspected"].value, scores["inspected"].n) == (pytest.approx(10 / 12), 12)
    assert (scores["exact_match"].value, scores["exact_match"].n) == (0.7, 10)
    assert (scores["escape_rate"].value, scores["escape_rate"].n) == (0.2, 5)
    assert (scores["overkill_rate"].value, scores["overkill_rate"].n) == (0.2, 5)
    judgements = score().judgements
    assert judgements.loc["defective"].to_dict() == {
        "passed": 1, "defective": 4, "not answered": 0, "not inspected": 1
    }  # fmt: skip
    assert judgements.loc["passed", "not inspected"] == 1
    assert score().modes.to_numpy().sum() == 12


def test_the_json_has_scores_with_intervals_confusions_and_misses_the_costliest_first():
    content = json.loads(json.dumps(score().to_dict()))
    assert [miss["outcome"] for miss in content["misses"]] == ["escape", "overkill", "wrong address"]
    miss = content["misses"][0]
    assert miss["file"] == NAMES[2]
    assert miss["answered"] == dict.fromkeys(("judgement", "defect_mode", "defect_position"), "passed")
    assert miss["p_defective"] == 0.25
    assert list(miss["suspicious_pins"].items()) == [
        (str(ADDRESSES[pin]), share) for pin, share in ((0, 0.6), (2, 0.25), (1, 0.1))
    ]
    exact = content["scores"]["exact_match"]
    assert 0 < exact["low"] < exact["value"] < exact["high"] < 1
    assert content["confusion"]["judgement"]["defective"]["not inspected"] == 1
    assert content["not_inspected"][0]["reason"] == "it does not show the line"
    assert content["not_inspected"][0]["expected"]["judgement"] == "defective"


def test_the_page_shows_every_miss_and_loads_nothing():
    page = render_score(score(trained_on=(NAMES[0],), remarks=("a remark",)))
    assert page == render_score(score(trained_on=(NAMES[0],), remarks=("a remark",)))
    assert page.count('class="outcome"') == 3
    assert page.count("data:image/jpeg") == 2
    for text in ("P(defective) 0.250", "it does not show the line", "these scores are too good", "a remark"):
        assert text in page
    assert "http" not in page.replace('"http://www.w3.org/2000/svg"', "")
    assert "<b>端子" not in page


def test_a_score_without_an_inspected_capture_has_no_values():
    everything = score(not_inspected=dict.fromkeys(NAMES, "dark"))
    assert everything.scores["inspected"].value == 0
    assert everything.scores["exact_match"].value is None
    assert "No capture could be inspected" in render_score(everything)


@pytest.fixture
def folder(tmp_path):
    """A project without a record of splits, and a labeled folder beside it."""
    return drop(tmp_path / "new", line()[4:8])


def test_all_problems_of_a_folder_are_named_at_once(folder):
    labels = read_labels(folder)
    write_labels(folder, [labels[0] | {"shape": "HEXA"}, labels[1] | {"judgement": "bad"}, *labels[2:]])
    with pytest.raises(CaptureError) as error:
        read_labeled_folder(folder, CONTRACT)
    assert len(str(error.value).splitlines()) == 2
    for missing in (folder / "nothing", folder.parent / "empty"):
        (folder.parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(PinspectError, match=r"no such folder|no captures found"):
            read_labeled_folder(missing, CONTRACT)


def test_equal_pictures_count_once_and_names_do_not_change_the_digest(folder):
    captures = read_labeled_folder(folder, CONTRACT)
    first = captures.captures[0]
    shutil.copy(captures.images / first.file, captures.images / "again.jpg")
    write_labels(folder, [*read_labels(folder), first.row() | {"file": "again.jpg"}])
    again = read_labeled_folder(folder, CONTRACT)
    assert again.captures == captures.captures
    assert any("again.jpg: the same picture as" in remark for remark in again.remarks)
    assert again.digest == captures.digest
    (captures.images / first.file).unlink()
    write_labels(folder, [row for row in read_labels(folder) if row["file"] != first.file])
    assert read_labeled_folder(folder, CONTRACT).digest == captures.digest


def test_training_captures_are_refused_by_name_in_an_acceptance_test(folder, tmp_path):
    captures = read_labeled_folder(folder, CONTRACT)
    with pytest.raises(StageInputError, match="training captures are unknown"):
        captures.trained_on(tmp_path, PARAMS.raw)
    hashes = [captures.sha256[capture.file] for capture in captures.captures]
    splits = zip(hashes[:3], (TRAIN, TEST, TRAIN), strict=True)
    write_splits(tmp_path / "data/splits.csv", splits, SplitRule.of(PARAMS.raw))
    trained_on = [captures.captures[0].file, captures.captures[2].file]
    assert list(captures.trained_on(tmp_path, PARAMS.raw)) == trained_on
    with pytest.raises(CaptureError) as error:
        read_acceptance_folder(tmp_path, PARAMS, folder)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert all(name in text for name, text in zip(trained_on, lines, strict=False))
