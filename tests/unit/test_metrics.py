import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from pinspect.core import predictions
from pinspect.core.errors import AnswerFormatError, StageInputError
from pinspect.core.prompts import SHOTS
from pinspect.core.statistics import wilson
from pinspect.evaluation import metrics
from pinspect.evaluation.comparing import compare_predictions, mcnemar
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    answered,
    baseline,
    chat_row,
    escaped,
    moved,
    overkilled,
    right,
    truth,
    unreadable,
)

ANSWERS = (right, escaped, overkilled, unreadable)
_ANSWERED = {answer: answered(map(chat_row, range(40)), answer) for answer in ANSWERS}


def one_answer_each(choices):
    """Return predictions of captures 0, 1, 2 ..., each answered as its entry of `choices` names."""
    return pd.concat([_ANSWERED[choice].iloc[[number]] for number, choice in enumerate(choices)], ignore_index=True)


some_answers = st.lists(st.sampled_from(ANSWERS), min_size=2, max_size=24)


def test_right_answers_score_one_without_escapes():
    scores = metrics.score(answered(map(chat_row, range(12)), chance=lambda row: float("defective" in row["answer"])))
    for name in metrics.METRICS:
        expected = 0.0 if name in metrics.BETTER_WHEN_LOW else 1.0
        assert scores[name].value == expected, name
    assert (scores["exact_match"].n, scores["escape_rate"].n, scores["overkill_rate"].n) == (12, 6, 6)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (escaped, {"escape_rate": 1, "overkill_rate": 0, "balanced_accuracy": 0.5, "exact_match": 0.5}),
        (overkilled, {"escape_rate": 0, "overkill_rate": 1, "balanced_accuracy": 0.5, "parse_rate": 1}),
        (unreadable, {"escape_rate": 0, "overkill_rate": 0, "balanced_accuracy": 0, "not_answered_rate": 1}),
    ],
)
def test_each_way_to_be_wrong_has_its_own_figure(answer, expected):
    scores = metrics.score(answered(map(chat_row, range(8)), answer))
    assert {name: scores[name].value for name in expected} == expected


def test_an_unreadable_answer_is_wrong_in_every_field_but_no_escape():
    scores = metrics.score(answered([chat_row(0)], unreadable))
    wrong = ["exact_match", "address_on_defective", "mode_on_defective", "parse_rate"]
    wrong += [name for name in metrics.METRICS if name.endswith("_accuracy") and name != "balanced_accuracy"]
    assert {scores[name].value for name in wrong} == {0.0}
    assert (scores["escape_rate"].value, scores["not_answered_rate"].value) == (0.0, 1.0)


def test_a_wrong_address_is_an_address_error_only():
    defective = [chat_row(number) for number in range(0, 12, 2)]
    scores = metrics.score(answered(defective, moved))
    assert (scores["address_on_defective"].value, scores["mode_on_defective"].value) == (0.0, 1.0)
    assert (scores["judgement_accuracy"].value, scores["exact_match"].value) == (1.0, 0.0)


def test_without_captures_of_a_class_its_scores_are_blank():
    scores = metrics.score(answered([chat_row(1), chat_row(3)]))
    for name in ("escape_rate", "address_on_defective", "balanced_accuracy", "auroc"):
        assert scores[name].value is None
        assert scores[name].low is None
    assert scores["overkill_rate"].value == 0.0


@given(some_answers)
@settings(max_examples=25, deadline=None)
def test_every_defective_capture_is_caught_escaped_or_not_answered(choices):
    table = one_answer_each(choices)
    scores = metrics.score(table, bootstrap_samples=50)
    defective = table[table["expected_judgement"] == "defective"]
    caught = (defective["found_judgement"] == "defective").mean()
    assert caught + scores["escape_rate"].value + scores["not_answered_rate"].value == pytest.approx(1)


@given(some_answers)
@settings(max_examples=25, deadline=None)
def test_every_interval_holds_its_figure_and_stays_within_0_and_1(choices):
    for name, score in metrics.score(one_answer_each(choices), bootstrap_samples=200).items():
        if score.value is not None:
            assert 0 <= score.low <= score.value + 1e-12, name
            assert score.value - 1e-12 <= score.high <= 1, name


@given(some_answers, st.randoms())
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_does_not_matter(choices, random):
    table = one_answer_each(choices)
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = metrics.score(table.iloc[order], bootstrap_samples=100)
    for name, score in metrics.score(table, bootstrap_samples=100).items():
        assert shuffled[name].value == pytest.approx(score.value), name


