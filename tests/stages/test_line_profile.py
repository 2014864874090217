"""The line profile: the training captures, measured as production measures, packed with the version."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pinspect.core.errors import StageInputError
from pinspect.core.images import decode_image
from pinspect.core.params import load_params
from pinspect.inspection import line_profile
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.inspection.line_profile import LineProfile, make_profile, read_line_profile, write_line_profile
from pinspect.model.families import checkpoint_of
from pinspect.nsoartc.aligned import align_to_best
from pinspect.nsoartc.unit_space import UnitSpace
from pinspect.registry.candidate import read_candidate
from pinspect.registry.package import pack
from tests.support.dst_line import build, drop_raw
from tests.support.evaluation_examples import PARAMS, answered, chat_row, escaped, right
from tests.support.sample import line

LINE = line(seed=31, train=12, references=6)
UNSEEN = 4  # the last captures of the line; they are test captures, and darker
VALIDATION = [
    *(chat_row(number) for number in range(8)),
    *(chat_row(number, source="virtual") for number in range(6)),
    *(chat_row(number, shot="one_shot") for number in range(8)),
    *(chat_row(number, view="RAW") for number in range(8)),
]


def half_lit(jpeg: bytes) -> bytes:
    return as_jpeg(np.asarray(Image.open(io.BytesIO(jpeg))) // 2)


def as_jpeg(image: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=95)
    return written.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 training captures (one is flat) and 4 test captures at half the light, with their dst folder."""
    root = tmp_path_factory.mktemp("line")
    changes = {capture.name: {"split": "test", "content": half_lit(capture.jpeg)} for capture in LINE[-UNSEEN:]}
    changes[LINE[-UNSEEN - 1].name] = {"content": as_jpeg(np.full((260, 640, 3), 90, np.uint8))}
    drop_raw(root, LINE, **changes)
    build(root)
    return root


def profile_of(root, predictions=None, params=PARAMS) -> LineProfile:
    table = answered(VALIDATION, chance=lambda row: 0.5) if predictions is None else predictions
    return make_profile(root / "data/raw", root / "data/dst", table, params)


def test_the_profile_measures_training_captures_as_production_does(root):
    unit_spaces = {
        shape: UnitSpace.load(root / f"data/dst/unit_space/camera-{shape}.npz") for shape in ("CYLN", "SQUR")
    }
    seen = []
    for capture in LINE[: -UNSEEN - 1]:
        image = np.asarray(decode_image(capture.jpeg, capture.name, PARAMS.raw.max_pixels))
        _, aligned = align_to_best(image, unit_spaces, PARAMS.dst.maximum_shift)
        seen.append(line_facts(aligned))
    profile = profile_of(root)
    for name in LINE_FACTS:
        sample = getattr(profile, name)
        assert (sample.captures, sample.source) == (len(seen), "camera")
        assert sample.values == pytest.approx(sorted(facts[name] for facts in seen), abs=2e-4)


def test_a_training_capture_that_was_set_aside_counts_as_such(root):
    assert profile_of(root).set_aside_share == pytest.approx(1 / (len(LINE) - UNSEEN), abs=1e-4)


def test_of_many_captures_always_the_same_sample_is_read(root, tmp_path, monkeypatch):
    monkeypatch.setattr(line_profile, "MEASURED", 7)
    first = profile_of(root)
    shutil.copytree(root, tmp_path / "turned")
    manifest = tmp_path / "turned/data/raw/manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert profile_of(tmp_path / "turned") == first
    assert 6 <= first.brightness.captures <= 7


def test_without_camera_captures_the_profile_describes_the_virtual_line(tmp_path):
    drop_raw(tmp_path, LINE, **{capture.name: {"source": "virtual"} for capture in LINE})
    build(tmp_path)
    profile = profile_of(tmp_path)
    assert (profile.brightness.source, profile.dst_background.source, profile.p_passed.source) == (
        "virtual",
        "virtual",
        "camera",
    )
    only_virtual = answered([row for row in VALIDATION if row["source"] == "virtual"], chance=lambda row: 0.5)
    assert profile_of(tmp_path, only_virtual).p_defective.source == "virtual"


