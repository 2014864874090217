"""The judgement threshold, chosen on validation captures for a wanted escape rate."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect.core.errors import StageInputError
from pinspect.core.operating_point import read_operating_point, write_operating_point
from pinspect.examination.operating_point import NOTHING, choose_operating_point, choose_threshold
from tests.support.evaluation_examples import PARAMS, answered, chat_row

chances = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, 1e-12, 1 - 1e-12]))
judged = st.lists(st.tuples(chances, st.booleans()), min_size=2, max_size=30).filter(
    lambda captures: len({defective for _, defective in captures}) == 2
)


def rates(p_defective, defective, threshold):
    called = p_defective >= threshold
    return (~called[defective]).mean(), called[~defective].mean()


def point_of(rows, chance, **changes):
    settings = PARAMS.evaluate.model_copy(update=changes)
    return choose_operating_point(answered(rows, chance=chance), settings, "0123")


@given(judged, st.sampled_from([0.0, 0.03, 0.2, 0.5]))
def test_no_threshold_with_so_few_escapes_has_less_overkill(captures, wanted):
    p_defective = np.array([chance for chance, _ in captures])
    defective = np.array([is_defective for _, is_defective in captures])
    escapes, overkill = rates(p_defective, defective, choose_threshold(p_defective, defective, wanted))
    assert escapes <= wanted
    # Chances below one in a thousand million count as one: no threshold is drawn between those.
    drawn = [0.0, *(chance for chance in p_defective if 1e-9 < chance <= 1 - 1e-9)]
    others = [rates(p_defective, defective, threshold) for threshold in drawn]
    assert overkill <= min(other for escaped, other in others if escaped <= wanted) + 1e-12


def test_the_threshold_is_one_half_if_it_separates_the_judgements():
    p_defective = np.array([0.001, 0.03, 0.9999])
    assert choose_threshold(p_defective, p_defective > 0.5, 0.0) == 0.5


@pytest.mark.parametrize(("passed", "defective"), [(0.6, 0.99), (0.01, 0.4), (0.01, 0.5)])
def test_outside_one_half_the_threshold_is_the_middle_of_the_gap_in_logits(passed, defective):
    p_defective = np.array([0.001, passed, defective, 0.999])
    odds = np.sqrt(passed / (1 - passed) * defective / (1 - defective))
    assert choose_threshold(p_defective, p_defective >= defective, 0.0) == pytest.approx(odds / (1 + odds))


def test_an_allowed_escape_without_less_overkill_is_not_used():
    p_defective, defective = np.array([0.1, 0.6, 0.7, 0.8]), np.array([False, True, True, True])
    assert 0.1 < choose_threshold(p_defective, defective, 0.5) < 0.6


def test_an_allowed_escape_reduces_overkill():
    p_defective, defective = np.array([0.2, 0.4, 0.9, 0.3, 0.5]), np.array([True, True, True, False, False])
    assert rates(p_defective, defective, choose_threshold(p_defective, defective, 0.0)) == (0, 1)
    assert rates(p_defective, defective, choose_threshold(p_defective, defective, 0.7)) == (pytest.approx(2 / 3), 0)


def test_only_camera_captures_with_productions_prompt_decide():
    misled = [chat_row(n, view="RAW") for n in range(8)] + [chat_row(n, shot="one_shot") for n in range(8)]
    misled += [chat_row(n, source="virtual") for n in range(8)]
    deciding = [chat_row(number) for number in range(8)]
    ids = {row["id"] for row in deciding}

    def chance(row):
        defective = "defective" in row["answer"]
        return (0.8 if defective else 0.6) if row["id"] in ids else 0.1

    point = point_of([*misled, *deciding], chance)
    assert (point.chosen_on, point.defective, point.passed) == ("camera", 4, 4)
    assert (point.escape_rate, point.overkill_rate) == (0, 0)
    assert 0.6 < point.threshold < 0.8
    assert (point.view, point.kind, point.weights_sha256) == ("DST", "two_image", "0123")


def test_the_virtual_line_decides_if_camera_captures_have_only_one_judgement():
    rows = [chat_row(1), chat_row(3), *(chat_row(number, source="virtual") for number in range(6))]
    point = point_of(rows, lambda row: 0.7 if "defective" in row["answer"] else 0.2)
    assert (point.chosen_on, point.defective, point.passed) == ("virtual", 3, 3)


def test_without_both_judgements_the_threshold_is_one_half_with_a_note():
    point = point_of([chat_row(1), chat_row(3)], lambda row: 0.9)
    assert (point.threshold, point.chosen_on) == (0.5, NOTHING)
    assert point.escape_rate is point.overkill_rate is None
    assert "no validation captures of both judgements" in point.summary()


def test_a_point_is_read_as_it_was_written(tmp_path):
    point = point_of([chat_row(number) for number in range(8)], lambda row: float("defective" in row["answer"]))
    write_operating_point(point, tmp_path / "models/operating_point.json")
    assert read_operating_point(tmp_path / "models/operating_point.json") == point
    assert "0.0% of 4 defective captures escape" in point.summary()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "not found"),
        ("{", "not JSON"),
        ("[]", "expected the keys"),
        (json.dumps({"threshold": 0.5}), "expected the keys"),
    ],
)
def test_a_point_that_cannot_be_used_is_named(tmp_path, content, problem):
    path = tmp_path / "operating_point.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StageInputError, match=rf"operating_point\.json: {problem}.*run dvc repro answer"):
        read_operating_point(path)


def test_a_threshold_outside_of_probabilities_is_refused(tmp_path):
    path = tmp_path / "operating_point.json"
    write_operating_point(point_of([chat_row(0), chat_row(1)], lambda row: 0.5), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threshold": 7}))
    with pytest.raises(StageInputError, match="threshold: expected a number between 0 and 1, found 7"):
        read_operating_point(path)
