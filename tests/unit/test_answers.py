"""The answer contract: one grammar to write, to read and to judge answers by."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect.core.answers import DEFECTIVE, PASSED, VIEWS, Answer, AnswerContract, AnswerKind
from pinspect.core.errors import AnswerFormatError
from pinspect.core.layout import Address, Layout

LAYOUT = Layout(("U", "C", "D"), 9)
CONTRACT = AnswerContract(LAYOUT, ("CYLN", "SQUR"), ("bend", "retract", "missing"))
FULL_KINDS = (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION)

BENT = """- image type->CYLN_DST
- number of pins->27 pins
- your judgement->defective
- defect mode->bend
- defect position->X:3, Y:U"""

shapes, views = st.sampled_from(CONTRACT.shapes), st.sampled_from(VIEWS)
addresses = st.sampled_from(LAYOUT.addresses)
answers = st.one_of(
    st.builds(CONTRACT.passed, shapes, views),
    st.builds(CONTRACT.defective, shapes, views, st.sampled_from(CONTRACT.defect_modes), addresses),
)
stars = st.builds(CONTRACT.star, shapes, views, addresses)
written = st.one_of(
    st.tuples(answers, st.sampled_from(FULL_KINDS)),
    st.tuples(stars, st.just(AnswerKind.STAR)),
)


def test_a_defective_answer_is_written_as_the_contract_words_it():
    assert CONTRACT.render(CONTRACT.defective("CYLN", "DST", "bend", Address(3, "U"))) == BENT


def test_a_passed_answer_has_passed_in_each_of_its_last_three_lines():
    assert CONTRACT.render(CONTRACT.passed("SQUR", "RAW"), AnswerKind.DISCRIMINATION) == (
        "- image type->SQUR_RAW\n- quantity of pins->27 pins\n- your judgement->passed\n"
        "- defect mode->passed\n- defect position->passed"
    )


def test_a_star_answer_has_three_lines():
    assert CONTRACT.render(CONTRACT.star("CYLN", "RAW", Address(9, "D")), AnswerKind.STAR) == (
        "- image type->CYLN_RAW\n- number of pins->27 pins\n- defect position->X:9, Y:D"
    )


@given(written)
def test_a_written_answer_is_parsed_back(case):
    answer, kind = case
    assert CONTRACT.parse(CONTRACT.render(answer, kind), kind) == answer


SERIES_MODES = ("X-plus", "X-minus", "Y-plus", "Y-minus", "pullout", "mode-3b")


@pytest.mark.parametrize("mode", SERIES_MODES)
@pytest.mark.parametrize("kind", FULL_KINDS)
def test_defect_modes_can_be_any_words(mode, kind):
    contract = AnswerContract(LAYOUT, ("CYLN",), SERIES_MODES)
    answer = contract.defective("CYLN", "DST", mode, Address(2, "D"))
    text = contract.render(answer, kind)
    assert f"- defect mode->{mode}\n" in text
    assert contract.parse(text, kind) == answer
    assert re.search(contract.pattern(kind), text)
    for other in (mode.replace("-", ""), mode.replace("-", "_"), mode.upper(), f"{mode}-", f"{mode}s"):
        if other not in SERIES_MODES:
            assert not re.search(contract.pattern(kind), text.replace(f"->{mode}\n", f"->{other}\n"))


@given(written)
def test_the_pattern_matches_a_written_answer_and_no_trailing_newline(case):
    answer, kind = case
    text = CONTRACT.render(answer, kind)
    assert re.search(CONTRACT.pattern(kind), text)
    assert not re.search(CONTRACT.pattern(kind), text + "\n")
    assert re.fullmatch(CONTRACT.pattern(kind, anchored=False), text)


lines = st.sampled_from(
    [
        *BENT.split("\n"),
        *CONTRACT.render(CONTRACT.passed("SQUR", "RAW")).split("\n"),
        "- quantity of pins->27 pins",
        "- number of pins->26 pins",
        "- defect position->X:10, Y:U",
        "- defect mode->NA",
        "- defect position->NA",
        *CONTRACT.render_grid(CONTRACT.grid()).split("\n"),
        "- rows->D,D,U",
        "- rows->D,U",
        "",
    ]
)


@given(st.lists(lines, max_size=6).map("\n".join), st.sampled_from(AnswerKind))
def test_pattern_and_parser_agree_on_every_text(text, kind):
    matches = bool(re.search(CONTRACT.pattern(kind), text))
    try:
        CONTRACT.parse_grid(text) if kind is AnswerKind.GRID else CONTRACT.parse(text, kind)
    except AnswerFormatError:
        assert not matches
    else:
        assert matches


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "CYLN_DST",
            "HEXA_DST",
            "line 1: expected CYLN_RAW or CYLN_DST or SQUR_RAW or SQUR_DST after '- image type->'",
        ),
        ("CYLN_DST", "CYLN", "line 1: "),
        ("27 pins", "28 pins", "line 2: expected '27 pins' after '- number of pins->', found '28 pins'"),
        ("number of", "quantity of", "line 2: expected '- number of pins->…', found '- quantity of pins->27 pins'"),
        ("defective", "broken", "line 3: expected 'passed' or 'defective'"),
        ("bend", "bent", "line 4: expected one of passed, bend, retract, missing"),
        ("X:3, Y:U", "X:3, Y:Q", "line 5: expected 'passed' or an address in rows U,C,D and columns 1..9, such as"),
        ("X:3, Y:U", "X:3, Y:U ", "line 5: "),
        ("X:3, Y:U", "X:3, Y:U\n", "expected 5 lines, found 6"),
        ("defective", "passed", "'bend' does not go with judgement 'passed'"),
        ("bend", "passed", "'passed' does not go with judgement 'defective'"),
        ("X:3, Y:U", "NA", "line 5: expected 'passed' or an address in rows U,C,D"),
        ("X:3, Y:U", "passed", "'passed' does not go with judgement 'defective'"),
    ],
)
def test_a_broken_answer_is_explained(old, new, message):
    with pytest.raises(AnswerFormatError, match=re.escape(message)):
        CONTRACT.parse(BENT.replace(old, new))


def test_an_answer_that_breaks_a_rule_is_never_written():
    with pytest.raises(AnswerFormatError, match="cannot write this answer: defect mode: expected one of"):
        CONTRACT.render(CONTRACT.defective("CYLN", "RAW", "rusty", Address(1, "U")))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer("HEXA", "RAW", 27, PASSED, PASSED, None), "image type: expected a shape of"),
        (Answer("CYLN", "IR", 27, PASSED, PASSED, None), "image type: expected a view of"),
        (Answer("CYLN", "RAW", 26, PASSED, PASSED, None), "number of pins: the layout has 27 pins, found 26"),
        (Answer("CYLN", "RAW", 27, "fine", PASSED, None), "your judgement: expected passed or defective, found 'fine'"),
        (Answer("CYLN", "RAW", 27, DEFECTIVE, "bend", Address(10, "U")), "defect position: no pin at X:10, Y:U"),
        (Answer("CYLN", "RAW", 27, PASSED, PASSED, Address(1, "U")), "'X:1, Y:U' does not go with judgement 'passed'"),
    ],
)
def test_each_broken_rule_has_its_message(answer, message):
    assert any(message in breach for breach in CONTRACT.rule_breaches(answer))


def test_a_star_answer_without_an_address_breaks_a_rule():
    star = Answer("CYLN", "RAW", 27, None, None, None)
    assert CONTRACT.rule_breaches(star, AnswerKind.STAR) == [
        "defect position: a star answer must name the pin under the star"
    ]


@given(answers)
def test_a_well_formed_answer_breaks_no_rule(answer):
    assert CONTRACT.rule_breaches(answer) == []


@given(st.integers(1, 30), st.lists(st.sampled_from("ABCDEF"), min_size=1, unique=True))
def test_the_contract_follows_the_layout_of_the_params(columns, rows):
    contract = AnswerContract(Layout(tuple(rows), columns), ("CYLN",), ("bend",))
    text = contract.render(contract.defective("CYLN", "RAW", "bend", contract.layout.addresses[-1]))
    assert f"->{columns * len(rows)} pins" in text
    assert re.search(contract.pattern(), text)
    assert contract.parse(text).defect_position == contract.layout.addresses[-1]


@given(st.permutations(range(9)), st.permutations(range(3)))
def test_a_grid_answer_is_read_back_and_matches_its_pattern(columns, rows):
    answer = CONTRACT.grid(columns, rows)
    text = CONTRACT.render_grid(answer)
    assert CONTRACT.parse_grid(text) == answer
    assert re.search(CONTRACT.pattern(AnswerKind.GRID), text)


def test_a_grid_answer_lists_the_marks_in_the_order_of_the_picture():
    assert CONTRACT.render_grid(CONTRACT.grid()) == "- columns->1,2,3,4,5,6,7,8,9\n- rows->U,C,D"
    shuffled = CONTRACT.grid((8, 7, 6, 5, 4, 3, 2, 1, 0), (1, 2, 0))
    assert CONTRACT.render_grid(shuffled) == "- columns->9,8,7,6,5,4,3,2,1\n- rows->C,D,U"


def test_a_grid_answer_with_a_wrong_number_of_marks_is_explained():
    with pytest.raises(AnswerFormatError, match=r"line 1: expected 9 numbers of 1, 2, .* found '1,2,3'"):
        CONTRACT.parse_grid("- columns->1,2,3\n- rows->U,C,D")
    with pytest.raises(AnswerFormatError, match="line 2: expected 3 letters of U, C, D"):
        CONTRACT.parse_grid("- columns->1,2,3,4,5,6,7,8,9\n- rows->U,C,Q")


def test_modes_may_be_any_words_of_the_line():
    contract = AnswerContract(LAYOUT, ("CYLN",), ("X-plus", "X", "pullout", "Y-minus", "wrong.color+1"))
    for mode in contract.defect_modes:
        answer = contract.defective("CYLN", "RAW", mode, Address(9, "D"))
        assert contract.parse(contract.render(answer)) == answer
        assert re.search(contract.pattern(), contract.render(answer))
    assert not re.search(contract.pattern(), contract.render(answer).replace("wrong.color+1", "wrong-colorr1"))