def test_the_profile_groups_p_defective_of_productions_prompt_by_judgement(root):
    chances = {row["id"]: number / 100 for number, row in enumerate(VALIDATION)}
    profile = profile_of(root, answered(VALIDATION, chance=lambda row: chances[row["id"]]))
    # The first eight rows have production's prompt; every second row is passed.
    assert profile.p_passed.values == (0.01, 0.03, 0.05, 0.07)
    assert profile.p_defective.values == (0.0, 0.02, 0.04, 0.06)
    assert profile.defective_share == 0.5
    missed = profile_of(root, answered(VALIDATION, escaped, chance=lambda row: chances[row["id"]]))
    assert (missed.p_passed.captures, missed.p_defective.captures, missed.defective_share) == (8, 0, 0.5)


def test_without_validation_captures_the_profile_has_no_p_defective(root):
    profile = profile_of(root, answered([], right, chance=lambda row: 0.5))
    assert (profile.p_passed.values, profile.p_passed.source, profile.defective_share) == ((), "nothing", None)


def test_many_values_are_reduced_to_quantiles(root):
    rows = [chat_row(2 * number + 1) for number in range(3001)]
    chances = {row["id"]: number / 3000 for number, row in enumerate(rows)}
    kept = profile_of(root, answered(rows, chance=lambda row: chances[row["id"]])).p_passed
    assert (len(kept.values), kept.captures) == (line_profile.KEPT, 3001)
    assert np.quantile(kept.values, [0, 0.1, 0.5, 1]) == pytest.approx([0, 0.1, 0.5, 1], abs=1e-3)


def test_a_profile_survives_its_file_and_the_same_line_gives_the_same_bytes(root, tmp_path):
    for name in ("a.json", "b.json"):
        write_line_profile(profile_of(root), tmp_path / "models" / name)
    assert read_line_profile(tmp_path / "models/a.json") == profile_of(root)
    assert (tmp_path / "models/a.json").read_bytes() == (tmp_path / "models/b.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "not found"),
        ("{", "not JSON"),
        ("[]", "expected the keys brightness"),
        ('{"brightness": {}}', "expected the keys brightness"),
        ({"brightness": 0.3}, "brightness: expected values, captures and source, found 0.3"),
        ({"p_passed": {"values": ["high"], "captures": 1, "source": "camera"}}, "p_passed: values: expected numbers"),
        ({"set_aside_share": "few"}, "set_aside_share: expected a share, found 'few'"),
    ],
)
def test_an_error_about_an_unusable_profile_shows_what_to_do(root, tmp_path, text, problem):
    path = tmp_path / "line_profile.json"
    if isinstance(text, dict):
        text = json.dumps(profile_of(root).to_dict() | text)
    if text is not None:
        path.write_text(text)
    with pytest.raises(StageInputError, match=rf"line_profile\.json: {problem}.*run dvc repro answer"):
        read_line_profile(path)


def test_a_version_packs_its_profile_and_another_profile_gives_another_package(project):
    params = load_params(project / "params.yaml")
    candidate = read_candidate(project, checkpoint_of(params.model, project))
    path = project / "models/line_profile.json"
    profile = read_line_profile(path)
    assert profile.brightness.captures > 0
    assert profile.p_passed.captures + profile.p_defective.captures > 0
    with pack(candidate, params) as packed:
        assert packed.artifacts["line_profile"] == str(path)
    write_line_profile(LineProfile.from_dict(profile.to_dict() | {"defective_share": 0.25}), path)
    with pack(candidate, params) as other:
        assert other.sha256 != packed.sha256
    path.unlink()  # as after an evaluation by a version without profiles
    with pytest.raises(StageInputError, match="run dvc repro answer"), pack(candidate, params):
        pass
