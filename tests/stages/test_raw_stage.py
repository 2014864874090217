"""The raw stage: captures checked, copied and split; the virtual line beside them."""

import dataclasses
import hashlib
import io
import shutil
import subprocess

import pandas as pd
import pytest
import yaml
from PIL import Image, ImageEnhance

from pinspect.captures.raw import COLUMNS, RawReport, build_raw
from pinspect.core.errors import CaptureError, ParamsError
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params, load_params
from tests.support.sample import ROOT, contents, drop, line, read_labels, row, stage_process, write_labels


def write_params(folder, **virtual) -> Params:
    """Write the shipped parameters, without archives, with a virtual line of size `virtual` (default: none)."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["raw"]["shards"] = 0
    settings["raw"]["virtual"] |= {"train": 0, "validation": 0, "test": 0, "references": 2} | virtual
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return load_params(folder / "params.yaml")


def build(root) -> RawReport:
    params = load_params(root / "params.yaml")
    data = root / "data"
    return build_raw(data / "captures", data / "raw", data / "splits.csv", params.contract(), params.raw, workers=1)


def run_stage(root) -> subprocess.CompletedProcess:
    return stage_process("raw", root)


def manifest(root) -> pd.DataFrame:
    return read_manifest(root / "data/raw/manifest.csv", COLUMNS)


@pytest.fixture
def root(tmp_path):
    """A project folder with ten captures and no virtual line."""
    write_params(tmp_path)
    drop(tmp_path / "data/captures", line()[:10])
    return tmp_path


def test_every_capture_is_copied_with_its_label_and_provenance(root):
    build(root)
    table = manifest(root)
    assert sorted(table["capture"]) == sorted(capture.name for capture in line()[:10])
    for capture in line()[:10]:
        (copied,) = table[table["capture"] == capture.name].to_dict("records")
        assert (root / "data/raw" / copied["file"]).read_bytes() == capture.jpeg
        assert copied["sha256"] == hashlib.sha256(capture.jpeg).hexdigest()
        assert copied["file"] == f"images/{copied['sha256'][:2]}/{copied['sha256'][:20]}.jpg"
        assert copied["source"] == "camera"
        assert {key: copied[key] for key in row(capture) if key != "file"} == {
            key: value for key, value in row(capture).items() if key != "file"
        }


def test_references_are_for_training(root):
    build(root)
    table = manifest(root)
    assert set(table.loc[table["role"] == "reference", "split"]) == {"train"}


def test_the_boxes_of_the_labels_are_kept(root):
    rows = read_labels(root / "data/captures")
    rows[0] |= {"field_x0": "40", "field_y0": "46", "field_x1": "604.5", "field_y1": "217"}
    write_labels(root / "data/captures", rows)
    build(root)
    (copied,) = manifest(root).query("capture == @rows[0]['file']").to_dict("records")
    assert [copied[name] for name in ("field_x0", "field_y0", "field_x1", "field_y1")] == ["40", "46", "604.5", "217"]
    assert copied["pin_x0"] == ""


def test_the_virtual_line_tops_up_every_split(root):
    write_params(root, train=6, validation=3, test=4)
    build(root)
    virtual = manifest(root).query("source == 'virtual'")
    counts = virtual.groupby(["role", "split"]).size().to_dict()
    assert counts == {
        **{("inspected", "train"): 6, ("inspected", "validation"): 3, ("inspected", "test"): 4},
        ("reference", "train"): 4,
    }
    assert (virtual["field_x0"].astype(float) < virtual["field_x1"].astype(float)).all()
    defective = virtual["judgement"] == "defective"
    assert ((virtual["pin_x0"] != "") == defective).all()
    assert ((virtual["defect_position"] != "passed") == defective).all()


def test_the_virtual_line_runs_before_the_first_capture_comes(tmp_path):
    write_params(tmp_path, train=4)
    assert build(tmp_path).counts["train"].sum() == 8
    assert set(manifest(tmp_path)["source"]) == {"virtual"}


def test_more_virtual_captures_leave_the_first_ones_alone(root):
    write_params(root, train=4, test=2)
    build(root)
    before = manifest(root)
    write_params(root, train=6, test=2)
    assert build(root).made == 1
    after = manifest(root)
    assert len(after) == len(before) + 2
    assert set(before["sha256"]) < set(after["sha256"])


def test_a_project_without_any_capture_is_an_error(tmp_path):
    write_params(tmp_path)
    with pytest.raises(CaptureError, match=r"no captures, and raw.virtual asks for none; run `pinspect add DIR`"):
        build(tmp_path)
    assert not (tmp_path / "data/splits.csv").exists()


def test_the_virtual_line_leaves_out_a_mode_that_it_cannot_draw(root):
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["answers"]["defect_modes"] = {"rusty": {"draw": "nothing"}}
    settings["raw"]["virtual"] |= {"train": 2, "defective_share": 0.0}
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    shutil.rmtree(root / "data/captures")
    build(root)
    assert set(manifest(root)["judgement"]) == {"passed"}
    settings["raw"]["virtual"]["defective_share"] = 0.5
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    with pytest.raises(ParamsError, match=r"draws no defect mode; declare how to draw one in answers.defect_modes"):
        build(root)


def test_an_unchanged_run_makes_nothing(root):
    write_params(root, train=2, test=2)
    assert build(root).made == 12
    before = contents(root)
    assert build(root).made == 0
    assert contents(root) == before


def test_adding_captures_processes_only_those_and_equals_a_clean_run(root, tmp_path_factory):
    build(root)
    drop(root / "data/captures", line()[10:14])
    assert build(root).made == 4
    clean = tmp_path_factory.mktemp("clean")
    write_params(clean)
    drop(clean / "data/captures", line()[:14])
    build(clean)
    assert contents(root / "data/raw") == contents(clean / "data/raw")
    assert contents(root / "data")["splits.csv"] == contents(clean / "data")["splits.csv"]


def test_a_removed_capture_leaves_nothing_behind(root):
    build(root)
    rows = read_labels(root / "data/captures")
    (root / "data/captures/images" / rows[-1]["file"]).unlink()
    write_labels(root / "data/captures", rows[:-1])
    build(root)
    files = {name for name in contents(root / "data/raw") if name.startswith("images/")}
    assert files == set(manifest(root)["file"])
    assert len(files) == 9


def brighter(capture, name):
    """Return the picture brightened and encoded again."""
    file = io.BytesIO()
    ImageEnhance.Brightness(Image.open(io.BytesIO(capture.jpeg))).enhance(1.06).save(file, "JPEG", quality=90)
    return dataclasses.replace(capture, name=name, jpeg=file.getvalue())


def test_near_duplicates_join_the_split_of_the_capture_that_came_first(root):
    captures = [capture for capture in line() if capture.role == "inspected"]
    drop(root / "data/captures", captures[6:])
    build(root)
    before = manifest(root).set_index("capture")["split"]
    copies = [brighter(capture, f"again-{capture.name}") for capture in captures]
    labels = read_labels(root / "data/captures")
    drop(root / "data/captures", copies)
    # In a sorted labels.csv the copies can come before their originals.
    write_labels(root / "data/captures", [*map(row, copies), *labels])
    build(root)
    after = manifest(root).set_index("capture")["split"]
    assert len(set(before)) > 1
    assert after[before.index].to_dict() == before.to_dict()
    assert all(after[f"again-{capture.name}"] == before[capture.name] for capture in captures)


def test_a_duplicate_picture_is_stored_once_and_reported(root):
    first = line()[0]
    drop(root / "data/captures", [dataclasses.replace(first, name="twin.jpg")])
    assert build(root).remarks == (f"twin.jpg: the same picture as {first.name}, left out",)
    assert len(manifest(root)) == 10


def test_another_picture_under_an_old_name_causes_a_remark(root):
    assert build(root).remarks == ()
    name = read_labels(root / "data/captures")[0]["file"]
    (root / "data/captures/images" / name).write_bytes(line()[11].jpeg)
    assert build(root).remarks == (f"{name}: another picture than so far under this name; it counts as a new capture",)
    assert build(root).remarks == ()


def test_a_row_that_contradicts_its_file_name_causes_a_remark(root):
    rows = read_labels(root / "data/captures")
    passed = next(row for row in rows if row["judgement"] == "passed")
    images = root / "data/captures/images"
    (images / passed["file"]).rename(images / "camera0_0_452_400_89_0_0_BENDNG.jpg")
    write_labels(
        root / "data/captures",
        [row | {"file": "camera0_0_452_400_89_0_0_BENDNG.jpg"} if row is passed else row for row in rows],
    )
    (remark,) = build(root).remarks
    assert remark == "camera0_0_452_400_89_0_0_BENDNG.jpg: the name says defective bend, its row passed; the row counts"


def test_a_renamed_capture_is_not_copied_again(root):
    build(root)
    rows = read_labels(root / "data/captures")
    (root / "data/captures/images" / rows[0]["file"]).rename(root / "data/captures/images/renamed.jpg")
    write_labels(root / "data/captures", [rows[0] | {"file": "renamed.jpg"}, *rows[1:]])
    assert build(root).made == 0
    assert "renamed.jpg" in set(manifest(root)["capture"])


def test_pictures_of_other_formats_keep_their_suffix(root):
    rows = read_labels(root / "data/captures")
    images = root / "data/captures/images"
    Image.open(images / rows[0]["file"]).save(images / "lossless.PNG")
    write_labels(root / "data/captures", [*rows, rows[0] | {"file": "lossless.PNG"}])
    build(root)
    (file,) = manifest(root).query("capture == 'lossless.PNG'")["file"]
    assert file.endswith(".png")


def test_every_bad_capture_is_one_line_of_the_error_and_the_folder_stays(root):
    build(root)
    captures = root / "data/captures"
    rows = read_labels(captures)
    (captures / "images" / rows[0]["file"]).write_bytes(b"no picture")
    (captures / "images" / rows[1]["file"]).unlink()
    rows[2]["defect_mode"] = "scratched"
    rows[3]["defect_position"] = "X:10, Y:U"
    shutil.copy(captures / "images" / rows[4]["file"], captures / "images/twin.jpg")
    twin = rows[4] | {
        "file": "twin.jpg",
        "judgement": "defective",
        "defect_mode": "bend",
        "defect_position": "X:1, Y:U",
    }
    write_labels(captures, [*rows, twin | {"role": "inspected"}])
    unfinished = ("data/raw.partial/", "build/raw.lock", "data/captures.states.sqlite")
    before = {name: content for name, content in contents(root).items() if not name.startswith(unfinished)}
    result = run_stage(root)
    assert result.returncode == 2
    problems = [problem for problem in result.stderr.splitlines() if "━" not in problem]
    assert len(problems) == 5
    for name in (rows[0]["file"], rows[1]["file"], rows[2]["file"], rows[3]["file"], "twin.jpg"):
        assert len([problem for problem in problems if name in problem]) == 1
    assert "Traceback" not in result.stderr
    after = {name: content for name, content in contents(root).items() if not name.startswith(unfinished)}
    assert after == before


def test_an_error_about_a_renamed_bad_image_uses_its_new_name(root):
    captures = root / "data/captures"
    rows = read_labels(captures)
    (captures / "images" / rows[0]["file"]).write_bytes(b"no picture")
    for name in (rows[0]["file"], "renamed.jpg"):
        (captures / "images" / rows[0]["file"]).rename(captures / "images" / name)
        rows[0]["file"] = name
        write_labels(captures, rows)
        with pytest.raises(CaptureError) as caught:
            build(root)
        assert str(caught.value).startswith(f"{captures / 'images' / name}: ")
        assert str(caught.value).count(".jpg") == 1


def test_the_stage_succeeds_after_the_bad_capture_is_replaced(root):
    captures = root / "data/captures"
    name = read_labels(captures)[0]["file"]
    good = (captures / "images" / name).read_bytes()
    (captures / "images" / name).write_bytes(good[:2000])
    assert run_stage(root).returncode == 2
    (captures / "images" / name).write_bytes(good)
    result = run_stage(root)
    assert result.returncode == 0, result.stderr
    assert "1 items processed" in result.stdout
    assert not (root / "data/raw.partial").exists()
