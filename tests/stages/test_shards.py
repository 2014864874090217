"""Stages with shards: the products of stages without, in archives of which a run writes only those that change."""

import dataclasses
import io
import shutil
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.product_files import products_of, read_product
from stages import chat, check, composite, dst, raw
from tests.support.sample import ROOT, contents, drop, line, stage_process
from tests.support.stereo_line import stereo_line

SHARDS = 16
FOLDERS = ("raw", "dst", "composited")
COLUMNS = {
    "raw": ("file", "sha256", "source", "capture", "shape", "judgement", "defect_mode", "role", "split"),
    "dst": ("file", "dst_file", "m00", "m02", "shift_x", "alignment_score", "error", "eyes_file"),
    "composited": ("file", "raw_file", "kind", "view", "star_position", "reference_file"),
}


def captures() -> list:
    """Return a line of one shape for two eyes, one view without a connector, and a line of another shape for one."""
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (260, 640, 3), np.uint8)).save(noise, "JPEG")
    stereo = [
        dataclasses.replace(capture, jpeg=noise.getvalue()) if capture.name == "right_good_OK.jpg" else capture
        for capture in stereo_line(references=3)
    ]
    return [*stereo, *line(seed=6, train=6, references=3, shapes=("SQUR",))]


def prepare(root, shards: int):
    """Write a project with captures and a small virtual line."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["raw"] |= {"shards": shards}
    settings["raw"]["virtual"] |= {"train": 2, "validation": 2, "test": 0, "references": 3}
    settings["dst"] |= {"minimum_references": 3}
    settings["composite"] |= {"cell": 32}
    settings["check"] |= {"minimum_rows": 1}
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root


def image(root) -> None:
    """Run the stages that make pictures."""
    for stage in (raw, dst, composite):
        stage.main(root)


def products(folder) -> dict[str, bytes]:
    """Return every product of a stage by its name, from files or from archives."""
    names = [str(path.relative_to(folder)) for path in (folder / "images").glob("*/*")]
    for path in (folder / "images").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            names += products_of(archive)
    return {name: read_product(folder / name) for name in names}


def rows(folder) -> list[dict]:
    """Return the rows of a manifest in the order of their files."""
    table = read_manifest(folder / MANIFEST, COLUMNS[folder.name])
    return sorted(table.to_dict("records"), key=lambda row: row["file"])


def times(root) -> dict[str, int]:
    """Return the times of all archives."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob("data/*/images/*.zip")}


@pytest.fixture(scope="module")
def loose(tmp_path_factory):
    """A project without shards."""
    root = prepare(tmp_path_factory.mktemp("loose"), 0)
    drop(root / "data/captures", captures())
    image(root)
    chat.main(root)
    check.main(root)
    return root


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The same project with shards, made by the stages' commands."""
    root = prepare(tmp_path_factory.mktemp("sharded"), SHARDS)
    drop(root / "data/captures", captures())
    for stage in ("raw", "dst", "composite", "chat", "check"):
        process = stage_process(stage, root)
        assert process.returncode == 0, process.stdout + process.stderr
    return root


def test_products_manifests_and_rows_are_those_without_shards(loose, sharded):
    for name in FOLDERS:
        ours, theirs = (root / "data" / name for root in (sharded, loose))
        assert products(ours) == products(theirs)
        assert rows(ours) == rows(theirs)
        assert {path.suffix for path in (ours / "images").iterdir()} == {".zip"}
    assert contents(sharded / "data/dst/unit_space") == contents(loose / "data/dst/unit_space")
    assert contents(sharded / "data/chat") == contents(loose / "data/chat")
    assert contents(sharded / "reports") == contents(loose / "reports")
    assert (sharded / "data/splits.csv").read_bytes() == (loose / "data/splits.csv").read_bytes()


def test_new_captures_write_their_own_archives_only_and_the_folders_equal_clean_ones(sharded, tmp_path):
    root = tmp_path / "grown"
    shutil.copytree(sharded, root)
    image(root)  # reads the archives, whose times differ in the copy
    before, archives = contents(root / "data"), times(root)
    image(root)
    assert contents(root / "data") == before
    assert times(root) == archives
    more = [capture for capture in line(seed=7, train=2, shapes=("SQUR",)) if capture.role == "inspected"]
    new = [dataclasses.replace(capture, name=f"more-{number}.jpg") for number, capture in enumerate(more)]
    drop(root / "data/captures", new)
    image(root)
    table = read_manifest(root / "data/raw" / MANIFEST, ("file", "capture"))
    shards = {file[7] for file, name in zip(table["file"], table["capture"], strict=True) if name.startswith("more-")}
    written = {name for name, time_ns in times(root).items() if archives.get(name) != time_ns}
    assert written == {f"data/{folder}/images/{shard}.zip" for folder in FOLDERS for shard in shards}
    clean = prepare(tmp_path / "clean", SHARDS)
    shutil.copytree(root / "data/captures", clean / "data/captures")
    shutil.copy(sharded / "data/splits.csv", clean / "data/splits.csv")
    image(clean)
    for name in FOLDERS:
        assert contents(root / "data" / name) == contents(clean / "data" / name)


def test_a_project_changes_its_form_without_drawing_pictures_again(loose, tmp_path, capsys):
    root = tmp_path / "project"
    shutil.copytree(loose, root)
    prepare(root, SHARDS)
    image(root)
    assert "0 captures compared, all others unchanged" in capsys.readouterr().out
    assert products(root / "data/dst") == products(loose / "data/dst")
