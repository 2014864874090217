"""Corrections: a person's judgement becomes a capture, with the checks of `pinspect add`, completely or not at all."""

import csv
import json
from datetime import UTC, datetime

import pytest

from pinspect.captures.labels import read_captures
from pinspect.core.errors import CaptureError
from pinspect.core.manifests import read_manifest
from pinspect.core.params import load_params
from pinspect.station.corrections import CorrectionError, UnknownInspectionError, correct, waiting
from pinspect.station.picture_store import PictureStore
from pinspect.station.results import ResultsTable
from pinspect.station.settings import StationSettings
from tests.support.evaluated_project import run_stage, write_params
from tests.support.sample import contents, drop, line, read_labels

SAID = {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}
BEND = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U"}
RETRACT = {"judgement": "defective", "defect_mode": "retract", "defect_position": "X:9, Y:D"}
PASSED = {"judgement": "passed", "defect_mode": "", "defect_position": ""}


class Station:
    """A project with a few captures, results and pictures, and the actions of a person at its station."""

    def __init__(self, root):
        root.mkdir(exist_ok=True)
        write_params(root)
        drop(root / "data/captures", line(seed=8, train=10, references=5)[:-3])
        self.root = root
        self.captures = root / "data/captures"
        self.params = load_params(root / "params.yaml")
        self.results = ResultsTable.of_project(root, StationSettings())
        self.pictures = PictureStore(root, 90, 10**9)

    def inspect(self, id, capture, **labels):
        """Store the result of a capture; the model's answer is passed unless `labels` changes it."""
        sha256 = self.pictures.put(capture.jpeg, ".jpg")
        record = {"file": capture.name, "image_type": f"{capture.shape}_RAW", "model_version": "7"} | SAID | labels
        self.results.record(record, id=id, sha256=sha256, source="station", received=datetime.now(UTC))
        return sha256

    def correct(self, id, by="Sato", **verdict):
        return correct(self.root, self.params, self.results, self.pictures, id, by=by, **verdict)

    def notes(self):
        path = self.captures / "corrections.csv"
        return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []

    def made(self):
        """Return the rows of `labels.csv` that corrections added."""
        return [row for row in read_labels(self.captures) if row["file"].startswith("station_")]

    def problems(self):
        return read_captures(self.captures, self.params.contract()).problems

    def files(self):
        """Return all files that a refused correction must not change."""
        return contents(self.captures), self.results.counts()


@pytest.fixture
def station(tmp_path):
    return Station(tmp_path)


@pytest.fixture
def new():
    """A capture that is not in the project."""
    return line(seed=8, train=10, references=5)[-1]


def test_a_correction_becomes_a_labeled_capture_with_person_and_time(station, new):
    sha256 = station.inspect("one", new)
    before = datetime.now(UTC).replace(microsecond=0)

    correction = station.correct("one", **BEND)

    name = f"station_{sha256[:12]}_BEND.jpg"
    assert station.made() == [{"file": name, "shape": new.shape, "role": "inspected"} | BEND]
    assert (station.captures / "images" / name).read_bytes() == new.jpeg
    assert not station.problems()
    (note,) = station.notes()
    assert before <= datetime.fromisoformat(note.pop("at")) <= datetime.now(UTC)
    assert note == {
        **{"file": name, "by": "Sato", "inspection": "one", "model_version": "7"},
        **{"model_judgement": "passed", "model_defect_mode": "passed", "model_defect_position": "passed"},
    }
    assert station.results.get("one").correction == correction
    assert (correction.capture, correction.by) == (name, "Sato")


def test_a_name_that_a_spreadsheet_would_compute_is_written_as_text(station, new):
    station.inspect("one", new)
    formula = '=HYPERLINK("http://evil.example")'
    station.correct("one", by=formula, **BEND)
    (note,) = station.notes()
    assert note["by"] == f"'{formula}"
    assert station.results.get("one").correction.by == formula


