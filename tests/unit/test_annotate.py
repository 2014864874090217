"""Annotated pictures: the box lies on the named pin, and the photograph is unchanged."""

import cv2
import numpy as np
import pytest

from pinspect.composites.drawing import rectify
from pinspect.inspection.annotate import GREEN, RED, annotate
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.records import Photograph, Seen
from pinspect.registry.package import pack_line
from tests.support.dst_line import build, drop_raw
from tests.support.sample import line, params

CAPTURES = line(seed=4, train=2, references=5, shapes=("CYLN",))
LAYOUT = params().layout.layout()


@pytest.fixture(scope="module")
def inspector(tmp_path_factory) -> CaptureInspector:
    """An inspector without a model; `see` does not need one."""
    root = tmp_path_factory.mktemp("line")
    drop_raw(root, CAPTURES)
    build(root)
    pack_line(root, ("CYLN",), root / "line")
    only_round = params().model_copy(update={"answers": params().answers.model_copy(update={"shapes": ["CYLN"]})})
    return CaptureInspector(None, root / "line", only_round, 0.5)


@pytest.fixture(scope="module")
def seen(inspector) -> Seen:
    """A capture moved by a few px and slightly rotated, as after a knock on the camera."""
    capture = CAPTURES[-1]
    image = cv2.imdecode(np.frombuffer(capture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    turned = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), 1.5, 1.0)
    turned[:, 2] += (6, -4)
    moved = cv2.warpAffine(image, turned, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return inspector.see(Photograph("moved.png", cv2.imencode(".png", moved)[1].tobytes()))


@pytest.mark.parametrize("address", ["X:1, Y:U", "X:5, Y:C", "X:9, Y:D"])
def test_the_corners_of_a_pin_enclose_the_content_of_its_cell(inspector, seen, address):
    cell = 64  # about a pitch: a composite of smaller cells is drawn from a smaller picture
    unit_space = inspector._unit_spaces[seen.aspect]
    field = rectify(seen.image, seen.capture.alignment.matrix, unit_space.grid, LAYOUT, cell)
    row, column = divmod(LAYOUT.index(LAYOUT.address(address)), LAYOUT.columns)
    expected = field[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
    square = np.array([(0, 0), (cell, 0), (cell, cell), (0, cell)], np.float32) - 0.5
    place = cv2.getPerspectiveTransform(inspector.pin_corners(seen, address).astype(np.float32), square)
    warped = cv2.warpPerspective(seen.image, place, (cell, cell), flags=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - expected).mean() < 1


def test_the_corners_of_neighbors_meet(inspector, seen):
    left, right, below = (inspector.pin_corners(seen, address) for address in ("X:3, Y:U", "X:4, Y:U", "X:3, Y:C"))
    assert left[1] == pytest.approx(right[0])
    assert left[2] == pytest.approx(right[3])
    assert left[3] == pytest.approx(below[0])
    assert left[1][0] > left[0][0]
    assert left[3][1] > left[0][1]


def test_a_pin_that_the_layout_lacks_has_no_corners(inspector, seen):
    with pytest.raises(ValueError, match="no pin at X:10, Y:U"):
        inspector.pin_corners(seen, "X:10, Y:U")


def test_a_box_is_drawn_along_the_corners_and_nothing_else_of_the_photograph_changes():
    image = np.full((200, 300, 3), 90, np.uint8)
    corners = np.array([(100.0, 60.0), (140.0, 62.0), (138.0, 102.0), (98.0, 100.0)])
    picture = np.asarray(annotate(image, corners, "defective", RED))
    assert picture.shape[1] == 300
    assert picture.shape[0] > 200
    changed = np.argwhere((picture[:200] != 90).any(axis=2))[:, ::-1]
    assert {tuple(picture[y, x]) for x, y in changed} == {RED}
    edges = list(zip(corners, np.roll(corners, -1, axis=0), strict=True))
    near = [min(_distance(point, *edge) for edge in edges) for point in changed]
    assert max(near) <= 3
    for x, y in corners:
        assert tuple(picture[round(y), round(x)]) == RED
    assert (image == 90).all()


def test_a_picture_without_a_box_is_the_photograph_above_a_caption():
    image = np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8)
    picture = np.asarray(annotate(image, None, "passed", GREEN))
    assert (picture[:120] == image).all()
    strip = picture[120:].reshape(-1, 3)
    assert tuple(strip[0]) == GREEN
    assert (strip > 200).all(axis=1).any()
    assert (np.asarray(annotate(image, None, "", GREEN))[120:] == GREEN).all()


def test_a_long_caption_is_made_small_enough_to_fit():
    caption = "retract at X:9, Y:D   defective   P(defective) 0.987"
    picture = np.asarray(annotate(np.zeros((400, 400, 3), np.uint8), None, caption, RED))
    assert (picture[400:, -5:] == RED).all()


def _distance(point, start, end) -> float:
    along = end - start
    share = np.clip(np.dot(point - start, along) / np.dot(along, along), 0, 1)
    return float(np.linalg.norm(point - (start + share * along)))
