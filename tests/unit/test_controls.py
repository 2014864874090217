"""The controls: each makes exactly its change, a model that compares the pictures holds every control, and each
model that ignores a picture fails one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pinspect.core.answers import AnswerKind
from pinspect.core.errors import StageInputError
from pinspect.core.question import Question
from pinspect.evaluation.wording import checks_table, control_outcome
from pinspect.examination import control_prompts
from pinspect.examination.control_prompts import LIGHTS, control_rows, make_controls
from pinspect.examination.controls import judge_control, run_controls
from tests.support.inspected_rows import CELL, CONTRACT, LAYOUT, field, make_rows, picture

SHAPES = CONTRACT.shapes
QUESTION = Question("RAW", "two_image", "constrained")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def rows(images):
    return make_rows(images)


@pytest.fixture(scope="module")
def controls(rows, images, tmp_path_factory):
    made = make_controls(rows, images, tmp_path_factory.mktemp("controls"), LAYOUT)
    return {control.name: control for control in made}


def pairs_of(control, images):
    """Return the pictures of each row before and after the change."""
    for row, original in zip(control.rows, control.originals, strict=True):
        yield [picture(images, name) for name in original["images"]], [picture(images, name) for name in row["images"]]


# --- the changes


def test_the_blank_control_hides_every_inspected_pin_and_changes_nothing_else(controls, images):
    for (reference, inspected), (same, blank) in pairs_of(controls["blank"], images):
        assert field(blank).std() == 0
        assert abs(float(field(blank).mean()) - float(field(inspected).mean())) <= 0.5
        assert (same == reference).all()
        field_free = blank.copy()
        field(field_free)[:] = field(inspected)
        assert (field_free == inspected).all()


@pytest.mark.parametrize("kind", ["two_image", "stacked"])
def test_swapping_twice_gives_back_the_prompt(kind, images, tmp_path):
    rows = make_rows(images, kind)
    once = make_controls(rows, images, tmp_path, LAYOUT)[1]
    twice = make_controls(once.rows, images, tmp_path, LAYOUT)[1]
    assert once.name == twice.name == "swapped"
    for original, swapped, back in zip(rows, once.rows, twice.rows, strict=True):
        before, between, after = (
            [picture(images, name) for name in row["images"]] for row in (original, swapped, back)
        )
        assert any((first != second).any() for first, second in zip(before, between, strict=True))
        assert all((first == second).all() for first, second in zip(before, after, strict=True))


def test_shuffled_letters_leave_every_pixel_of_a_pin(controls, images):
    for before, after in pairs_of(controls["shuffled_letters"], images):
        for plain, shuffled in zip(before, after, strict=True):
            assert (field(plain) == field(shuffled)).all()


def test_no_letter_stays_in_its_place_and_both_images_agree(controls, images):
    for row in controls["shuffled_letters"].rows:
        assert sorted(row["columns"]) == list(range(LAYOUT.columns))
        assert all(place != mark for order in (row["columns"], row["letters"]) for place, mark in enumerate(order))
        reference, inspected = (picture(images, name) for name in row["images"])
        assert (reference[:CELL] == inspected[:CELL]).all() and (reference[:, :CELL] == inspected[:, :CELL]).all()
    # The mark above column `place` is the one that stood above `columns[place]`.
    row, original = controls["shuffled_letters"].rows[0], controls["shuffled_letters"].originals[0]
    plain, shuffled = picture(images, original["images"][0]), picture(images, row["images"][0])
    for place, mark in enumerate(row["columns"], start=1):
        now, then = (
            shuffled[:CELL, place * CELL : (place + 1) * CELL],
            plain[:CELL, (mark + 1) * CELL : (mark + 2) * CELL],
        )
        assert (now == then).all()


def test_the_other_shape_control_shows_a_reference_of_another_shape(controls, rows, images):
    references = {row["shape"]: picture(images, row["images"][0]) for row in rows}
    for row, (_, (reference, inspected)) in zip(
        controls["other_shape"].rows, pairs_of(controls["other_shape"], images), strict=True
    ):
        (other,) = set(SHAPES) - {row["shape"]}
        assert (reference == references[other]).all()
        assert (inspected == picture(images, f"{row['id'].removesuffix('-other_shape')}-1.png")).all()


def test_the_light_control_changes_only_the_inspected_pins(controls, rows, images):
    lighting = controls["lighting"]
    assert len(lighting.rows) == len(LIGHTS) * len(rows)
    for row, ((reference, inspected), (same, relit)) in zip(lighting.rows, pairs_of(lighting, images), strict=True):
        assert (same == reference).all()
        assert (relit[:CELL] == inspected[:CELL]).all() and (relit[:, :CELL] == inspected[:, :CELL]).all()
        light = [np.clip(field(image) / 255.0, 0, 1) ** 2.2 for image in (inspected, relit)]
        if row["light"] == "dim":
            assert light[1].sum() / light[0].sum() == pytest.approx(0.7, abs=0.02)
        if row["light"] == "worn lamp at the left":
            left, right = (light[1][:, part].sum() / light[0][:, part].sum() for part in (np.s_[:20], np.s_[-20:]))
            assert (left, right) == (pytest.approx(0.7, abs=0.05), pytest.approx(1, abs=0.05))


# --- predictors: their answers depend on the pictures that they compare


def look(single: np.ndarray) -> np.ndarray:
    """Return features of a pin field that do not depend on light: 4 px blocks relative to neighbors, a unit vector."""
    blocks = field(single).astype(float).mean(2).reshape(-1, 4, LAYOUT.columns * CELL // 4, 4).mean((1, 3))
    edges = np.diff(np.log(blocks + 8), axis=1).ravel()
    return edges / max(np.linalg.norm(edges), 1e-9)


class Looker:
    """Answers from the pictures: it recognizes every pin field in any light and returns the inspected field's label.

    A field without contrast counts as defective. Subclasses ignore a part of the pictures.
    """

    def __init__(self, rows, images):
        self.known = []
        for row in rows:
            truth = CONTRACT.parse(row["answer"], AnswerKind(row["answer_kind"]))
            reference, inspected = self.singles(row, images)
            self.known += [(look(reference), CONTRACT.passed(truth.shape, truth.view)), (look(inspected), truth)]

    def __call__(self, rows, folder):
        return [
            CONTRACT.render(self.answer(row, *self.singles(row, folder)), AnswerKind(row["answer_kind"]))
            for row in rows
        ]

    def answer(self, row, reference, inspected):
        return self.recognise(inspected)

    def recognise(self, single):
        if field(single).std() == 0:
            return CONTRACT.defective(SHAPES[0], "RAW", "missing", LAYOUT.addresses[0])
        seen = look(single)
        return max(self.known, key=lambda pair: float(pair[0] @ seen))[1]

    @staticmethod
    def singles(row, folder):
        shown = [picture(folder, name) for name in row["images"]]
        return np.split(shown[0], 2) if row["kind"] == "stacked" else shown


class AlwaysPassed(Looker):
    def answer(self, row, reference, inspected):
        return CONTRACT.passed(row["shape"], "RAW")


class AlwaysTheSameDefect(Looker):
    def answer(self, row, reference, inspected):
        return CONTRACT.defective(row["shape"], "RAW", "bend", LAYOUT.addresses[0])


class KnowsTheLabel(Looker):
    """Answers from the label, as if it had memorized file names."""

    def answer(self, row, reference, inspected):
        return CONTRACT.parse(row["answer"])


class FindsTheOddPicture(Looker):
    """Reports a defect in either picture."""

    def answer(self, row, reference, inspected):
        answer = self.recognise(reference)
        return answer if answer.defect_position else self.recognise(inspected)


class TakesTheShapeFromTheReference(Looker):
    def answer(self, row, reference, inspected):
        answer, shape = self.recognise(inspected), self.recognise(reference).shape
        if answer.defect_position is None:
            return CONTRACT.passed(shape, "RAW")
        return CONTRACT.defective(shape, "RAW", answer.defect_mode, answer.defect_position)


class ReadsTheLetters(Looker):
    def answer(self, row, reference, inspected):
        answer = self.recognise(inspected)
        if answer.defect_position is None or "letters" not in row:
            return answer
        column = row["columns"][answer.defect_position.column - 1] + 1
        letter = LAYOUT.rows[row["letters"][LAYOUT.rows.index(answer.defect_position.row)]]
        return CONTRACT.defective(answer.shape, "RAW", answer.defect_mode, type(answer.defect_position)(column, letter))


class PassesWhatIsDark(Looker):
    def answer(self, row, reference, inspected):
        if field(inspected).mean() < 0.95 * field(reference).mean():
            return CONTRACT.passed(row["shape"], "RAW")
        return self.recognise(inspected)


def examined(rows, images, predictor, kind="two_image"):
    """Return the results of all controls by name; the predictor also answers the unchanged rows."""
    plain = dict(zip((row["id"] for row in rows), predictor(rows, images), strict=True))
    results = run_controls(rows, images, CONTRACT, predictor, plain, replace(QUESTION, kind=kind))
    return {result.name: result for result in results}


@pytest.mark.parametrize("kind", ["two_image", "stacked"])
def test_a_model_that_compares_the_pictures_holds_every_control(kind, images):
    rows = make_rows(images, kind)
    results = examined(rows, images, Looker(rows, images), kind)
    assert {name: result.held for name, result in results.items()} == dict.fromkeys(control_prompts.MAKERS, True)
    assert all(result.captures == len(rows) and result.pictures for result in results.values())
    assert all(check.n for result in results.values() for check in result.checks), "every check counts captures"


@pytest.mark.parametrize(
    ("predictor", "broken"),
    [
        (AlwaysPassed, {"blank"}),
        (AlwaysTheSameDefect, {"swapped"}),
        (KnowsTheLabel, {"blank", "swapped"}),
        (FindsTheOddPicture, {"swapped"}),
        (TakesTheShapeFromTheReference, {"other_shape"}),
        (ReadsTheLetters, {"shuffled_letters"}),
        (PassesWhatIsDark, {"lighting"}),
    ],
)
def test_a_model_that_ignores_a_picture_fails_a_control(predictor, broken, rows, images, controls):
    blind = predictor(rows, images)
    plain = dict(zip((row["id"] for row in rows), blind(rows, images), strict=True))
    results = {
        name: judge_control(control, blind(control.rows, images), plain, CONTRACT) for name, control in controls.items()
    }
    assert broken <= {name for name, result in results.items() if result.held is False}


def test_unreadable_answers_fail_every_control_that_needs_an_answer(rows, images):
    looker = Looker(rows, images)
    plain = dict(zip((row["id"] for row in rows), looker(rows, images), strict=True))

    def mute(prompts, _folder):
        return [""] * len(prompts)

    results = run_controls(rows, images, CONTRACT, mute, plain, QUESTION)
    assert {result.name for result in results if result.held} == {"blank"}


# --- selection of captures, and controls that cannot be made


def test_camera_captures_come_before_virtual_ones_and_are_capped_evenly(rows, monkeypatch):
    virtual = [row | {"source": "virtual", "id": f"v-{row['id']}"} for row in rows]
    other = [row | {"shot": "one_shot"} for row in rows] + [row | {"view": "DST"} for row in rows]
    chosen = control_rows(virtual + other + rows, CONTRACT, QUESTION)
    assert sorted(row["id"] for row in chosen) == sorted(row["id"] for row in rows)
    assert {row["source"] for row in control_rows(virtual, CONTRACT, QUESTION)} == {"virtual"}
    monkeypatch.setattr(control_prompts, "CONTROL_CAPTURES", 4)
    few = control_rows(rows, CONTRACT, QUESTION)
    assert [CONTRACT.parse(row["answer"]).judgement for row in few] == ["passed"] * 2 + ["defective"] * 2
    passed = [row for row in rows if "defective" not in row["answer"]]
    assert len(control_rows(passed, CONTRACT, QUESTION)) == 4


def test_the_light_control_of_distance_images_draws_them_from_relit_photographs(tmp_path):
    rows = make_rows(tmp_path, view="DST")
    lit = []

    def relit(row, light):
        lit.append((row["id"], float(light(np.full((1, 2, 3), 0.5, np.float32)).mean())))
        return None if row["id"] == rows[0]["id"] else np.full_like(picture(tmp_path, row["images"][-1]), 7)

    (tmp_path / "controls").mkdir()
    made = make_controls(rows, tmp_path, tmp_path / "controls", LAYOUT, relit)
    (lighting,) = [control for control in made if control.name == "lighting"]
    assert {row["light"] for row in lighting.rows} == set(LIGHTS)
    assert len(lighting.rows) == len(LIGHTS) * (len(rows) - 1)  # a photograph that cannot be aligned is left out
    for (reference, _), (same, drawn) in pairs_of(lighting, tmp_path):
        assert np.array_equal(reference, same) and (drawn == 7).all()
    assert len({level for _, level in lit}) == len(LIGHTS)


@pytest.mark.parametrize(
    ("control", "changes", "reason"),
    [
        ("swapped", {"kind": "one_image"}, "shows no reference"),
        ("other_shape", {"kind": "one_image"}, "shows no reference"),
        ("other_shape", {"shapes": ("CYLN",)}, "one shape, CYLN"),
        ("shuffled_letters", {"grid": False}, "no address grid"),
        ("lighting", {"view": "DST"}, "distance image"),
    ],
)
def test_a_control_that_cannot_be_made_reports_the_reason_and_does_not_hold(control, changes, reason, images):
    rows = make_rows(images, **changes)
    plain = {row["id"]: row["answer"] for row in rows}

    def answer_of_label(prompts, _folder):
        return [row["answer"] for row in prompts]

    question = {"view": changes.get("view", "RAW"), "kind": changes.get("kind", "two_image")}
    results = run_controls(rows, images, CONTRACT, answer_of_label, plain, replace(QUESTION, **question))
    (control_result,) = [result for result in results if result.name == control]
    outcome = control_outcome(control_result, 0.95)
    assert control_result.held is None and outcome.startswith("not made") and reason in outcome


def test_without_production_rows_no_control_is_made(images):
    def never(prompts, _folder):
        raise AssertionError("nothing is asked")

    results = run_controls([], images, CONTRACT, never, {}, QUESTION)
    assert [result.held for result in results] == [None] * len(control_prompts.MAKERS)


def test_a_missing_picture_is_named(rows, tmp_path):
    with pytest.raises(StageInputError, match="dvc repro composite"):
        make_controls(rows, tmp_path, tmp_path, LAYOUT)


def test_the_table_of_checks_shows_share_interval_and_bound(rows, images, controls):
    passes = AlwaysPassed(rows, images)
    plain = dict(zip((row["id"] for row in rows), passes(rows, images), strict=True))
    result = judge_control(controls["blank"], passes(controls["blank"].rows, images), plain, CONTRACT)
    table = checks_table({"RAW": [result]}, 0.95).set_index(["view", "control", "check"])
    blank = table.loc["RAW", "blank", "judged passed"]
    assert (blank.hits, blank.n, blank.share, blank.bound, blank.held) == (12, 12, 1.0, 0, False)
    assert 0.7 < blank.low < blank.high == 1
    assert "12 of 12 (76 to 100 %; at most 0 expected)" in control_outcome(result, 0.95)
