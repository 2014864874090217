"""Addresses: every pin has exactly one spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect.core.layout import Address, Layout

LAYOUT = Layout(("U", "C", "D"), 9)

layouts = st.builds(
    Layout,
    st.lists(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), min_size=1, max_size=6, unique=True).map(tuple),
    st.integers(1, 40),
)


def test_the_layout_has_27_pins_row_by_row_from_the_top_left():
    assert LAYOUT.pins == 27
    assert [str(LAYOUT.addresses[index]) for index in (0, 8, 9, 26)] == ["X:1, Y:U", "X:9, Y:U", "X:1, Y:C", "X:9, Y:D"]
    assert str(LAYOUT) == "rows U,C,D and columns 1..9"


@given(layouts)
def test_every_address_is_read_back_and_found_at_its_index(layout):
    for index, address in enumerate(layout.addresses):
        assert layout.address(str(address)) == address
        assert layout.index(address) == index
    assert len(set(layout.addresses)) == layout.pins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X:0, Y:U", "no pin at X:0, Y:U: the layout has rows U,C,D and columns 1..9"),
        ("X:10, Y:U", "no pin at X:10, Y:U"),
        ("X:3, Y:A", "no pin at X:3, Y:A"),
        ("X:03, Y:U", "expected 'X:3, Y:U', found 'X:03, Y:U'"),
        ("X:3,Y:U", "expected an address such as 'X:3, Y:U', found 'X:3,Y:U'"),
        ("X:3, Y:U\n", "expected an address"),
        ("x:3, y:u", "expected an address"),
        ("passed", "expected an address"),
        ("", "expected an address"),
        ("X:٣, Y:U", "expected 'X:3, Y:U'"),
    ],
)
def test_an_address_in_another_spelling_is_refused(text, message):
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        LAYOUT.address(text)


@pytest.mark.parametrize("address", [Address(0, "U"), Address(10, "U"), Address(1, "X")])
def test_a_pin_outside_the_layout_has_no_index(address):
    with pytest.raises(ValueError, match="no pin at"):
        LAYOUT.index(address)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (("U", "C"), 0, "columns must be at least 1"),
        ((), 9, "at least one row"),
        (("U", "c"), 9, "one capital letter, found 'c'"),
        (("U", "CD"), 9, "one capital letter, found 'CD'"),
        (("U", "C", "U"), 9, "named twice"),
    ],
)
def test_an_invalid_layout_is_refused(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        Layout(rows, columns)
