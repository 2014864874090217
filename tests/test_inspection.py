"""What production sees of a photograph: the unit space that it is laid over, by its shape and its eye."""

import shutil

import pytest
from dst_line import build, drop_raw
from sample import ROOT, line, params, read_labels, write_labels
from stereo_line import passed_pins, stereo, stereo_line

from pinspect.data.raw import build_raw
from pinspect.errors import AlignmentError, UnitSpaceError
from pinspect.serving.inspection import CaptureInspector, Photograph, pack_line

CAPTURES = ROOT / "data/captures"
SQUARE = line(seed=4, train=2, references=5, shapes=("SQUR",))


def inspector_of(root) -> CaptureInspector:
    """What production has of the line in `root`; seeing asks no model, so that none is loaded."""
    build(root)
    pack_line(root, params().answers.shapes, root / "line")
    return CaptureInspector(None, root / "line", params())


@pytest.fixture(scope="module")
def sample_inspector(tmp_path_factory):
    """An inspector that knows the references of the sample line."""
    root = tmp_path_factory.mktemp("sample")
    references = [row for row in read_labels(CAPTURES) if row["role"] == "reference"]
    (root / "captures/images").mkdir(parents=True)
    for row in references:
        shutil.copy(CAPTURES / "images" / row["file"], root / "captures/images")
    write_labels(root / "captures", references)
    virtual = params().raw.virtual.model_copy(update={"train": 0, "test": 0})
    asked = params().raw.model_copy(update={"virtual": virtual})
    build_raw(root / "captures", root / "data/raw", root / "splits.csv", params().contract(), asked)
    return inspector_of(root)


@pytest.fixture(scope="module")
def stereo_inspector(tmp_path_factory):
    """An inspector of a line on which two cameras see the round pins, and one the square ones."""
    root = tmp_path_factory.mktemp("stereo")
    drop_raw(root, [*stereo_line(), *SQUARE])
    return inspector_of(root)


def photograph_of(capture, name: str = "") -> Photograph:
    return Photograph(name or capture.name, capture.jpeg)


def test_every_capture_of_the_sample_line_is_taken_for_the_shape_that_it_has(sample_inspector):
    rows = [row for row in read_labels(CAPTURES) if row["role"] == "inspected"]
    taken = {
        row["file"]: sample_inspector.see(
            Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes())
        ).aspect
        for row in rows
    }
    assert {shape: list(taken.values()).count(shape) for shape in ("CYLN", "SQUR")} == {"CYLN": 120, "SQUR": 60}
    assert taken == {row["file"]: row["shape"] for row in rows}


def test_a_shape_that_is_given_is_kept(sample_inspector):
    capture = line(seed=4, train=2, references=5, shapes=("CYLN",))[0]
    assert sample_inspector.see(photograph_of(capture), "SQUR").aspect == "SQUR"


def test_an_unknown_shape_is_refused_with_those_that_are_known(sample_inspector):
    with pytest.raises(AlignmentError, match=r"expected a shape of \['CYLN', 'SQUR'\], found 'HEXA'"):
        sample_inspector.see(photograph_of(SQUARE[0]), "HEXA")


@pytest.mark.parametrize("eye", ["left", "right"])
def test_a_view_is_compared_with_its_own_eye(stereo_inspector, eye):
    capture = next(one for one in stereo("new", passed_pins(80), 180) if one.name.startswith(eye))
    assert stereo_inspector.see(photograph_of(capture, f"some/folder/{capture.name}")).aspect == f"CYLN-{eye}"
    assert stereo_inspector.see(photograph_of(capture), "CYLN").aspect == f"CYLN-{eye}"


def test_a_photograph_whose_name_tells_no_eye_is_compared_with_the_eye_that_it_fits(stereo_inspector):
    for capture in stereo("new", passed_pins(81), 181):
        seen = stereo_inspector.see(photograph_of(capture, "image 0"))
        assert seen.aspect == f"CYLN-{capture.name.partition('_')[0]}"


def test_a_shape_that_one_camera_sees_has_no_eyes(stereo_inspector):
    assert stereo_inspector.see(photograph_of(SQUARE[-1])).aspect == "SQUR"


def test_a_packed_line_that_lacks_a_shape_is_refused(stereo_inspector, tmp_path):
    with pytest.raises(UnitSpaceError, match=r"CYLN\.npz: not found"):
        CaptureInspector(None, tmp_path, params())