@given(hits=st.integers(0, 60), more=st.integers(0, 60))
def test_wilson_is_the_interval_of_the_score_test(hits, more):
    n = max(1, hits + more)
    low, high = wilson(hits, n)
    exact = binomtest(hits, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(st.integers(1, 40))
def test_more_captures_make_the_interval_narrower(n):
    few, many = wilson(n, 2 * n), wilson(2 * n, 4 * n)
    assert many[1] - many[0] < few[1] - few[0]


def test_wilson_refuses_invalid_counts():
    with pytest.raises(ValueError, match="hits=3, n=2"):
        wilson(3, 2)


def test_two_answers_to_one_capture_are_not_two_captures():
    rows = [chat_row(number, shot=shot) for number in range(10) for shot in SHOTS]
    pooled, alone = metrics.score(answered(rows)), metrics.score(answered(rows[::2]))
    assert (pooled["exact_match"].n, pooled["exact_match"].captures) == (20, 10)
    assert pooled["exact_match"].low == alone["exact_match"].low


def test_intervals_cover_the_true_value_at_their_confidence():
    random, draws = np.random.default_rng(3), 50
    held = 0
    for draw in range(draws):
        choices = [right if random.random() < 0.85 else (overkilled if n % 2 else escaped) for n in range(40)]
        score = metrics.score(one_answer_each(choices), bootstrap_samples=200, seed=draw)["balanced_accuracy"]
        held += score.low <= 0.85 <= score.high
    assert binom.cdf(held, draws, 0.90) > 0.001


def test_the_auroc_is_the_chance_that_a_defective_capture_scores_higher():
    rows = [chat_row(number) for number in range(6)]  # captures 0, 2 and 4 are defective
    chances = {0: 0.9, 2: 0.4, 4: 0.8, 1: 0.1, 3: 0.5, 5: 0.2}
    auroc = metrics.score(answered(rows, chance=lambda row: chances[int(row["id"].split("-")[1])]))["auroc"]
    assert auroc.value == pytest.approx(8 / 9)
    assert auroc.low < auroc.value < auroc.high < 1


def test_a_perfect_auroc_of_few_captures_is_no_certainty():
    few, many = (
        metrics.score(answered(map(chat_row, range(n)), chance=lambda row: float("defective" in row["answer"])))[
            "auroc"
        ]
        for n in (8, 80)
    )
    assert few.value == many.value == few.high == 1
    assert few.low < 0.8 < 0.9 < many.low


def test_groups_are_scored_apart_and_together():
    rows = [
        chat_row(number, view=view, shot=shot, source=source)
        for number in range(8)
        for view in ("RAW", "DST")
        for shot in SHOTS
        for source in ("camera", "virtual")
    ]
    wrong = pd.concat(
        [answered(rows, lambda row: escaped(row) if row["view"] == "RAW" else right(row)), baseline(rows[:8])]
    )
    table = metrics.score_table(wrong, bootstrap_samples=50).set_index([*metrics.GROUP, "metric"])["value"]
    head = ("adapter", "constrained", "camera", "two_image", "zero_shot")
    assert table[(*head, "RAW", "all", "escape_rate")] == 1
    assert table[(*head, "DST", "all", "escape_rate")] == 0
    assert table[(*head, "all", "all", "escape_rate")] == 0.5
    assert table[(*head, "DST", "SQUR_DST", "exact_match")] == 1
    assert (predictions.BASELINE, "constrained", "camera", "all", "all", "all", "all", "exact_match") in table.index


def test_mcnemar_counts_only_captures_on_which_the_models_differ():
    rows = [chat_row(number) for number in range(20)]
    better = answered(rows)
    worse = pd.concat([answered(rows[:8], escaped), answered(rows[8:])])
    result = mcnemar(better, worse)
    assert (result.n, result.only_first, result.only_second) == (20, 4, 0)
    assert result.p_value == pytest.approx(2 * 0.5**4)
    assert mcnemar(better, better.sample(frac=1, random_state=1)).p_value == 1.0


@given(
    st.lists(st.sampled_from(ANSWERS), min_size=6, max_size=6),
    st.lists(st.sampled_from(ANSWERS), min_size=6, max_size=6),
)
@settings(max_examples=15, deadline=None)
def test_mcnemar_is_symmetric(first, second):
    forward, backward = mcnemar(a := one_answer_each(first), b := one_answer_each(second)), mcnemar(b, a)
    assert (forward.only_first, forward.only_second) == (backward.only_second, backward.only_first)
    assert forward.p_value == backward.p_value


def test_mcnemar_refuses_tables_of_different_captures():
    with pytest.raises(ValueError, match="1 are in one table only"):
        mcnemar(answered(map(chat_row, range(5))), answered(map(chat_row, range(4))))
    with pytest.raises(ValueError, match="occurs twice"):
        mcnemar(answered([chat_row(0), chat_row(0)]), answered([chat_row(0)]))
    with pytest.raises(ValueError, match="found 'mood'"):
        mcnemar(answered([chat_row(0)]), answered([chat_row(0)]), "mood")


def test_the_confusion_matrix_counts_every_answer_once():
    table = one_answer_each([right, overkilled, escaped, right, unreadable, unreadable])
    counts = metrics.confusion(table, CONTRACT.defect_modes)
    assert counts.to_numpy().sum() == len(table)
    assert counts.loc["passed", "bend"] == 1
    assert counts.loc["passed", metrics.NOT_ANSWERED] == 1
    assert counts.loc[truth(2).defect_mode, "passed"] == 1


def test_the_address_map_counts_missed_and_wrongly_named_addresses():
    counts = metrics.address_errors(answered([chat_row(0), chat_row(2)], moved), CONTRACT.layout)
    first, second, third = map(str, ADDRESSES[:3])
    assert counts.loc[first].tolist() == [1, 1, 0]
    assert counts.loc[second].tolist() == [1, 1, 1]
    assert counts.loc[third].tolist() == [0, 0, 1]
    assert len(counts) == CONTRACT.layout.pins


def test_the_roc_runs_from_nothing_caught_to_everything_refused():
    curve = metrics.roc(
        answered(map(chat_row, range(8)), chance=lambda row: 0.9 if "defective" in row["answer"] else 0.2)
    )
    assert curve[["overkill_rate", "caught_rate"]].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
    assert metrics.roc(answered(map(chat_row, range(8)))).empty


def chance_of(low, high):
    """Return a function of P(defective) that rises from `low` to `high` with the number of the capture."""
    return lambda row: low + (high - low) * int(str(row["file"]).split("/")[-1].removesuffix(".jpg")) / 40


def test_a_confident_right_model_is_calibrated_and_a_confident_wrong_model_is_not():
    rows = [chat_row(number) for number in range(8)]
    right_odds = metrics.score(answered(rows, chance=lambda row: float("defective" in row["answer"])))
    wrong_odds = metrics.score(answered(rows, chance=lambda row: float("defective" not in row["answer"])))
    even_odds = metrics.score(answered(rows, chance=lambda row: 0.5))
    assert [scores["ece"].value for scores in (right_odds, wrong_odds, even_odds)] == [0, 1, 0]


def test_the_calibration_error_is_the_gap_of_the_reliability_table():
    answers = answered(map(chat_row, range(40)), chance=chance_of(0.05, 0.8))
    table = metrics.reliability(answers)
    assert table["n"].sum() == 40
    assert ((table["low"] <= table["mean_probability"]) & (table["mean_probability"] <= table["high"])).all()
    gaps = (table["defective_share"] - table["mean_probability"]).abs() * table["n"]
    ece = metrics.score(answers)["ece"]
    assert ece.value == pytest.approx(gaps.sum() / 40)
    assert ece.low <= ece.value <= ece.high
    assert (ece.n, ece.captures) == (40, 40)


def test_a_probability_of_one_lies_in_the_last_bin():
    table = metrics.reliability(answered(map(chat_row, range(4)), chance=lambda row: 1.0))
    assert table.to_numpy().tolist() == [[0.9, 1.0, 4, 1.0, 0.5]]
    assert metrics.reliability(answered(map(chat_row, range(4)))).empty


@given(some_answers, some_answers, st.sampled_from([(0.0, 1.0), (0.9, 0.1)]))
@settings(max_examples=6)
def test_a_comparison_has_both_scores_and_their_difference(first, second, span):
    size = min(len(first), len(second))
    tables = [one_answer_each(choices[:size]) for choices in (first, second)]
    tables[1] = tables[1].assign(p_defective=[chance_of(*span)(row) for row in map(chat_row, range(size))])
    tables[0] = tables[0].assign(p_defective=[chance_of(0.2, 0.4)(row) for row in map(chat_row, range(size))])
    comparison = compare_predictions(*tables, bootstrap_samples=50)
    scores = [metrics.score(table, bootstrap_samples=10) for table in tables]
    assert list(comparison.differences) == list(metrics.HEADLINE)
    for metric, difference in comparison.differences.items():
        assert difference.first == pytest.approx(scores[0][metric].value)
        assert difference.second == pytest.approx(scores[1][metric].value)
        assert difference.difference == pytest.approx(difference.second - difference.first)
        assert difference.low - 1e-9 <= difference.high
    assert comparison.mcnemar["exact_match"] == mcnemar(*tables)
    assert (comparison.n, comparison.captures) == (size, size)


def test_the_interval_of_a_clear_difference_excludes_zero():
    rows = [chat_row(number) for number in range(40)]
    same = compare_predictions(answered(rows), answered(rows))
    assert {(d.difference, d.low, d.high) for d in same.differences.values()} == {(0, 0, 0)}
    assert same.mcnemar["judgement"].p_value == 1
    worse = pd.concat([answered(rows[:12], escaped), answered(rows[12:])])
    escape = compare_predictions(answered(rows), worse).differences["escape_rate"]
    assert (escape.first, escape.second) == (0.0, pytest.approx(6 / 20))
    assert 0 < escape.low < 0.3 < escape.high < 0.6


def test_the_rows_of_a_capture_are_drawn_together():
    """Two rows of one capture count as one capture: a second view makes no interval narrower."""
    once = [chat_row(number) for number in range(24)]
    twice = [chat_row(number, view=view) for number in range(24) for view in ("DST", "RAW")]

    def width(rows):
        half = len(rows) // 2
        worse = pd.concat([answered(rows[:half], escaped), answered(rows[half:])])
        difference = compare_predictions(answered(rows), worse, bootstrap_samples=500).differences["exact_match"]
        return difference.high - difference.low

    assert width(twice) == pytest.approx(width(once))


def test_predictors_without_common_rows_cannot_be_compared():
    with pytest.raises(ValueError, match="both tables must answer the same rows; 2 are in one table only"):
        compare_predictions(answered([chat_row(0)]), answered([chat_row(2)]))


def test_a_score_missing_from_one_table_is_not_compared():
    rows = [chat_row(number) for number in range(4)]
    comparison = compare_predictions(answered(rows, chance=lambda row: 0.5), answered(rows), bootstrap_samples=10)
    assert "auroc" not in comparison.differences
    passed_only = [chat_row(1), chat_row(3)]
    comparison = compare_predictions(answered(passed_only), answered(passed_only), bootstrap_samples=10)
    assert set(comparison.differences) == {"exact_match", "overkill_rate", "parse_rate"}


def test_a_predictions_table_survives_its_file(tmp_path):
    table = pd.concat([answered(map(chat_row, range(6)), chance=lambda row: 0.25), answered([chat_row(6)], unreadable)])
    predictions.write(table, tmp_path / "predictions.csv")
    stored = predictions.read(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(stored, table.reset_index(drop=True), check_dtype=False)
    assert stored.loc[1, "expected_defect_position"] == "passed"


def test_the_predictions_table_holds_the_generated_probabilities(tmp_path):
    shares = [0.5, 0.25, 0.25, *[0.0] * 24]
    row = chat_row(0)
    record = predictions.prediction(
        row, row["answer"], CONTRACT, model="m", threshold=0.4, address_entropy=1.5, address_probabilities=shares
    )
    predictions.write(
        predictions.table([record, predictions.prediction(row, "", CONTRACT, model="m")]), tmp_path / "p.csv"
    )
    stored = predictions.read(tmp_path / "p.csv")
    assert stored["threshold"].tolist()[0] == 0.4 and stored["address_entropy"].tolist()[0] == 1.5
    probabilities = predictions.address_probabilities(stored, CONTRACT.layout.pins)
    assert probabilities[0].tolist() == shares
    assert np.isnan(probabilities[1]).all() and np.isnan(stored["threshold"][1])


def test_a_predictions_table_that_is_missing_or_foreign_is_named(tmp_path):
    with pytest.raises(StageInputError, match=r"predictions\.csv: not found"):
        predictions.read(tmp_path / "predictions.csv")
    (tmp_path / "other.csv").write_text("id,answer\n")
    with pytest.raises(StageInputError, match="lacks the columns model, decoding"):
        predictions.read(tmp_path / "other.csv")


def test_an_expected_answer_that_breaks_the_contract_is_not_scored():
    with pytest.raises(AnswerFormatError):
        answered([chat_row(0) | {"answer": "no answer"}])