def test_a_correction_counts_as_waiting_until_the_raw_stage_runs(station, new):
    assert waiting(station.root) == 0
    sha256 = station.inspect("one", new)
    station.correct("one", **BEND)
    assert waiting(station.root) == 1

    run_stage("raw", station.root)

    manifest = read_manifest(station.root / "data/raw/manifest.csv", ("sha256", *BEND)).set_index("sha256")
    assert manifest.loc[sha256].tolist() == list(BEND.values())
    assert waiting(station.root) == 0
    station.correct("one", **RETRACT)
    assert waiting(station.root) == 1, "a changed label counts as new for the next run"


def test_a_confirmation_is_stored_in_the_results_and_adds_no_capture(station, new):
    station.inspect("one", new)
    before = contents(station.captures)

    correction = station.correct("one", **PASSED)

    assert station.results.get("one").correction == correction
    assert tuple(getattr(correction, field) for field in SAID) == tuple(SAID.values())
    assert correction.capture is None
    assert contents(station.captures) == before


def test_correcting_overkill_adds_a_passed_capture(station, new):
    sha256 = station.inspect("one", new, **BEND)
    station.correct("one", **PASSED)
    assert station.made() == [{"file": f"station_{sha256[:12]}_OK.jpg", "shape": new.shape, "role": "inspected"} | SAID]


@pytest.mark.parametrize("after", [RETRACT, BEND | {"defect_position": "X:4, Y:C"}, PASSED], ids=str)
def test_a_correction_can_be_changed(station, new, after):
    station.inspect("one", new)
    station.correct("one", **BEND)
    others = [row for row in read_labels(station.captures) if not row["file"].startswith("station_")]

    correction = station.correct("one", by="Suzuki", **after)

    (row,) = station.made()
    label = tuple(row[column] for column in ("file", *SAID))
    assert label == (correction.capture, correction.judgement, correction.defect_mode, correction.defect_position)
    assert [row for row in read_labels(station.captures) if not row["file"].startswith("station_")] == others
    assert [path.name for path in (station.captures / "images").glob("station_*")] == [correction.capture]
    assert (station.captures / "images" / correction.capture).read_bytes() == new.jpeg
    assert not [path for path in (station.captures / "images").iterdir() if path.is_symlink()]
    assert not station.problems()
    assert [note["by"] for note in station.notes()] == ["Sato", "Suzuki"]


def test_repeating_a_correction_adds_no_second_capture(station, new):
    station.inspect("one", new)
    station.correct("one", **BEND)
    station.correct("one", by="Suzuki", **BEND)
    assert len(station.made()) == 1
    assert station.results.get("one").correction.by == "Suzuki"


def test_a_picture_inspected_twice_becomes_one_capture_with_the_later_label(station, new):
    station.inspect("one", new)
    station.inspect("two", new)
    station.correct("one", **BEND)
    station.correct("two", **RETRACT)
    (row,) = station.made()
    assert row["defect_mode"] == "retract"


def test_correcting_a_capture_that_the_project_labels_differently_is_refused(station):
    there = next(capture for capture in line(seed=8, train=10, references=5)[:-3] if capture.role == "inspected")
    other = BEND if there.defect_mode != "bend" else RETRACT
    station.inspect("one", there, judgement=None, defect_mode=None, defect_position=None)
    before = station.files()
    with pytest.raises(CorrectionError, match=f"the same picture as {there.name} with another label"):
        station.correct("one", **other)
    assert station.files() == before


