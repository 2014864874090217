"""Inspection of a photograph: its unit space by shape and eye, and its record."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pinspect.captures.raw import build_raw
from pinspect.core.answers import FIELDS
from pinspect.core.errors import AlignmentError, UnitSpaceError
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.inspection.records import LOCALIZER, SCORES, Photograph, Task
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_inspector
from pinspect.nsoartc.aligned import align_capture
from pinspect.nsoartc.unit_space import UnitSpace
from pinspect.registry.package import pack_line
from tests.support.dst_line import build, drop_raw
from tests.support.sample import ROOT, line, params, read_labels, write_labels
from tests.support.stereo_line import passed_pins, stereo, stereo_line

CAPTURES = ROOT / "data/captures"
SQUARE = line(seed=4, train=2, references=5, shapes=("SQUR",))


def packed(root) -> Path:
    """Return the line in `root`, packed as for production."""
    build(root)
    pack_line(root, params().answers.shapes, root / "line")
    return root / "line"


def inspector_of(folder: Path) -> CaptureInspector:
    """Seeing asks no model, so that none is loaded."""
    return CaptureInspector(None, folder, params(), 0.5)


@pytest.fixture(scope="module")
def sample_line(tmp_path_factory):
    """The packed line with the references of the sample line."""
    root = tmp_path_factory.mktemp("sample")
    references = [row for row in read_labels(CAPTURES) if row["role"] == "reference"]
    (root / "captures/images").mkdir(parents=True)
    for row in references:
        shutil.copy(CAPTURES / "images" / row["file"], root / "captures/images")
    write_labels(root / "captures", references)
    virtual = params().raw.virtual.model_copy(update={"train": 0, "validation": 0, "test": 0})
    raw_params = params().raw.model_copy(update={"virtual": virtual})
    build_raw(root / "captures", root / "data/raw", root / "splits.csv", params().contract(), raw_params, workers=1)
    return packed(root)


@pytest.fixture(scope="module")
def sample_inspector(sample_line):
    """An inspector of the sample line."""
    return inspector_of(sample_line)


@pytest.fixture(scope="module")
def model():
    """The shipped base, which is not trained on defects; in float32 two ways to one answer differ by little."""
    return load_inspector(checkpoint_of(params().model.model_copy(update={"precision": "float32"}), ROOT))


@pytest.fixture(scope="module")
def stereo_inspector(tmp_path_factory):
    """An inspector of a line with two cameras for round pins and one camera for square pins."""
    root = tmp_path_factory.mktemp("stereo")
    drop_raw(root, [*stereo_line(), *SQUARE])
    return inspector_of(packed(root))


def photograph_of(capture, name: str = "") -> Photograph:
    return Photograph(name or capture.name, capture.jpeg)


def test_the_shape_of_every_sample_capture_is_recognized(sample_inspector):
    rows = [row for row in read_labels(CAPTURES) if row["role"] == "inspected"]
    taken = {
        row["file"]: sample_inspector.see(
            Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes())
        ).aspect
        for row in rows
    }
    assert {shape: list(taken.values()).count(shape) for shape in ("CYLN", "SQUR")} == {"CYLN": 120, "SQUR": 60}
    assert taken == {row["file"]: row["shape"] for row in rows}


def test_a_specified_shape_is_used(sample_inspector):
    capture = line(seed=4, train=2, references=5, shapes=("CYLN",))[0]
    assert sample_inspector.see(photograph_of(capture), "SQUR").aspect == "SQUR"


def test_an_unknown_shape_is_refused_with_those_that_are_known(sample_inspector):
    with pytest.raises(AlignmentError, match=r"expected a shape of \['CYLN', 'SQUR'\], found 'HEXA'"):
        sample_inspector.see(photograph_of(SQUARE[0]), "HEXA")


@pytest.mark.parametrize("eye", ["left", "right"])
def test_a_view_is_compared_with_its_own_eye(stereo_inspector, eye):
    capture = next(view for view in stereo("new", passed_pins(80), 180) if view.name.startswith(eye))
    assert stereo_inspector.see(photograph_of(capture, f"some/folder/{capture.name}")).aspect == f"CYLN-{eye}"
    assert stereo_inspector.see(photograph_of(capture), "CYLN").aspect == f"CYLN-{eye}"


def test_a_photograph_without_an_eye_in_its_name_uses_the_better_fitting_eye(stereo_inspector):
    for capture in stereo("new", passed_pins(81), 181):
        seen = stereo_inspector.see(photograph_of(capture, "image 0"))
        assert seen.aspect == f"CYLN-{capture.name.partition('_')[0]}"


def test_a_shape_that_one_camera_sees_has_no_eyes(stereo_inspector):
    assert stereo_inspector.see(photograph_of(SQUARE[-1])).aspect == "SQUR"


def test_a_packed_line_that_lacks_a_shape_is_refused(stereo_inspector, tmp_path):
    with pytest.raises(UnitSpaceError, match=r"CYLN\.npz: not found"):
        CaptureInspector(None, tmp_path, params(), 0.5)


def test_a_record_has_the_probabilities_of_judgement_and_address(model, sample_line):
    """At three thresholds the judgement of a photograph changes, and its probabilities do not."""
    settings = params()
    row = next(row for row in read_labels(CAPTURES) if row["role"] == "inspected")
    task = Task(Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes()), shape=row["shape"])
    records = [CaptureInspector(model, sample_line, settings, limit).inspect([task])[0] for limit in (0.0, 0.5, 1.1)]
    contract = settings.contract()
    for record, limit in zip(records, (0.0, 0.5, 1.1), strict=True):
        assert record["error"] is None and record["threshold"] == limit
        assert (record["judgement"] == "defective") == (record["p_defective"] >= limit)
        assert contract.parse(record["answer"]).values() == {name: record[name] for name in FIELDS}
        assert len(record["address_probabilities"]) == contract.layout.pins
        assert sum(record["address_probabilities"]) == pytest.approx(1, abs=1e-5)
        assert 0 <= record["address_entropy"] <= np.log2(contract.layout.pins)
        assert json.loads(json.dumps(record)) == record
    assert [record["judgement"] for record in records[::2]] == ["defective", "passed"]
    assert len({tuple(record["address_probabilities"]) for record in records}) == 1


def test_a_record_shows_whether_the_localizer_agrees(model, sample_line):
    """At the lowest and the highest threshold the model calls everything defective and everything passed."""
    rows = {row["judgement"]: row for row in read_labels(CAPTURES) if row["role"] == "inspected"}
    for row in rows.values():
        task = Task(Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes()), shape=row["shape"])
        for limit in (0.0, 1.1):
            inspector = CaptureInspector(model, sample_line, params(), limit, localizer_threshold=3.0)
            (record,) = inspector.inspect([task])
            expected = row["defect_position"] if row["judgement"] == "defective" else "passed"
            assert record["localizer_position"] == expected
            named = record["defect_position"] if record["judgement"] == "defective" else "passed"
            assert record["localizer_disagrees"] == (named != record["localizer_position"])
            if expected != "passed":
                pin = params().contract().layout.index(params().contract().layout.address(expected))
                assert record["pin_map"][pin] > 0.5 and len(record["pin_map"]) == 27


def test_a_photograph_that_cannot_be_read_has_no_scores(model, sample_line):
    (record,) = CaptureInspector(model, sample_line, params(), 0.5).inspect(
        [Task(Photograph("note.txt", b"no picture"))]
    )
    assert record["error"].startswith("note.txt: ")
    assert {value for name, value in record.items() if name not in ("file", "error")} == {None}
    assert list(record) == ["file", *FIELDS, "answer", *SCORES, *LOCALIZER, *LINE_FACTS, "error"]


def test_captures_prepared_by_several_threads_get_the_same_answers(model, sample_line):
    inspector = CaptureInspector(model, sample_line, params(), 0.5)
    rows = [row for row in read_labels(CAPTURES) if row["role"] == "inspected"][:4]
    tasks = [Task(Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes())) for row in rows]
    with ThreadPoolExecutor(2) as threads:
        together = inspector.answer(list(threads.map(inspector.prepare, tasks)))
    for record, task in zip(together, tasks, strict=True):
        (alone,) = inspector.inspect([task])
        for name in ("p_defective", "address_entropy", "address_probabilities", "pin_map"):
            assert record.pop(name) == pytest.approx(alone.pop(name), abs=1e-4)
        assert record == alone
    assert inspector.answer([]) == []


def test_a_record_has_the_line_facts_of_the_capture(model, sample_line):
    inspector = CaptureInspector(model, sample_line, params(), 0.5)
    row = next(row for row in read_labels(CAPTURES) if row["role"] == "inspected")
    photograph = Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes())
    (record,) = inspector.inspect([Task(photograph)])
    seen, unit_space = inspector.see(photograph), UnitSpace.load(sample_line / f"{row['shape']}.npz")
    assert {name: record[name] for name in LINE_FACTS} == line_facts(
        align_capture(seen.image, unit_space, params().dst.maximum_shift)
    )


def test_a_photograph_is_shown_in_both_views_and_the_model_is_shown_one_of_them(sample_inspector):
    row = next(row for row in read_labels(CAPTURES) if row["role"] == "inspected")
    photograph = Photograph(row["file"], (CAPTURES / "images" / row["file"]).read_bytes())
    shown, prepared = sample_inspector.pictures(photograph), sample_inspector.prepare(Task(photograph))
    assert list(shown) == ["RAW", "DST"]
    assert shown["RAW"] != shown["DST"]
    assert prepared.pictures["inspected"] == shown[params().evaluate.view]
    assert list(prepared.pictures) == prepared.row["images"] == ["reference", "inspected"]


def test_an_inspector_that_cannot_answer_fails_its_check(model, sample_line):
    CaptureInspector(model, sample_line, params(), 0.5).try_out()
    with pytest.raises(AttributeError):
        CaptureInspector(None, sample_line, params(), 0.5).try_out()
