"""The dst stage: every capture is aligned and drawn once, and a bad capture does not stop the others."""

import io
import shutil
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pinspect.core.errors import StageInputError, UnitSpaceError
from pinspect.core.manifests import read_manifest
from pinspect.nsoartc.dst import COLUMNS, MATRIX, Reading
from pinspect.nsoartc.scores import score_columns
from pinspect.nsoartc.unit_space import UnitSpace
from tests.support.dst_line import READING, build, drop_raw, read_rows, write_rows
from tests.support.sample import ROOT, contents, drop, line, stage_process

LINE = line(seed=4, train=12, references=6)


def manifest(root) -> pd.DataFrame:
    table = read_manifest(root / "data/dst/manifest.csv", COLUMNS)
    names = read_manifest(root / "data/raw/manifest.csv", ("file", "capture"))
    return table.merge(names, on="file").set_index("capture")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project with 12 references and 12 inspected captures of both shapes, and its dst folder."""
    root = tmp_path_factory.mktemp("finished")
    drop_raw(root, LINE)
    build(root)
    return root


@pytest.fixture
def root(finished, tmp_path):
    """A copy of the finished project."""
    shutil.copytree(finished, tmp_path / "root")
    return tmp_path / "root"


def test_every_capture_has_a_picture_with_a_pixel_for_each_stride(finished):
    table = manifest(finished)
    assert sorted(table.index) == sorted(capture.name for capture in LINE)
    assert (table["error"] == "").all()
    for capture, row in table.iterrows():
        with Image.open(finished / "data/dst" / row["dst_file"]) as view:
            assert (view.mode, view.size) == ("RGB", (320, 130)), capture
        assert row["dst_file"] == row["file"]
        assert float(row["alignment_score"]) > 0.8
        assert np.isfinite(row[[*MATRIX, "shift_x", "shift_y"]].astype(float)).all()


def test_each_line_has_a_unit_space_of_its_own_references(finished):
    for shape in ("CYLN", "SQUR"):
        space = UnitSpace.load(finished / f"data/dst/unit_space/camera-{shape}.npz")
        assert space.shape == shape
        assert space.references == tuple(
            sorted(capture.name for capture in LINE if capture.shape == shape and capture.role == "reference")
        )


def test_the_scores_name_the_defective_pin(finished):
    scores = read_manifest(finished / "data/dst/scores.csv", score_columns(READING.layout))
    names = read_manifest(finished / "data/raw/manifest.csv", ("file", "capture"))
    scores = scores.merge(names, on="file").set_index("capture")
    inspected = [capture for capture in LINE if capture.role == "inspected"]
    assert sorted(scores.index) == sorted(capture.name for capture in inspected)
    assert {capture.judgement for capture in inspected} == {"passed", "defective"}
    for capture in inspected:
        row = scores.loc[capture.name]
        assert float(row["score"]) == max(float(row[str(address)]) for address in READING.layout.addresses)
        if capture.judgement == "defective":
            assert row["highest"] == capture.defect_position and float(row["score"]) > 1.8
        else:
            assert float(row["score"]) < 1.8


def test_a_second_run_changes_nothing(root):
    before = contents(root / "data/dst")
    assert build(root).made == 0
    assert contents(root / "data/dst") == before


def test_adding_captures_draws_only_those_and_equals_a_clean_run(root, tmp_path):
    more = [capture for capture in line(seed=9, train=6, references=2) if capture.role == "inspected"]
    more = [capture for capture in more if capture.name not in {known.name for known in LINE}] or more
    more = [capture.__class__(**{**capture.__dict__, "name": f"more-{capture.name}"}) for capture in more]
    drop_raw(root, more)
    assert build(root).made == len(more)
    clean = tmp_path / "clean"
    shutil.copytree(root / "data/raw", clean / "data/raw")
    build(clean)
    assert contents(root / "data/dst") == contents(clean / "data/dst")


def test_a_new_reference_redoes_only_its_own_line(root):
    inspected = next(c for c in LINE if c.shape == "SQUR" and c.role == "inspected" and c.judgement == "passed")
    drop_raw(root, [inspected], **{inspected.name: {"role": "reference"}})
    assert build(root).made == sum(capture.shape == "SQUR" for capture in LINE)


def test_a_removed_capture_leaves_nothing_behind(root):
    rows = read_rows(root / "data/raw")
    gone = rows.pop(LINE[-1].name)
    write_rows(root / "data/raw", rows.values())
    build(root)
    assert LINE[-1].name not in manifest(root).index
    assert not (root / "data/dst" / gone["file"]).exists()


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99))]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def converted(capture, mode: str, suffix: str, **options) -> bytes:
    image = Image.open(io.BytesIO(capture.jpeg))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "P":
        image = image.convert("L").convert("P")
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 3
        options["exif"] = exif
        image = image.rotate(180)
    else:
        image = image.convert(mode)
    content = io.BytesIO()
    image.save(content, suffix.strip("."), **options)
    return content.getvalue()


def test_an_unusable_capture_is_set_aside_by_name_and_the_others_are_processed(root):
    good = next(capture for capture in LINE if capture.role == "inspected")
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (260, 640, 3)).astype(np.uint8)).save(noise, "png")
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "png")
    faults = {
        "empty": (b"", ".jpg", "the file is empty"),
        "cut": (good.jpeg[: len(good.jpeg) // 2], ".jpg", "damaged or cut short"),
        "bomb": (png_bomb(), ".png", "more than raw.max_pixels allows"),
        "text": (b"no image\n" * 9, ".jpg", "not an image file"),
        "dot": (dot.getvalue(), ".png", "1 x 1 px is no photograph"),
        "noise": (noise.getvalue(), ".png", "shares no structure"),
    }
    for name, (content, suffix, _) in faults.items():
        capture = good.__class__(**{**good.__dict__, "name": name})
        drop_raw(root, [capture], **{name: {"content": content, "suffix": suffix}})
    report = build(root)
    assert sorted(report.set_aside) == sorted(faults)
    assert list(report.pictures) == ["noise"]  # the others cannot be read
    assert Image.open(root / "data/dst" / report.pictures["noise"]).format == "JPEG"
    table = manifest(root)
    for name, (_, _, reason) in faults.items():
        assert reason in table.loc[name, "error"] and reason in report.set_aside[name]
        assert table.loc[name, "dst_file"] == table.loc[name, "m00"] == ""
    assert (table.loc[[capture.name for capture in LINE], "error"] == "").all()


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", ".png"), ("P", ".png"), ("RGBA", ".png"), ("CMYK", ".tiff"), ("turned", ".png")]
)
def test_other_image_modes_and_formats_give_the_same_view(root, mode, suffix):
    good = next(capture for capture in LINE if capture.role == "inspected" and capture.judgement == "defective")
    twin = good.__class__(**{**good.__dict__, "name": "twin"})
    drop_raw(root, [twin], twin={"content": converted(good, mode, suffix), "suffix": suffix})
    assert build(root).set_aside == {}
    table = manifest(root)
    usual, unusual = (
        np.asarray(Image.open(root / "data/dst" / table.loc[name, "dst_file"])).astype(int)
        for name in (good.name, "twin")
    )
    assert np.abs(usual - unusual).mean() < 3


def test_a_reference_unlike_the_other_references_is_reported_by_name(root):
    spoiled = next(c for c in LINE if c.role == "inspected" and c.defect_mode == "missing")
    drop_raw(root, [spoiled], **{spoiled.name: {"role": "reference", "judgement": "passed"}})
    assert build(root).outliers == (spoiled.name,)


def test_a_reference_that_is_labeled_defective_is_refused_by_name(root):
    defective = next(c for c in LINE if c.role == "inspected" and c.judgement == "defective")
    drop_raw(root, [defective], **{defective.name: {"role": "reference"}})
    with pytest.raises(UnitSpaceError, match=f"reference {defective.name} is labeled defective"):
        build(root)


def test_a_reference_of_the_other_shape_is_refused_by_name(root):
    round_one = next(c for c in LINE if c.role == "inspected" and c.shape == "CYLN" and c.judgement == "passed")
    drop_raw(root, [round_one], **{round_one.name: {"role": "reference", "shape": "SQUR"}})
    with pytest.raises(UnitSpaceError, match=f"reference {round_one.name} is labeled SQUR but looks like CYLN"):
        build(root)


def test_every_shape_without_enough_references_is_reported_and_nothing_changes(root):
    before = contents(root / "data/dst")
    rows = {name: row for name, row in read_rows(root / "data/raw").items() if row["role"] != "reference"}
    write_rows(root / "data/raw", rows.values())
    with pytest.raises(UnitSpaceError) as refused:
        build(root)
    assert [line.split(":")[1].split(",")[0].strip() for line in str(refused.value).splitlines()] == [
        "shape CYLN",
        "shape SQUR",
    ]
    assert contents(root / "data/dst") == before


def test_an_error_about_a_missing_raw_folder_shows_which_stage_to_run(tmp_path):
    with pytest.raises(StageInputError, match=r"raw/manifest\.csv: not found; run `dvc repro`"):
        build(tmp_path)


def test_another_size_of_the_parts_redoes_every_capture(root):
    wider = Reading(READING.layout, READING.params.model_copy(update={"size": 11}), READING.max_pixels)
    assert build(root, wider).made == len(LINE)


def test_the_stage_runs_after_the_raw_stage(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    text = (tmp_path / "params.yaml").read_text().replace("train: 1000", "train: 2")
    text = text.replace("validation: 150", "validation: 0").replace("test: 300", "test: 1")
    (tmp_path / "params.yaml").write_text(text.replace("references: 10 ", "references: 5 "))
    drop(tmp_path / "data/captures", LINE)
    for stage in ("raw", "dst"):
        done = stage_process(stage, tmp_path)
        assert done.returncode == 0, done.stderr
    table = read_manifest(tmp_path / "data/dst/manifest.csv", COLUMNS)
    assert len(table) == len(LINE) + 13 and (table["error"] == "").all()
    assert sorted(path.name for path in (tmp_path / "data/dst/unit_space").iterdir()) == [
        "camera-CYLN.npz", "camera-SQUR.npz", "virtual-CYLN.npz", "virtual-SQUR.npz",
    ]  # fmt: skip
