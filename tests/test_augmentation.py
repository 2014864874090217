import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect import prompts
from pinspect.answers import AnswerContract
from pinspect.imaging import composite
from pinspect.layout import Layout
from pinspect.model.augmentation import Augmentation, augmented

LAYOUT = Layout(("U", "C", "D"), 9)
CONTRACT = AnswerContract(LAYOUT, ("CYLN", "SQUR"), ("bend", "retract", "missing"))
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


def row_about(address, view: str = "RAW", star=None) -> dict:
    answer = CONTRACT.render(CONTRACT.defective("CYLN", view, "bend", address))
    told = None if star is None else f"- image type->CYLN_{view}\n- number of pins->27 pins\n- defect position->{star}"
    images = ["reference", "inspected"] if star is None else ["star", "reference", "inspected"]
    return {"view": view, "answer": answer, "images": images, "messages": prompts.two_image(view, answer, told)}


@given(address=ADDRESSES, columns=st.booleans(), rows=st.booleans())
def test_the_answer_names_the_place_to_which_the_defective_pin_moved(address, columns, rows):
    chosen = Augmentation(LAYOUT, columns, rows, (1.0,))
    picture = composite.single(field_with_a_white_pin_at(address), LAYOUT, CELL)
    answer = CONTRACT.render(CONTRACT.defective("CYLN", "RAW", "bend", address))
    (found,) = white_pins(chosen.image(picture, 0))
    assert CONTRACT.parse(chosen.text(answer)).defect_position == found


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
    drawn = [augmented(row, LAYOUT, np.random.default_rng(seed), mirror=True, light_jitter=0.0) for seed in range(40)]
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
    assert row == row_about(LAYOUT.address("X:1, Y:U"), star=LAYOUT.address("X:2, Y:D")), "the original stays"


@pytest.mark.parametrize(("view", "reach"), [("RAW", 1.25), ("DST", 1.0)])
def test_only_photographs_change_their_light_and_no_further_than_asked(view, reach):
    row = row_about(LAYOUT.addresses[0], view)
    gains = [
        gain
        for seed in range(50)
        for gain in augmented(row, LAYOUT, np.random.default_rng(seed), mirror=False, light_jitter=0.25)[
            "augmentation"
        ].gains
    ]
    assert max(gains) <= reach and min(gains) >= 1 / reach
    assert (len(set(gains)) > 50) == (view == "RAW")


def test_a_passed_answer_has_no_address_to_mirror():
    answer = CONTRACT.render(CONTRACT.passed("SQUR", "RAW"))
    assert Augmentation(LAYOUT, columns=True, rows=True, gains=()).text(answer) == answer
