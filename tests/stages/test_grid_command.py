"""`pinspect grid`: a person sees the pins' grid over a reference and corrects it; stage dst uses the correction."""

import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from pinspect.core.layout import Layout
from pinspect.nsoartc.unit_space import UnitSpace
from tests.support.looks import LOOKS, Look, draw
from tests.support.sample import ROOT, contents, stage_process, write_labels

PINSPECT = Path(sys.executable).with_name("pinspect")
LAYOUT = Layout(("U", "C", "D"), 9)
TURNED = LOOKS["turned, in perspective, on a textured table"]
CORNERS = [0, 8, 26, 18]
STRANGE = Look(layout=Layout(("U", "C", "D"), 8))  # a column fewer than in params.yaml, so the fit is doubtful


def grid(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([PINSPECT, "grid", *words], cwd=root, capture_output=True, text=True)


def drop_references(root: Path, looks: dict[str, Look]) -> None:
    """Write a project whose captures are five references of each look, which is named after the beginning of a file."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["raw"]["virtual"] |= {"train": 0, "validation": 0, "test": 0}
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    images = root / "data/captures/images"
    images.mkdir(parents=True)
    rows = []
    for name, look in looks.items():
        for seed in range(5):
            gray = np.clip(draw(look, seed)[0] * 255, 0, 255).astype(np.uint8)
            file = f"{name}{seed}_OK.png"
            (images / file).write_bytes(cv2.imencode(".png", gray)[1].tobytes())
            label = {"judgement": "passed", "defect_mode": "passed", "defect_position": "NA", "role": "reference"}
            rows.append({"file": file, "shape": "SQUR" if name.startswith("SQ") else "CYLN"} | label)
    write_labels(root / "data/captures", rows)


@pytest.fixture
def root(tmp_path):
    """A project with one line, seen in perspective."""
    drop_references(tmp_path, {"": TURNED})
    return tmp_path


def marked(centers: np.ndarray) -> list[str]:
    return ["--corners", *(f"{x:.1f},{y:.1f}" for x, y in centers[CORNERS])]


def test_the_grid_is_drawn_over_a_reference_with_its_confidence(root):
    result = grid(root)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("CYLN: fitted to the references, confidence ")
    assert result.stdout.endswith(", over 0_OK.png: data/grid/camera-CYLN.png\n")
    assert float(result.stdout.partition("confidence ")[2].partition(",")[0]) > 0.8
    picture = np.asarray(Image.open(root / "data/grid/camera-CYLN.png")).astype(int)
    yellow = (picture[..., 0] > 180) & (picture[..., 2] < 90)
    for x, y in draw(TURNED)[1].round().astype(int):
        assert yellow[y - 20 : y + 21, x - 20 : x + 21].sum() > 40


def test_corners_are_stored_with_the_line_and_the_dst_stage_uses_them(root):
    centers = draw(TURNED)[1] + (3, -2)  # off the fitted grid, so that its origin can be seen
    result = grid(root, *marked(centers))
    assert result.returncode == 0, result.stderr
    assert (
        "CYLN: corners stored in data/captures/corners.csv; next: look at the picture, then dvc repro" in result.stdout
    )
    assert "CYLN: corners of corners.csv, confidence 1.00, over 0_OK.png" in result.stdout
    for stage in ("raw", "dst"):
        run = stage_process(stage, root)
        assert run.returncode == 0, run.stderr
    assert contents(root / "data/raw")["corners.csv"] == contents(root / "data/captures")["corners.csv"]
    space = UnitSpace.load(root / "data/dst/unit_space/camera-CYLN.npz")
    assert np.linalg.norm(space.pin_centers - centers, axis=1).max() < 1
    assert grid(root, "--remove").returncode == 0
    assert not (root / "data/captures/corners.csv").exists()
    for stage in ("raw", "dst"):
        assert stage_process(stage, root).returncode == 0
    assert not (root / "data/raw/corners.csv").exists()
    space = UnitSpace.load(root / "data/dst/unit_space/camera-CYLN.npz")
    assert np.linalg.norm(space.pin_centers - (centers - (3, -2)), axis=1).max() < 1.5


def test_a_doubtful_grid_stops_the_stage_with_a_picture_and_the_command_to_correct_it(tmp_path):
    drop_references(tmp_path, {"": STRANGE})
    assert stage_process("raw", tmp_path).returncode == 0
    stopped = stage_process("dst", tmp_path)
    assert stopped.returncode == 2
    assert "found no field of 3 x 9 pins" in stopped.stderr
    assert "data/grid/camera-CYLN.png shows the best grid; run pinspect grid --shape CYLN" in stopped.stderr
    assert Image.open(io.BytesIO(contents(tmp_path)["data/grid/camera-CYLN.png"])).size == (640, 300)
    result = grid(tmp_path)
    assert result.returncode == 2
    assert "below 0.6, so stage dst would stop" in result.stderr and "--corners x0,y0" in result.stderr


def test_one_of_several_lines_is_chosen_by_shape_and_eye(tmp_path):
    drop_references(tmp_path, {"left_": TURNED, "right_": TURNED, "SQ": LOOKS["square pins"]})
    centers = draw(TURNED)[1]
    several = grid(tmp_path, *marked(centers))
    assert several.returncode == 2
    assert several.stderr == (
        "corners belong to one line: choose it by --shape and --eye from: CYLN left; CYLN right; SQUR\n"
    )
    assert grid(tmp_path, "--shape", "CYLN", "--eye", "2", *marked(centers)).returncode == 0
    assert (tmp_path / "data/captures/corners.csv").read_text().splitlines()[1].startswith("right_0_OK.png,")
    assert grid(tmp_path, "--shape", "CYLN", "--eye", "left", *marked(centers)).returncode == 0
    rows = (tmp_path / "data/captures/corners.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["left_0_OK.png", "right_0_OK.png"]
    assert grid(tmp_path, "--shape", "CYLN", "--eye", "0", "--remove").returncode == 0
    assert len((tmp_path / "data/captures/corners.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corners", "1,2", "3", "5,6", "7,8"), "expected x,y in px such as 41,38.5, found '3'"),
        (("--corners", "40,40", "900,40", "600,200", "40,200"), "900,40 lies outside of 0_OK.png, which has 640 x 300"),
        (("--corners", "600,40", "40,40", "40,200", "600,200"), "top left, top right, bottom right, bottom left"),
        (("--reference", "9_OK.png"), "9_OK.png is no reference of CYLN; its references are 0_OK.png, 1_OK.png"),
        (("--shape", "SQUR"), "no line of shape SQUR and eye any; the lines of data/captures are: CYLN"),
        (("--eye", "3"), "expected 0 or left, 2 or right, found '3'"),
        (("--remove",), "no corners are stored in data/captures/corners.csv; nothing to remove"),
    ],
)
def test_a_wrong_command_names_what_to_correct_and_stores_nothing(root, words, message):
    result = grid(root, *words)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (root / "data/captures/corners.csv").exists()
