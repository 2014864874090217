"""Two cameras above one connector: each eye has its unit space, each connector the difference of both views."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pinspect.chat.dataset import build_chat
from pinspect.composites.composited import build_composited
from pinspect.composites.views import Style
from pinspect.core.errors import UnitSpaceError
from pinspect.core.manifests import read_manifest
from pinspect.examination.baseline import fit_baseline
from pinspect.nsoartc.dst import COLUMNS, EYES_FILE
from pinspect.nsoartc.unit_space import UnitSpace
from pinspect.registry.package import pack_line
from tests.support.dst_line import build, drop_raw, read_rows, write_rows
from tests.support.sample import contents, line, params
from tests.support.stereo_line import LAYOUT, passed_pins, stereo, stereo_line

LINE = stereo_line()
LOW = "X:6, Y:C"


def manifest(root) -> pd.DataFrame:
    table = read_manifest(root / "data/dst/manifest.csv", (*COLUMNS, EYES_FILE))
    names = read_manifest(root / "data/raw/manifest.csv", ("file", "capture"))
    return table.merge(names, on="file").set_index("capture")


def differences(root, capture: str) -> np.ndarray:
    """Return the distance from mid-gray of a capture's double-eye picture in each pin's cell, shape (pins,)."""
    space = UnitSpace.load(root / "data/dst/unit_space/camera-CYLN-left.npz")
    with Image.open(root / "data/dst" / manifest(root).loc[capture, EYES_FILE]) as picture:
        assert (picture.mode, picture.size) == ("L", (space.size[0] // 2, space.size[1] // 2))
        away = np.abs(np.asarray(picture).astype(int) - 128)
    reach = round(space.pitch / 4)
    places = (space.pin_centers / 2).round().astype(int)
    return np.array([away[y - reach : y + reach, x - reach : x + reach].mean() for x, y in places])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("stereo")
    drop_raw(root, LINE)
    assert build(root).remarks == ()
    return root


@pytest.fixture
def root(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def test_each_eye_has_a_unit_space_of_its_own_references(finished):
    spaces = sorted(path.name for path in (finished / "data/dst/unit_space").iterdir())
    assert spaces == ["camera-CYLN-left.npz", "camera-CYLN-right.npz"]
    for eye in ("left", "right"):
        space = UnitSpace.load(finished / f"data/dst/unit_space/camera-CYLN-{eye}.npz")
        assert space.references == tuple(f"{eye}_reference_{number}.jpg" for number in range(5))


def test_both_views_of_a_connector_name_one_double_eye(finished):
    table = manifest(finished)
    for capture, row in table.iterrows():
        eye, _, connector = capture.partition("_")
        left = table.loc[f"left_{connector}"]
        assert row[EYES_FILE] == left["dst_file"].replace(".jpg", "-EYES.png"), (eye, connector)
    assert len(set(table[EYES_FILE])) == len(LINE) / 2
    assert all((finished / "data/dst" / file).is_file() for file in table[EYES_FILE])


def test_a_double_eye_shows_a_retracted_pin_and_no_pin_of_a_passed_connector(finished):
    low, good = differences(finished, "right_low_RETRACTNG.jpg"), differences(finished, "left_good_OK.jpg")
    assert low.argmax() == LAYOUT.index(LAYOUT.address(LOW))
    assert low.max() > 2 * np.sort(low)[-2]
    assert good.max() < 0.5 * low.max()


def test_the_scale_is_a_constant_of_the_unit_spaces(finished):
    good = differences(finished, "left_good_OK.jpg")
    assert 3 < np.median(good) < 40  # if each picture were stretched to its own extremes, no pin would be near mid-gray


def test_a_second_run_changes_nothing(root):
    before = contents(root / "data/dst")
    assert build(root).made == 0
    assert contents(root / "data/dst") == before


def test_adding_a_pair_draws_only_that_pair_and_equals_a_clean_run(root, tmp_path):
    times = {path: path.stat().st_mtime_ns for path in (root / "data/dst/images").rglob("*.*")}
    drop_raw(root, stereo("more", passed_pins(70), 170))
    assert build(root).made == 2
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    clean = tmp_path / "clean"
    shutil.copytree(root / "data/raw", clean / "data/raw")
    build(clean)
    assert contents(root / "data/dst") == contents(clean / "data/dst")


def test_a_view_without_its_partner_is_reported_and_has_no_double_eye(root):
    rows = read_rows(root / "data/raw")
    gone = manifest(root).loc["left_low_RETRACTNG.jpg", EYES_FILE]
    write_rows(root / "data/raw", [row for name, row in rows.items() if name != "right_low_RETRACTNG.jpg"])
    (remark,) = build(root).remarks
    assert remark.startswith("left_low_RETRACTNG.jpg: no double-eye: there is no right_low_RETRACTNG.jpg;")
    table = manifest(root)
    assert table.loc["left_low_RETRACTNG.jpg", EYES_FILE] == ""
    assert table.loc["left_low_RETRACTNG.jpg", "dst_file"] != ""
    assert (table[EYES_FILE] != "").sum() == len(LINE) - 2
    assert not (root / "data/dst" / gone).exists()


def test_partners_with_different_labels_are_reported_and_not_paired(root):
    rows = read_rows(root / "data/raw")
    rows["right_low_RETRACTNG.jpg"] |= {"defect_mode": "bend"}
    write_rows(root / "data/raw", rows.values())
    (remark,) = build(root).remarks
    assert remark == (
        "left_low_RETRACTNG.jpg and right_low_RETRACTNG.jpg: no double-eye: their labels differ "
        "(CYLN defective retract X:6, Y:C inspected; CYLN defective bend X:6, Y:C inspected); "
        "correct the wrong one in labels.csv"
    )
    assert (manifest(root).loc[["left_low_RETRACTNG.jpg", "right_low_RETRACTNG.jpg"], EYES_FILE] == "").all()


def test_a_partner_that_was_set_aside_is_reported_and_other_pairs_are_drawn(root):
    left, right = stereo("dark", passed_pins(71), 171)
    drop_raw(root, [left, right], **{right.name: {"content": b""}})
    report = build(root)
    assert list(report.set_aside) == [right.name]
    assert report.remarks == (f"{left.name} and {right.name}: no double-eye: {right.name} set aside",)
    assert (manifest(root)[EYES_FILE] != "").sum() == len(LINE)


def test_an_eye_without_references_is_refused_by_name(root):
    rows = [row for name, row in read_rows(root / "data/raw").items() if not name.startswith("right_reference")]
    write_rows(root / "data/raw", rows)
    with pytest.raises(UnitSpaceError, match=r"camera line, right eye: shape CYLN: 0 references, at least \d+"):
        build(root)


def test_captures_of_a_single_camera_have_one_unit_space_whatever_its_name(tmp_path):
    captures = line(seed=4, train=2, references=5, shapes=("CYLN",))
    named = [capture.__class__(**{**capture.__dict__, "name": f"left_{capture.name}"}) for capture in captures]
    for root, some in ((tmp_path / "plain", captures), (tmp_path / "left", named)):
        drop_raw(root, some)
        build(root)
    plain, left = (contents(tmp_path / name / "data/dst") for name in ("plain", "left"))
    assert "unit_space/camera-CYLN.npz" in left
    assert left["manifest.csv"] == plain["manifest.csv"]
    assert left["manifest.csv"].splitlines()[0].decode() == ",".join(COLUMNS)  # no column for eyes


def test_later_stages_compare_each_view_with_references_of_its_eye(finished, tmp_path):
    root, settings = tmp_path / "root", params()
    shutil.copytree(finished, root)
    raw, dst, composited = (root / "data" / name for name in ("raw", "dst", "composited"))
    drawn = settings.composite
    style = Style(LAYOUT, 32, drawn.grid, drawn.jpeg_quality)
    build_composited(raw, dst, composited, style, stacks_per_capture=1, workers=1)
    eyes = {row["file"].split(".")[0]: name.partition("_")[0] for name, row in read_rows(raw).items()}
    dataset = build_chat(raw, dst, composited, settings.contract(), settings.chat)
    rows = [row for of_split in dataset.rows.values() for row in of_split]
    shown = [{eyes[image.split("-")[0]] for image in row["images"]} for row in rows]
    assert len(rows) > 0 and all(len(of_row) == 1 for of_row in shown)
    assert {eye for of_row in shown for eye in of_row} == {"left", "right"}
    baseline = fit_baseline(dst, raw, settings.contract())
    answers = {name: baseline.inspect(row["file"]).answer for name, row in read_rows(raw).items() if "low" in name}
    assert {str(answer.defect_position) for answer in answers.values()} == {LOW}
    pack_line(root, ["CYLN"], tmp_path / "packed")
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "CYLN-left-reference.jpg", "CYLN-left.npz", "CYLN-right-reference.jpg", "CYLN-right.npz",
    ]  # fmt: skip