def test_a_capture_that_the_project_has_with_the_same_label_is_not_added_again(station):
    there = next(capture for capture in line(seed=8, train=10, references=5)[:-3] if capture.judgement == "defective")
    station.inspect("one", there)
    before = contents(station.captures)
    correction = station.correct(
        "one", judgement="defective", defect_mode=there.defect_mode, defect_position=there.defect_position
    )
    assert correction.capture is None
    assert contents(station.captures) == before


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (BEND | {"defect_position": None}, "'passed' does not go with judgement 'defective'"),
        (BEND | {"defect_position": "X:10, Y:U"}, "no pin at X:10, Y:U"),
        (BEND | {"defect_position": "U3"}, "expected an address such as 'X:3, Y:U'"),
        (BEND | {"defect_mode": "rusty"}, "expected one of .*bend.*found 'rusty'"),
        (BEND | {"defect_mode": None}, "expected one of"),
        (BEND | {"judgement": "perhaps"}, "expected passed or defective, found 'perhaps'"),
        (BEND | {"judgement": "passed"}, "'bend' does not go with judgement 'passed'"),
        (BEND | {"by": "  "}, "by: expected the name of a person"),
        (BEND | {"by": "S" * 81}, "at most 80 characters"),
        (BEND | {"by": "\x1b[31m"}, "by: expected the name of a person"),
    ],
)
def test_an_invalid_verdict_is_refused_with_a_message_and_changes_nothing(station, new, verdict, message):
    station.inspect("one", new)
    before = station.files()
    with pytest.raises(CorrectionError, match=message) as refused:
        station.correct("one", **verdict)
    assert str(station.root) not in str(refused.value)
    assert station.files() == before


def test_correcting_an_unknown_inspection_raises_its_own_error(station):
    with pytest.raises(UnknownInspectionError, match="no inspection 'nowhere'"):
        station.correct("nowhere", **BEND)


def test_a_failed_inspection_cannot_be_corrected(station, new):
    station.inspect("one", new, image_type=None, error="too far off")
    with pytest.raises(CorrectionError, match="could not be inspected"):
        station.correct("one", **BEND)


def test_a_result_without_its_picture_can_be_confirmed_but_not_corrected(station, new):
    station.inspect("one", new)
    station.pictures.prune(datetime(2100, 1, 1, tzinfo=UTC))
    with pytest.raises(CorrectionError, match="has expired"):
        station.correct("one", **BEND)
    station.correct("one", **PASSED)
    assert station.results.get("one").correction.by == "Sato"


def test_a_project_whose_labels_are_wrong_refuses_with_their_problems(station, new):
    station.inspect("one", new)
    with (station.captures / "labels.csv").open("a") as file:
        file.write("lost.jpg,CYLN,passed,passed,passed,inspected\n")
    before = station.files()
    with pytest.raises(CaptureError, match=r"lost\.jpg.*the image is missing"):
        station.correct("one", **BEND)
    assert station.files() == before
    with (station.captures / "labels.csv").open("ab") as file:
        file.write(b"much,too,many,cells,in,this,row,\xff\n")
    assert waiting(station.root) == 0, "the page can still be opened"


@pytest.mark.parametrize("earlier", [None, RETRACT], ids=["first", "changed"])
def test_a_correction_killed_between_image_and_label_is_completed_later(station, new, earlier):
    sha256 = station.inspect("one", new)
    if earlier:
        station.correct("one", **earlier)
    name = f"station_{sha256[:12]}_MISSING.jpg"
    (station.captures / "images" / name).write_bytes(new.jpeg)
    place = station.captures / ".adding-killed"
    place.mkdir()
    (place / "plan.json").write_text(json.dumps([name]))
    assert station.problems()

    station.correct("one", **BEND)

    assert not station.problems()
    assert [row["defect_mode"] for row in station.made()] == ["bend"]


def test_the_first_correction_makes_the_captures_folder(tmp_path, new):
    station = Station(tmp_path / "a")
    for path in sorted((station.captures).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    station.captures.rmdir()
    station.inspect("one", new)
    station.correct("one", **BEND)
    assert [row["defect_mode"] for row in station.made()] == ["bend"]
    assert not station.problems()


def test_simultaneous_corrections_are_all_stored(station):
    from concurrent.futures import ThreadPoolExecutor

    captures = line(seed=8, train=10, references=5)[-3:]
    for number, capture in enumerate(captures):
        station.inspect(str(number), capture)
    with ThreadPoolExecutor(3) as people:
        list(people.map(lambda number: station.correct(str(number), **BEND), range(3)))
    assert len(station.made()) == len(station.notes()) == 3
    assert not station.problems()
