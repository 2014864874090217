"""The composite stage: every aligned capture as the model sees it, stars and stacked pairs."""

import dataclasses
import io
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pinspect.captures.raw import build_raw
from pinspect.composites.composited import COLUMNS, STARS_PER_REFERENCE, build_composited
from pinspect.composites.drawing import composite_size
from pinspect.composites.views import Style
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.nsoartc.dst import Reading, build_dst
from tests.support.sample import ROOT, contents, drop, line, params, stage_process

LAYOUT = params().layout.layout()
STYLE = Style(LAYOUT, cell=32, grid=True, jpeg_quality=95)


def prepare(root, captures):
    """Add `captures` to `root` and update its raw and dst folders."""
    drop(root / "captures", captures)
    settings = params()
    no_virtual = settings.raw.virtual.model_copy(update={"train": 0, "validation": 0, "test": 0})
    raw = settings.raw.model_copy(update={"virtual": no_virtual, "shards": 0})
    build_raw(root / "captures", root / "raw", root / "splits.csv", settings.contract(), raw, workers=1)
    reading = Reading(LAYOUT, settings.dst.model_copy(update={"minimum_references": 3}), 1_000_000)
    build_dst(root / "raw", root / "dst", reading, workers=1)


def build(root, style=STYLE, stacks=0) -> pd.DataFrame:
    build_composited(root / "raw", root / "dst", root / "composited", style, stacks_per_capture=stacks, workers=1)
    return read_manifest(root / "composited/manifest.csv", COLUMNS)


def run_stage(project) -> subprocess.CompletedProcess:
    return stage_process("composite", project)


def picture(root, file) -> np.ndarray:
    return np.asarray(Image.open(root / "composited" / file)).astype(int)


