"""The baseline that needs no model: fitted on training captures only, answering in the contract's words."""

import shutil

import numpy as np
import pandas as pd
import pytest

from pinspect.core.errors import StageInputError
from pinspect.core.images import decode_image
from pinspect.core.predictions import BASELINE
from pinspect.examination.baseline import UNTRAINED_THRESHOLD, choose_threshold, fit_baseline
from pinspect.nsoartc.unit_space import UnitSpace
from tests.support.dst_line import READING, build, drop_raw, read_rows, write_rows
from tests.support.sample import line, params

CONTRACT = params().contract()
CAPTURES = line(seed=21, train=90, references=6)
TRAIN, TEST = CAPTURES[:72], CAPTURES[72:]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The dst folder of a line whose last 30 captures are its test split."""
    root = tmp_path_factory.mktemp("baseline")
    drop_raw(root, CAPTURES, **{capture.name: {"split": "test"} for capture in TEST})
    build(root)
    return root


@pytest.fixture(scope="module")
def baseline(root):
    return fit_baseline(root / "data/dst", root / "data/raw", CONTRACT)


def test_the_baseline_finds_defects_in_unseen_captures(root, baseline):
    rows = read_rows(root / "data/raw")
    answers = {capture.name: baseline.inspect(rows[capture.name]["file"]).answer.values() for capture in TEST}
    assert {capture.judgement for capture in TEST} == {"passed", "defective"}
    wrong_judgements = [c.name for c in TEST if answers[c.name]["judgement"] != c.judgement]
    wrong_places = [
        c.name for c in TEST if c.judgement == "defective" and answers[c.name]["defect_position"] != c.defect_position
    ]
    wrong_modes = [c.name for c in TEST if answers[c.name]["defect_mode"] != c.defect_mode]
    assert len(wrong_judgements) <= 1 and len(wrong_places) <= 1 and len(wrong_modes) <= 3


def test_every_answer_keeps_the_contract(baseline):
    for file, row in baseline.scores.iterrows():
        for view in ("RAW", "DST"):
            finding = baseline.inspect(file, view)
            assert CONTRACT.parse(CONTRACT.render(finding.answer)) == finding.answer
            assert (finding.answer.judgement == "defective") == (finding.p_defective >= 0.5)
            assert finding.score == row["score"]


def test_p_defective_orders_captures_as_the_score_does(baseline):
    findings = [baseline.inspect(file) for file in baseline.scores.index]
    assert np.array_equal(
        np.argsort([f.score for f in findings], kind="stable"),
        np.argsort([f.p_defective for f in findings], kind="stable"),
    )


def test_the_labels_of_the_test_split_do_not_matter(root, baseline, tmp_path):
    shutil.copytree(root / "data/raw", tmp_path / "raw")
    rows = read_rows(tmp_path / "raw")
    for capture in TEST:
        rows[capture.name] |= {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}
    write_rows(tmp_path / "raw", rows.values())
    blind = fit_baseline(root / "data/dst", tmp_path / "raw", CONTRACT)
    assert blind.thresholds == baseline.thresholds
    assert [blind.inspect(file) for file in blind.scores.index] == [
        baseline.inspect(file) for file in baseline.scores.index
    ]


def test_a_capture_that_is_in_no_folder_gets_the_same_finding(root, baseline):
    rows = read_rows(root / "data/raw")
    for capture in TEST[:4]:
        space = UnitSpace.load(root / f"data/dst/unit_space/camera-{capture.shape}.npz")
        image = np.asarray(decode_image(capture.jpeg, capture.name, READING.max_pixels))
        finding = baseline.inspect_image(image, space, READING.params.maximum_shift, "camera")
        assert finding == baseline.inspect(rows[capture.name]["file"])


def test_predictions_are_rows_of_the_predictions_table(root, baseline):
    rows = read_rows(root / "data/raw")
    chat_rows = [
        {
            "id": f"{capture.name}-{view}", "source": "camera", "shape": capture.shape, "view": view,
            "kind": "two_image", "shot": "zero_shot", "file": rows[capture.name]["file"],
            "answer": CONTRACT.render(CONTRACT.passed(capture.shape, view)),
        }
        for capture in TEST[:3] for view in ("RAW", "DST")
    ]  # fmt: skip
    predictions = baseline.answer(chat_rows, "free")
    assert predictions["id"].tolist() == [row["id"] for row in chat_rows]
    assert predictions["parses"].all()
    assert (predictions["model"] == BASELINE).all() and (predictions["decoding"] == "free").all()
    assert [row.split("\n")[0][-3:] for row in predictions["answer"]] == ["RAW", "DST"] * 3


def test_a_capture_that_was_set_aside_is_refused_by_name(baseline):
    with pytest.raises(StageInputError, match=r"images/none\.jpg: no pin scores"):
        baseline.inspect("images/none.jpg")


@pytest.mark.parametrize("kept", ["passed", "defective"])
def test_with_captures_of_one_judgement_it_falls_back_to_the_untrained_threshold(root, tmp_path, kept):
    shutil.copytree(root / "data", tmp_path / "data")
    rows = {n: r for n, r in read_rows(root / "data/raw").items() if r["judgement"] == kept or r["split"] == "test"}
    write_rows(tmp_path / "data/raw", rows.values())
    fitted = fit_baseline(tmp_path / "data/dst", tmp_path / "data/raw", CONTRACT)
    assert fitted.thresholds["camera"] == UNTRAINED_THRESHOLD
    modes = {fitted.inspect(file).answer.defect_mode for file in fitted.scores.index}
    assert modes <= {"passed", *CONTRACT.defect_modes} and len(modes) > 1


def test_the_threshold_has_the_fewest_errors_and_the_widest_gap():
    scores = np.array([1.0, 1.1, 1.2, 4.0, 5.0])
    threshold = choose_threshold(scores, np.array([False, False, False, True, True]))
    assert threshold == pytest.approx(np.sqrt(1.2 * 4.0))
    mixed = choose_threshold(np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.array([False, False, True, False, True]))
    assert 2.0 < mixed < 3.0


def test_an_error_about_a_missing_table_shows_what_to_run(tmp_path):
    with pytest.raises(StageInputError, match=r"scores\.csv: not found; run `dvc repro`"):
        fit_baseline(tmp_path, tmp_path, CONTRACT)


def test_scores_come_back_as_numbers(baseline):
    assert pd.api.types.is_float_dtype(baseline.scores["score"])
    assert pd.api.types.is_float_dtype(baseline.scores["X:1, Y:U"])
