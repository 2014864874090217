"""Drift: pictures of a line, under the training light and under other light, against its profile."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact

from pinspect.core.errors import AlignmentError
from pinspect.core.images import decode_image
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.inspection.line_profile import LineProfile, Sample, make_profile
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.unit_space import UnitSpace
from pinspect.station.drift import COLUMNS, QUANTITIES, measure_drift
from pinspect.station.results import ResultsTable
from pinspect.station.settings import DriftSettings
from tests.support.dst_line import build, drop_raw
from tests.support.evaluation_examples import PARAMS, answered, chat_row
from tests.support.sample import line

SETTINGS = DriftSettings()
WINDOW = SETTINGS.window
PASSED, DEFECTIVE = "passed", "defective"
BEGAN = datetime(2026, 1, 31, tzinfo=UTC)


def captures(seed: int) -> list:
    """Return 6 references and 60 inspected captures of one line; the seed selects the connectors."""
    return list(line(seed=seed, train=60, references=6, shapes=("CYLN",)))


def sure(row: dict) -> float:
    """Return P(defective) of a right and confident model, slightly different for every capture."""
    number = int(row["id"].split("-")[1])
    return 0.98 if "defective" in row["answer"] else 0.001 * (number % 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("line")
    drop_raw(root, captures(31))
    build(root)
    return root


@pytest.fixture(scope="module")
def profile(made) -> LineProfile:
    """The profile of 66 captures and of 40 validation captures, half of them defective."""
    return make_profile(
        made / "data/raw", made / "data/dst", answered([chat_row(n) for n in range(40)], chance=sure), PARAMS
    )


@pytest.fixture(scope="module")
def inspected(made):
    """A function that returns the results of many passed captures, each channel changed by `light`, newest first."""
    unit_space = UnitSpace.load(made / "data/dst/unit_space/camera-CYLN.npz")
    passed = [capture for capture in captures(32) if capture.judgement == PASSED]
    images = [np.asarray(decode_image(each.jpeg, each.name, PARAMS.raw.max_pixels)) for each in passed]
    measured = {}

    def results(number: int, light=lambda gray: gray, seed: int = 0) -> pd.DataFrame:
        if light not in measured:
            measured[light] = [record(in_light(image, light), unit_space) for image in images]
        chosen = np.random.default_rng(seed).integers(0, len(images), number)
        return pd.DataFrame([measured[light][index] for index in chosen], columns=list(COLUMNS), dtype=object)

    return results


def record(image, unit_space) -> dict:
    """Return the results row of a picture that a right and confident model answers with passed."""
    empty = dict.fromkeys(COLUMNS) | {"model_version": "1"}
    try:
        facts = line_facts(align_capture(image, unit_space, PARAMS.dst.maximum_shift))
    except AlignmentError as error:
        return empty | {"error": str(error)}
    return empty | facts | {"judgement": PASSED, "p_defective": 0.001 * (round(1e6 * facts["brightness"]) % 20)}


def in_light(image, light):
    channels = [light(channel.astype(np.float32) / 255) for channel in np.moveaxis(image, -1, 0)]
    return (255 * np.stack(channels, axis=-1)).clip(0, 255).round().astype(np.uint8)


def half(gray):
    return gray * np.float32(0.5)


def dying_at_one_side(gray):
    return gray * np.linspace(1, 0.4, gray.shape[1], dtype=np.float32)


def on_another_mat(gray):
    """Draw a coarse bright cloth between the pins."""
    cloth = cv2.GaussianBlur(np.random.default_rng(3).random(gray.shape, np.float32), (0, 0), 3)
    cloth = (cloth - cloth.min()) / np.ptp(cloth)
    return np.maximum(gray, np.float32(0.35) * cloth)


def dark(gray):
    return np.zeros_like(gray)


def judge(profile, latest, **changes):
    return measure_drift(profile, latest, SETTINGS.model_copy(update=changes))


def changed(report) -> set[str]:
    return {quantity.quantity for quantity in report.quantities if quantity.changed}


def answers(chances: dict[str, list[float]], version: str = "1") -> pd.DataFrame:
    """Return results of captures without line facts."""
    outcomes = [(judgement, chance) for judgement, values in chances.items() for chance in values]
    rows = [
        dict.fromkeys(COLUMNS) | {"judgement": judgement, "p_defective": chance, "model_version": version}
        for judgement, chance in outcomes
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


@pytest.mark.parametrize("seed", range(5))
def test_captures_under_the_training_light_are_not_drift(profile, inspected, seed):
    assert profile.defective_share == 0.5
    report = judge(profile, inspected(WINDOW, seed=seed))
    assert (report.changed, report.summary(), report.captures) == (False, "", WINDOW)
    assert {quantity.quantity for quantity in report.quantities if quantity.distance is not None} == set(QUANTITIES)


@pytest.mark.parametrize(
    ("light", "quantity"),
    [(half, "brightness"), (dying_at_one_side, "brightness"), (on_another_mat, "dst_background"), (dark, "set_aside")],
)
def test_another_light_or_background_is_drift_before_the_window_is_full_of_it(profile, inspected, light, quantity):
    new = inspected(WINDOW // 2, light)
    report = judge(profile, pd.concat([new, inspected(WINDOW)], ignore_index=True))
    assert quantity in changed(report)
    assert report.captures == WINDOW


def test_captures_beyond_the_window_are_not_looked_at(profile, inspected):
    old = inspected(WINDOW, half)
    assert not judge(profile, pd.concat([inspected(WINDOW), old], ignore_index=True)).changed


def test_the_warning_ends_once_the_profile_includes_such_captures(profile, inspected):
    latest = inspected(WINDOW, half, seed=1)
    assert changed(judge(profile, latest)) == {"brightness"}
    added = inspected(100, half, seed=2)
    retrained = {name: with_values(getattr(profile, name), added[name]) for name in LINE_FACTS}
    report = judge(replace(profile, **retrained), latest)
    assert not report.changed
    assert report.quantities[0].distance > 0.3


def test_a_few_captures_of_the_changed_line_in_the_profile_do_not_end_the_warning(profile, inspected):
    added = inspected(10, half, seed=2)["brightness"]
    retrained = replace(profile, brightness=with_values(profile.brightness, added))
    assert changed(judge(retrained, inspected(WINDOW, half, seed=1))) == {"brightness"}


def test_too_few_captures_are_not_judged(profile, inspected):
    minimum = SETTINGS.minimum
    report = judge(profile, inspected(minimum - 1, half))
    assert not report.changed
    assert all(quantity.distance is None and quantity.p is None for quantity in report.quantities)
    assert judge(profile, inspected(minimum, half)).changed
    assert not judge(profile, inspected(0)).changed


def test_a_significant_but_small_difference_is_not_drift(profile, inspected):
    mixed = pd.concat([inspected(WINDOW // 2, half), inspected(WINDOW)], ignore_index=True)
    brightness = judge(profile, mixed, minimum_effect=0.0).quantities[0]
    assert brightness.changed
    for effect, matters in ((brightness.distance - 0.01, True), (brightness.distance + 0.01, False)):
        assert judge(profile, mixed, minimum_effect=effect).quantities[0].changed == matters


def test_p_defective_closer_to_zero_or_one_is_not_a_change(profile):
    certain = replace(profile, p_passed=sample([0.0] * 20))
    assert not judge(certain, answers({PASSED: [1e-9 * (number + 1) for number in range(WINDOW)]})).changed


def test_the_significance_is_shared_among_the_quantities(profile, inspected):
    mixed = pd.concat([inspected(WINDOW // 2, half), inspected(WINDOW)], ignore_index=True)
    p = judge(profile, mixed).quantities[0].p
    for share, matters in ((1.1, True), (0.9, False)):
        report = judge(profile, mixed, minimum_effect=0.0, significance=share * len(QUANTITIES) * p)
        assert report.quantities[0].changed == matters


def test_a_changed_share_of_defective_captures_is_not_drift(profile):
    # In validation the model is confident about passed answers and uncertain about half of its defective answers.
    unsure = replace(profile, p_defective=sample([0.99] * 10 + [0.6] * 10))
    passed = [0.001 * (number % 20) for number in range(WINDOW)]
    for defective in (0, 4, 140):
        latest = answers({PASSED: passed[: WINDOW - defective], DEFECTIVE: ([0.99, 0.6] * 70)[:defective]})
        assert not judge(unsure, latest).changed


def test_a_model_that_becomes_unsure_is_drift_whatever_it_judges(profile):
    passed = [0.001 * (number % 20) for number in range(100)]
    assert changed(judge(profile, answers({PASSED: passed, DEFECTIVE: [0.5] * 100}))) == {"uncertain"}
    assert "p_defective" in changed(judge(profile, answers({PASSED: [0.04] * 100 + passed, DEFECTIVE: []})))


def test_a_model_that_becomes_surer_is_no_drift(profile):
    unsure = replace(profile, p_defective=sample([0.5] * 40))
    assert "uncertain" not in changed(judge(unsure, answers({DEFECTIVE: [0.99] * WINDOW})))


def test_within_one_judgement_the_test_of_shares_is_fishers(profile):
    unsure = replace(profile, p_passed=sample([0.01] * 30 + [0.5] * 4))
    report = judge(unsure, answers({PASSED: [0.01] * 60 + [0.5] * 20}))
    quantities = {quantity.quantity: quantity for quantity in report.quantities}
    assert quantities["uncertain"].p == pytest.approx(fisher_exact([[20, 60], [4, 30]], alternative="greater").pvalue)
    assert quantities["uncertain"].distance == pytest.approx(20 / 80 - 4 / 34, abs=1e-4)


def test_answers_of_another_version_are_not_judged(profile):
    sure_now = answers({PASSED: [0.001 * (number % 20) for number in range(50)]}, version="2")
    unsure_then = answers({PASSED: [0.3] * 150}, version="1")
    latest = pd.concat([sure_now, unsure_then], ignore_index=True)
    assert not judge(profile, latest).changed
    assert judge(profile, latest.assign(model_version="2")).changed


def test_quantities_missing_from_the_profile_are_not_judged(inspected):
    nothing = Sample((), 0, "nothing")
    empty = LineProfile(nothing, nothing, nothing, nothing, defective_share=None, set_aside_share=None)
    report = judge(empty, inspected(WINDOW, half))
    assert not report.changed
    assert all(quantity.distance is None for quantity in report.quantities)


def test_the_share_set_aside_in_training_is_taken_into_account(profile, inspected):
    half_lost = pd.concat([inspected(100, dark), inspected(100)], ignore_index=True)
    assert changed(judge(profile, half_lost)) == {"set_aside"}
    assert not judge(replace(profile, set_aside_share=0.4), half_lost).changed


def test_a_change_is_described_in_both_languages(profile, inspected):
    report = judge(profile, inspected(WINDOW, half))
    now, before = report.quantities[0].now, report.quantities[0].before
    assert now < 0.6 * before
    assert report.summary("en") == f"image brightness: median {now:.2g}, {before:.2g} in training"
    assert report.summary("ja") == f"画像の明るさ: 中央値 {now:.2g}（学習時 {before:.2g}）"
    dark_day = judge(profile, inspected(WINDOW, dark))
    assert dark_day.summary() == "captures that cannot be inspected: 100%, 0% in training"


def test_a_report_survives_json(profile, inspected):
    report = judge(profile, inspected(WINDOW, half))
    stored = json.loads(json.dumps(report.to_dict()))
    assert (stored["changed"], stored["summary"]["en"], stored["captures"]) == (True, report.summary(), WINDOW)
    assert [quantity["quantity"] for quantity in stored["quantities"]] == list(QUANTITIES)
    assert [quantity["changed"] for quantity in stored["quantities"]] == [True, False, False, False, False]


def test_a_profile_can_be_json_and_an_invalid_profile_is_reported(profile, inspected):
    latest = inspected(WINDOW, half)
    assert judge(json.loads(json.dumps(profile.to_dict())), latest) == judge(profile, latest)
    report = judge({"brightness": 1}, latest)
    assert not report.changed
    assert "expected the keys" in report.problem


def test_the_results_table_supplies_the_judged_quantities(profile, inspected, tmp_path):
    table = ResultsTable(f"sqlite:///{tmp_path / 'results.db'}")
    for number, row in enumerate(inspected(40, half).to_dict("records")):
        received = BEGAN + timedelta(seconds=number)
        table.record(row | {"file": "a.jpg"}, id=str(number), sha256="0" * 64, source="station", received=received)
    assert changed(judge(profile, table.latest(WINDOW, COLUMNS))) == {"brightness"}


def with_values(known: Sample, added: pd.Series) -> Sample:
    values = (*known.values, *map(float, added))
    return Sample(tuple(sorted(values)), len(values), known.source)


def sample(values: list[float]) -> Sample:
    return Sample(tuple(sorted(values)), len(values), "camera")
