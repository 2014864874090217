import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinspect.core.boxes import box_text, read_box_text

SIZE = (410, 280)
SERIES = "Y-minus<loc_108><loc_187><loc_148><loc_239>"
boxes = st.tuples(st.integers(0, 200), st.integers(0, 100), st.integers(205, 410), st.integers(105, 280))


def test_a_box_of_the_series_is_pixels_of_its_composite():
    assert read_box_text(SERIES, "px", SIZE) == ("Y-minus", (108, 187, 148, 239))
    assert box_text("Y-minus", (108, 187, 148, 239), "px", SIZE) == SERIES


@given(boxes, st.sampled_from(["bend", "X-plus", "pulled out"]))
def test_pixels_come_back_exactly(box, word):
    assert read_box_text(box_text(word, box, "px", SIZE), "px", SIZE) == (word, box)


@given(boxes)
def test_thousandths_come_back_within_half_a_thousandth(box):
    word, read = read_box_text(box_text("bend", box, "thousandths", SIZE), "thousandths", SIZE)
    assert word == "bend"
    for edge, original, side in zip(read, box, (*SIZE, *SIZE), strict=True):
        assert abs(edge - original) <= side / 2000 + 1e-9


def test_the_same_box_has_other_numbers_in_the_other_unit():
    assert box_text("bend", (41, 28, 205, 140), "thousandths", SIZE) == "bend<loc_100><loc_100><loc_500><loc_500>"
    assert box_text("bend", (41, 28, 205, 140), "px", SIZE) == "bend<loc_41><loc_28><loc_205><loc_140>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bend<loc_1><loc_2><loc_3>", "expected a box such as"),
        ("<loc_1><loc_2><loc_3><loc_4>", "expected a box such as"),
        ("bend<loc_1.5><loc_2><loc_3><loc_4>", "expected a box such as"),
        ("bend<loc_9><loc_2><loc_3><loc_4>", "expected a box inside the picture of 410 x 280 px"),
        ("bend<loc_500><loc_500><loc_900><loc_900>", "expected a box inside the picture"),  # thousandths read as pixels
    ],
)
def test_a_wrong_box_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        read_box_text(text, "px", SIZE)


def test_a_box_beyond_the_picture_is_not_written():
    with pytest.raises(ValueError, match="inside the picture"):
        box_text("bend", (0, 0, 411, 10), "px", SIZE)
    with pytest.raises(ValueError, match="without < and >"):
        box_text("a<b", (0, 0, 4, 10), "px", SIZE)
