from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect.composites import drawing as composite
from pinspect.core import prompts
from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.drawings import ModeDrawing
from pinspect.core.layout import Layout
from pinspect.core.mirroring import mirrored_modes
from pinspect.core.params import CounterexampleParams, CounterexampleShares, load_params
from pinspect.model.augmentation import Augmentation, Augmenter

LAYOUT = Layout(("U", "C", "D"), 9)
CONTRACT = AnswerContract(LAYOUT, ("CYLN", "SQUR"), ("bend", "retract", "missing"))
PARAMS = load_params(Path(__file__).resolve().parents[2] / "params.yaml")
CELL = 32
ADDRESSES = st.sampled_from(LAYOUT.addresses)


def field_with_a_white_pin_at(address) -> np.ndarray:
    field = np.full((3 * CELL, 9 * CELL, 3), 40, np.uint8)
    row, column = divmod(LAYOUT.index(address), LAYOUT.columns)
    field[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = 250
    return field


def white_pins(picture: np.ndarray) -> list:
    bright = picture[CELL:, CELL:].reshape(3, CELL, 9, CELL, 3).mean((1, 3, 4)) > 200
    return [address for address, white in zip(LAYOUT.addresses, bright.flatten(), strict=True) if white]


def row_about(
    address, view: str = "RAW", star=None, kind: str = "two_image", shape: str = "CYLN", capture: str = ""
) -> dict:
    """Return a chat row about a bent pin at `address`; one-shot if `star` is set."""
    answer = CONTRACT.render(CONTRACT.defective(shape, view, "bend", address))
    star_answer = None if star is None else CONTRACT.render(CONTRACT.star(shape, view, star), AnswerKind.STAR)
    messages = prompts.stacked(view, answer) if kind == "stacked" else prompts.two_image(view, answer, star_answer)
    images = ["stacked"] if kind == "stacked" else [f"{shape}-reference", "inspected"]
    return {
        **{"source": "camera", "capture": capture, "shape": shape, "view": view, "kind": kind},
        "answer_kind": "comparison",
        **{"answer": answer, "images": images if star is None else ["star", *images], "messages": messages},
    }


def shares_of(**changes: float) -> CounterexampleShares:
    """Return shares of counterexamples, 0 for those that `changes` lacks, 1 for a row that always becomes one."""
    shares = dict.fromkeys(CounterexampleShares.model_fields, 0.0) | changes
    return CounterexampleShares.model_construct(None, **shares)


def augmenter(
    rows: list[dict],
    *,
    mirror: bool = False,
    light_jitter: float = 0.0,
    simple_questions: float = 0.0,
    contract: AnswerContract = CONTRACT,
    **counterexamples,
) -> Augmenter:
    shares = shares_of(**counterexamples)
    changes = {
        "mirror": mirror,
        "light_jitter": light_jitter,
        "simple_questions": simple_questions,
        "counterexamples": CounterexampleParams.model_construct(RAW=shares, DST=shares),
    }
    return Augmenter(rows, contract, PARAMS.train.model_copy(update=changes))


@given(address=ADDRESSES, columns=st.booleans(), rows=st.booleans())
def test_the_answer_names_the_place_to_which_the_defective_pin_moved(address, columns, rows):
    chosen = Augmentation(LAYOUT, columns, rows, (1.0,))
    picture = composite.single(field_with_a_white_pin_at(address), LAYOUT, CELL)
    answer = CONTRACT.render(CONTRACT.defective("CYLN", "RAW", "bend", address))
    (white_pin,) = white_pins(chosen.image(picture, 0))
    assert CONTRACT.parse(chosen.text(answer)).defect_position == white_pin


@given(address=ADDRESSES, columns=st.booleans(), rows=st.booleans())
def test_both_halves_of_a_stacked_composite_are_mirrored_by_themselves(address, columns, rows):
    chosen = Augmentation(LAYOUT, columns, rows, (1.0,))
    other = LAYOUT.addresses[0]
    singles = [composite.single(field_with_a_white_pin_at(pin), LAYOUT, CELL) for pin in (other, address)]
    upper, lower = np.split(chosen.image(composite.stacked(*singles), 0), 2)
    assert np.array_equal(upper, chosen.image(singles[0], 0))
    assert np.array_equal(lower, chosen.image(singles[1], 0))


def test_the_address_grid_keeps_its_place():
    picture = composite.single(field_with_a_white_pin_at(LAYOUT.addresses[4]), LAYOUT, CELL)
    shown = Augmentation(LAYOUT, columns=True, rows=True, gains=(0.8,)).image(picture, 0)
    assert np.array_equal(shown[:CELL], picture[:CELL])
    assert np.array_equal(shown[:, :CELL], picture[:, :CELL])


def test_mirroring_twice_gives_the_original():
    chosen = Augmentation(LAYOUT, columns=True, rows=True, gains=(1.0,))
    picture = np.random.default_rng(0).integers(0, 256, (4 * CELL, 10 * CELL, 3), np.uint8)
    answer = row_about(LAYOUT.addresses[7])["answer"]
    assert np.array_equal(chosen.image(chosen.image(picture, 0), 0), picture)
    assert chosen.text(chosen.text(answer)) == answer


def test_every_turn_of_a_one_shot_row_is_mirrored_alike():
    row = row_about(LAYOUT.address("X:1, Y:U"), star=LAYOUT.address("X:2, Y:D"))
    shown_as = augmenter([row], mirror=True)
    drawn = [shown_as(row, np.random.default_rng(seed)) for seed in range(40)]
    seen = set()
    for shown in drawn:
        texts = ["".join(part.get("text", "") for part in message["content"]) for message in shown["messages"]]
        seen.add((texts[1].rsplit("->", 1)[1], texts[3].rsplit("->", 1)[1]))
        assert texts[3] == shown["answer"]
    assert seen == {
        ("X:2, Y:D", "X:1, Y:U"),
        ("X:8, Y:D", "X:9, Y:U"),
        ("X:2, Y:U", "X:1, Y:D"),
        ("X:8, Y:U", "X:9, Y:D"),
    }
    assert row == row_about(LAYOUT.address("X:1, Y:U"), star=LAYOUT.address("X:2, Y:D")), "the original is unchanged"


@pytest.mark.parametrize(("view", "reach"), [("RAW", 1.25), ("DST", 1.0)])
def test_only_photographs_change_their_light_and_no_further_than_the_parameter(view, reach):
    row = row_about(LAYOUT.addresses[0], view)
    shown_as = augmenter([row], light_jitter=0.25)
    drawn = [shown_as(row, np.random.default_rng(seed))["augmentation"] for seed in range(50)]
    gains = [gain for chosen in drawn for gain in chosen.gains]
    assert max(gains) <= reach and min(gains) >= 1 / reach
    assert (len(set(gains)) > 50) == (view == "RAW")


def test_a_passed_answer_has_no_address_to_mirror():
    answer = CONTRACT.render(CONTRACT.passed("SQUR", "RAW"))
    assert Augmentation(LAYOUT, columns=True, rows=True, gains=()).text(answer) == answer


# --- counterexamples


def test_a_swapped_row_is_passed_because_the_inspected_image_is_the_reference():
    row = row_about(LAYOUT.addresses[3])
    shown = augmenter([row], swapped=1.0)(row, np.random.default_rng(0))
    assert shown["images"] == ["inspected", "CYLN-reference"]
    assert shown["answer"] == CONTRACT.render(CONTRACT.passed("CYLN", "RAW"))
    assert shown["messages"][-1]["content"][0]["text"] == shown["answer"]


def test_a_swapped_stack_has_its_halves_exchanged():
    row = row_about(LAYOUT.addresses[3], kind="stacked")
    shown = augmenter([row], swapped=1.0)(row, np.random.default_rng(0))
    halves = [composite.single(field_with_a_white_pin_at(LAYOUT.addresses[pin]), LAYOUT, CELL) for pin in (5, 9)]
    picture = shown["augmentation"].image(composite.stacked(*halves), 0)
    assert np.array_equal(picture, composite.stacked(*reversed(halves)))
    assert CONTRACT.parse(shown["answer"]).judgement == "passed"


def test_a_passed_row_is_never_swapped_into_another_answer():
    answer = CONTRACT.render(CONTRACT.passed("CYLN", "RAW"))
    row = row_about(LAYOUT.addresses[0]) | {"answer": answer, "messages": prompts.two_image("RAW", answer)}
    shown = augmenter([row], swapped=1.0)(row, np.random.default_rng(0))
    assert (shown["answer"], shown["images"]) == (answer, row["images"])


def test_a_blank_hides_every_pin_of_the_inspected_image_only_and_is_defective_anywhere():
    row = row_about(LAYOUT.addresses[3])
    shown_as = augmenter([row], blank=1.0)
    drawn = [shown_as(row, np.random.default_rng(seed)) for seed in range(60)]
    picture = composite.single(field_with_a_white_pin_at(LAYOUT.addresses[3]), LAYOUT, CELL)
    for shown in drawn[:5]:
        reference, inspected = (shown["augmentation"].image(picture, number) for number in range(2))
        assert np.array_equal(reference, picture)
        assert len(np.unique(inspected[CELL:, CELL:])) == 1
        assert np.array_equal(inspected[:CELL], picture[:CELL])
    answers = [CONTRACT.parse(shown["answer"]) for shown in drawn]
    assert {answer.judgement for answer in answers} == {"defective"}
    assert len({answer.defect_position for answer in answers}) > 15
    assert {answer.defect_mode for answer in answers} == {"bend", "retract", "missing"}


def test_a_reference_of_another_shape_leaves_the_answer_as_it_is():
    row, other = row_about(LAYOUT.addresses[3]), row_about(LAYOUT.addresses[4], shape="SQUR")
    virtual = row_about(LAYOUT.addresses[4], shape="SQUR") | {"source": "virtual", "images": ["virtual", "inspected"]}
    shown = augmenter([row, other, virtual], other_shape=1.0)(row, np.random.default_rng(0))
    assert shown["images"] == ["SQUR-reference", "inspected"]
    assert shown["answer"] == row["answer"]


def test_shuffled_letters_move_the_marks_and_no_pin():
    row = row_about(LAYOUT.addresses[3])
    chosen = augmenter([row], shuffled_letters=1.0)(row, np.random.default_rng(1))["augmentation"]
    picture = composite.single(field_with_a_white_pin_at(LAYOUT.addresses[3]), LAYOUT, CELL)
    shown = chosen.image(picture, 0)
    assert np.array_equal(shown[CELL:, CELL:], picture[CELL:, CELL:])
    marks = [shown[:CELL, column * CELL : (column + 1) * CELL].tobytes() for column in range(1, 10)]
    originals = [picture[:CELL, column * CELL : (column + 1) * CELL].tobytes() for column in range(1, 10)]
    assert marks != originals and sorted(marks) == sorted(originals)


def test_counterexamples_keep_their_shares():
    row, other = row_about(LAYOUT.addresses[3]), row_about(LAYOUT.addresses[4], shape="SQUR")
    shown_as = augmenter([row, other], swapped=0.1, blank=0.1, shuffled_letters=0.2)
    rng = np.random.default_rng(5)
    drawn = [shown_as(row, rng) for _ in range(2000)]
    counts = {
        "swapped": sum(shown["images"] != row["images"] for shown in drawn),
        "blank": sum(shown["augmentation"].blank is not None for shown in drawn),
        "shuffled_letters": sum(shown["augmentation"].marks is not None for shown in drawn),
    }
    assert counts == pytest.approx({"swapped": 200, "blank": 200, "shuffled_letters": 400}, rel=0.25)


def test_each_view_has_its_own_shares_of_counterexamples():
    row = row_about(LAYOUT.addresses[3])
    shares = CounterexampleParams.model_construct(RAW=shares_of(), DST=shares_of(blank=1.0))
    shown_as = Augmenter([row], CONTRACT, PARAMS.train.model_copy(update={"counterexamples": shares}))
    views = {view: shown_as(row | {"view": view}, np.random.default_rng(0))["augmentation"] for view in ("RAW", "DST")}
    assert views["RAW"].blank is None
    assert views["DST"].blank is not None


def test_a_reference_of_another_shape_is_of_the_same_eye():
    captures = [("CYLN", "left_1.png"), ("SQUR", "left_2.png"), ("SQUR", "right_2.png"), ("SQUR", "right_3.png")]
    rows = [row_about(LAYOUT.addresses[0], shape=shape, capture=capture) for shape, capture in captures]
    for row in rows:
        row["images"] = [f"reference of {row['capture']}", "inspected"]
    shown_as = augmenter(rows, other_shape=1.0)
    shown = {shown_as(rows[0], np.random.default_rng(seed))["images"][0] for seed in range(20)}
    assert shown == {"reference of left_2.png"}


# --- directions


SERIES_MODES = ("X-plus", "X-minus", "Y-plus", "Y-minus", "pullout")
DECLARED = {
    "to-the-left": ModeDrawing(draw="lean", direction="left"),
    "to-the-right": ModeDrawing(draw="lean", direction="right"),
    "upward": ModeDrawing(draw="lean", direction="up"),
    "downward": ModeDrawing(draw="lean", direction="down"),
    "bend": ModeDrawing(draw="lean"),
    "retract": ModeDrawing(draw="lower"),
}
LINES = {
    "series": (
        SERIES_MODES,
        {},
        {"X-plus": "X-minus", "X-minus": "X-plus"},
        {"Y-plus": "Y-minus", "Y-minus": "Y-plus"},
    ),
    "declared": (
        tuple(DECLARED),
        DECLARED,
        {"to-the-left": "to-the-right", "to-the-right": "to-the-left"},
        {"upward": "downward", "downward": "upward"},
    ),
    "sample": (("bend", "retract", "missing"), {}, {}, {}),
}
LAYOUTS = (Layout(("U", "C", "D"), 9), Layout(("A",), 12), Layout(("A", "B", "C", "D"), 1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize(("columns", "rows"), [(True, False), (False, True), (True, True), (False, False)])
def test_mirroring_changes_address_and_direction_of_every_mode(line, layout, columns, rows):
    modes, drawings, left_right, up_down = LINES[line]
    contract = AnswerContract(layout, ("CYLN",), modes, drawings)
    changed = (left_right if columns else {}) | (up_down if rows else {})
    mirrored = mirrored_modes(contract, columns=columns, rows=rows)
    shown = Augmentation(layout, columns, rows, (1.0,), modes=tuple(mirrored.items()))
    for mode in modes:
        for address in layout.addresses:
            answer = contract.parse(shown.text(contract.render(contract.defective("CYLN", "RAW", mode, address))))
            assert answer.defect_mode == changed.get(mode, mode)
            place = answer.defect_position
            assert place is not None
            assert place.column == (layout.columns + 1 - address.column if columns else address.column)
            letter = layout.rows.index(address.row)
            assert layout.rows.index(place.row) == (len(layout.rows) - 1 - letter if rows else letter)


def test_a_direction_of_the_picture_follows_its_mirror_image():
    """A pin that leans to the right in the picture leans to the left in the mirrored picture."""
    contract = AnswerContract(LAYOUT, ("CYLN",), SERIES_MODES)
    leaning = {"X-plus": (0, 5), "X-minus": (0, -5), "Y-plus": (-5, 0), "Y-minus": (5, 0)}  # rows down, columns right
    for columns, rows in ((True, False), (False, True), (True, True)):
        mirrored = mirrored_modes(contract, columns=columns, rows=rows)
        for mode, (down, right) in leaning.items():
            seen = (-down if rows else down, -right if columns else right)
            assert leaning[mirrored[mode]] == seen


def test_a_row_whose_mirrored_direction_has_no_word_is_not_mirrored():
    contract = AnswerContract(LAYOUT, ("CYLN",), ("X-plus", "retract"))
    answers = {
        mode: contract.render(contract.defective("CYLN", "RAW", mode, LAYOUT.addresses[0]))
        for mode in contract.defect_modes
    }
    for mode, times in (
        ("X-plus", {(False, False), (False, True)}),
        ("retract", {(a, b) for a in (0, 1) for b in (0, 1)}),
    ):
        row = row_about(LAYOUT.addresses[0])
        row |= {"answer": answers[mode], "messages": prompts.two_image("RAW", answers[mode])}
        shown_as = augmenter([row], mirror=True, contract=contract)
        drawn = [shown_as(row, np.random.default_rng(seed)) for seed in range(40)]
        assert {(shown["augmentation"].columns, shown["augmentation"].rows) for shown in drawn} == times
        assert {contract.parse(shown["answer"]).defect_mode for shown in drawn} == {mode}


# --- simple questions


def test_a_one_shot_row_becomes_the_question_about_its_star():
    row = row_about(LAYOUT.address("X:1, Y:U"), star=LAYOUT.address("X:2, Y:D"))
    shown_as = augmenter([row], simple_questions=1.0, mirror=True)
    drawn = [shown_as(row, np.random.default_rng(seed)) for seed in range(30)]
    for shown in drawn:
        assert (shown["answer_kind"], shown["images"]) == ("star", ["star"])
        assert shown["messages"] == prompts.simple("star", shown["answer"])
    places = {str(CONTRACT.parse(shown["answer"], AnswerKind.STAR).defect_position) for shown in drawn}
    assert places == {"X:2, Y:D", "X:8, Y:D", "X:2, Y:U", "X:8, Y:U"}


def test_another_row_becomes_the_question_about_a_shuffled_grid():
    row = row_about(LAYOUT.addresses[4])
    picture = composite.single(field_with_a_white_pin_at(LAYOUT.addresses[4]), LAYOUT, CELL)
    answers = set()
    for seed in range(5):
        shown = augmenter([row], simple_questions=1.0, mirror=True)(row, np.random.default_rng(seed))
        assert shown["images"] == ["inspected"]
        assert shown["messages"] == prompts.simple("grid", shown["answer"])
        marks = CONTRACT.parse_grid(shown["answer"])
        seen = shown["augmentation"].image(picture, 0)
        for place, mark in enumerate(marks.columns, start=1):
            assert np.array_equal(
                seen[:CELL, place * CELL : (place + 1) * CELL],
                picture[:CELL, int(mark) * CELL : (int(mark) + 1) * CELL],
            )
        for place, mark in enumerate(marks.rows, start=1):
            top = (LAYOUT.rows.index(mark) + 1) * CELL
            assert np.array_equal(seen[place * CELL : (place + 1) * CELL, :CELL], picture[top : top + CELL, :CELL])
        answers.add(shown["answer"])
    assert len(answers) == 5


def test_a_stacked_row_asks_no_simple_question():
    row = row_about(LAYOUT.addresses[4], kind="stacked")
    assert augmenter([row], simple_questions=1.0)(row, np.random.default_rng(0))["answer_kind"] == "comparison"