def captures() -> list:
    """Four references, eight inspected captures, and a picture that shows no connector."""
    noise = np.random.default_rng(1).integers(0, 255, (260, 640, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    line_of_one_shape = line(seed=6, train=8, references=4, shapes=("CYLN",))
    other = next(capture for capture in line_of_one_shape if capture.role == "inspected")
    return [*line_of_one_shape, dataclasses.replace(other, name="no-connector.jpg", jpeg=file.getvalue())]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    prepare(root, captures())
    return root


@pytest.fixture
def root(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def raw(prepared):
    return read_manifest(prepared / "raw/manifest.csv", ("file", "capture", "role", "split")).set_index("file")


def test_every_aligned_capture_has_a_single_of_each_view(root, raw):
    singles = build(root).query("kind == 'single'")
    aligned = raw[raw["capture"] != "no-connector.jpg"]
    assert len(aligned) == len(raw) - 1
    assert singles.groupby("raw_file")["view"].agg(set).to_dict() == {file: {"RAW", "DST"} for file in aligned.index}
    for file in singles["file"]:
        assert Image.open(root / "composited" / file).size == composite_size(LAYOUT, 32)


def test_pins_of_all_captures_fall_on_the_same_cells(root):
    """Pins are bright, the housing is dark: in the mean of all RAW composites each cell is brightest in its middle."""
    singles = build(root).query("kind == 'single' and view == 'RAW'")
    mean = np.mean([picture(root, file) for file in singles["file"]], axis=(0, 3))[32:, 32:]
    cells = mean.reshape(3, 32, 9, 32).swapaxes(1, 2)
    middle = cells[:, :, 12:20, 12:20].mean(axis=(2, 3))
    border = np.concatenate([cells[:, :, :3].mean(axis=(2, 3)), cells[:, :, -3:].mean(axis=(2, 3))])
    assert middle.min() > border.max() + 20


def test_star_images_show_a_red_star_at_the_address_of_the_manifest(root, raw):
    composited = build(root)
    stars = composited.query("kind == 'star'")
    references = raw[raw["role"] == "reference"]
    assert stars.groupby(["raw_file", "view"]).size().to_dict() == {
        (file, view): STARS_PER_REFERENCE for file in references.index for view in ("RAW", "DST")
    }
    assert stars.groupby(["raw_file", "view"])["star_position"].nunique().eq(STARS_PER_REFERENCE).all()
    for star in stars.itertuples():
        image = picture(root, star.file)
        is_red = (image[..., 0] > 150) & (image[..., 1:].max(axis=2) < 100)
        rows, columns = np.nonzero(is_red[32:, 32:])
        address = LAYOUT.address(star.star_position)
        assert int(np.median(columns)) // 32 + 1 == address.column
        assert LAYOUT.rows[int(np.median(rows)) // 32] == address.row


def test_stars_lie_on_many_addresses(root):
    assert build(root).query("kind == 'star'")["star_position"].nunique() > 6


def test_stacked_composites_are_drawn_only_if_requested(root):
    assert set(build(root)["kind"]) == {"single", "star"}


def test_stacked_composites_show_the_reference_above_the_inspected_capture(root, raw):
    composited = build(root, stacks=2)
    single = composited.query("kind == 'single'").set_index(["raw_file", "view"])["file"]
    stacks = composited.query("kind == 'stacked'")
    assert set(stacks["raw_file"]) == set(
        raw.index[(raw["role"] == "inspected") & (raw["capture"] != "no-connector.jpg")]
    )
    for stack in stacks.itertuples():
        both = picture(root, stack.file)
        height = len(both) // 2
        assert np.abs(both[:height] - picture(root, single[stack.reference_file, stack.view])).mean() < 2
        assert np.abs(both[height:] - picture(root, single[stack.raw_file, stack.view])).mean() < 2


def test_test_captures_are_stacked_with_the_best_aligned_reference_only(root, raw):
    aligned = read_manifest(root / "dst/manifest.csv", ("file", "alignment_score")).set_index("file")
    scores = aligned["alignment_score"].where(raw["role"] == "reference", "0").astype(float)
    stacks = build(root, stacks=3).query("kind == 'stacked' and view == 'RAW'")
    partners = stacks.groupby("raw_file")["reference_file"].agg(set)
    for file, references in partners.items():
        assert scores.idxmax() in references
        assert len(references) == (3 if raw.loc[file, "split"] == "train" else 1)
    assert {1, 3} == {len(references) for references in partners}


def test_without_the_grid_the_margins_are_black(root):
    file = build(root).query("kind == 'single'")["file"].iloc[0]
    assert picture(root, file)[:32].max() > 150
    build(root, replace(STYLE, grid=False))
    assert picture(root, file)[:32].max() < 30


def test_new_captures_leave_the_old_composites_alone_and_the_folder_equals_a_clean_one(tmp_path):
    everything = captures()
    prepare(tmp_path / "grown", everything[:8])
    build(tmp_path / "grown", stacks=1)
    before = contents(tmp_path / "grown/composited/images")
    prepare(tmp_path / "grown", everything[8:])
    build(tmp_path / "grown", stacks=1)
    prepare(tmp_path / "clean", everything)
    build(tmp_path / "clean", stacks=1)
    after = contents(tmp_path / "grown/composited")
    assert after == contents(tmp_path / "clean/composited")
    assert before.items() <= contents(tmp_path / "grown/composited/images").items()


def test_an_error_about_a_missing_manifest_shows_what_to_run(root):
    (root / "dst/manifest.csv").unlink()
    with pytest.raises(StageInputError, match=r"dst/manifest.csv: not found; run `dvc repro`"):
        build(root)


def test_an_error_names_manifests_that_do_not_match(root):
    manifest = root / "raw/manifest.csv"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(StageInputError, match=r"is not in .*raw/manifest.csv; run `dvc repro`"):
        build(root)


@pytest.mark.parametrize(("content", "message"), [("", "not readable"), ("file,colour\n", "columns .* are missing")])
def test_a_damaged_manifest_is_named(root, content, message):
    (root / "raw/manifest.csv").write_text(content)
    with pytest.raises(StageInputError, match=message):
        build(root)


def test_the_stage_draws_stacks_if_the_chat_dataset_uses_them(root):
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["chat"]["kinds"] = {"two_image": 3, "stacked": 3}
    (root.parent / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    result = stage_process("composite", root.parent)
    assert result.returncode == 0, result.stderr
    assert set(read_manifest(root / "composited/manifest.csv", COLUMNS)["kind"]) == {"single", "star", "stacked"}
    assert "stacked" in result.stdout


def test_the_stage_ends_with_one_line_when_its_input_is_missing(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    result = stage_process("composite", tmp_path)
    assert result.returncode == 2
    assert result.stderr == "data/raw/manifest.csv: not found; run `dvc repro`, which makes it\n"
