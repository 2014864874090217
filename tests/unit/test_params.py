"""params.yaml and settings.yaml: read once, and every mistake is an error."""

from pathlib import Path

import pytest
import yaml

from pinspect.core.errors import ParamsError
from pinspect.core.params import Params, load_params
from pinspect.core.yaml_file import SETTINGS_FILE, SETTINGS_SECTIONS
from pinspect.evaluation.settings import load_report_settings
from pinspect.registry.settings import load_register_settings, load_registry_settings
from pinspect.station.settings import load_station_settings
from tests.support.sample import ROOT

LEAN = {"draw": "lean"}


@pytest.fixture
def shipped() -> dict:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def load(tmp_path, content: object) -> Params:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_params(tmp_path / "params.yaml")


def test_the_shipped_file_is_accepted():
    params = load_params(ROOT / "params.yaml")
    assert params.contract().layout.pins == 27
    assert params.contract().shapes == ("CYLN", "SQUR")


def test_the_sections_are_the_product_the_model_and_every_stage_that_changes_an_answer(shipped):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    without = {"answer", "register"}  # answer and evaluate share a section
    assert list(shipped) == ["layout", "answers", "model", *(stage for stage in stages if stage not in without)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("raw.test_shere", 0.3, "raw.test_shere: unknown key; remove it or correct its spelling"),
        ("raw.test_share", 1.2, "raw.test_share: input should be less than or equal to 1, found 1.2"),
        ("raw.test_share", 0.95, "raw: validation_share and test_share leave nothing to train on"),
        ("raw.test_share", "a third", "raw.test_share: input should be a valid number, found 'a third'"),
        ("raw.max_pixels", 0, "raw.max_pixels: input should be greater than or equal to 1, found 0"),
        ("raw.max_pixels", True, "raw.max_pixels: input should be a valid integer, found True"),
        ("raw.near_duplicate_bits", 256, "raw.near_duplicate_bits: input should be less than or equal to 255"),
        ("raw.virtual.references", 1, "raw.virtual.references: input should be greater than or equal to 2, found 1"),
        ("dst.parts", ["LINE1", "spot"], "dst: unknown part 'spot'; the parts are BEND1, "),
        ("dst.own_parts", {"spot": [[1.0, 2.0]]}, "dst: own part 'spot' has 1 rows of 2 values; expected 9 x 9"),
        ("dst.own_parts", {"spot": "dot"}, "dst.own_parts.spot: input should be a valid list, found 'dot'"),
        ("dst.size", 256, "dst: the size of a part is 256 px; use 1 to 255"),
        ("dst.p", 0.5, "dst: the Minkowski exponent p is 0.5; use a number of at least 1"),
        ("dst.variant", "frame", "dst.variant: input should be 'distance' or 'difference', found 'frame'"),
        ("dst.scaling", "image", "dst.scaling: input should be 'unit_space' or 'per_picture', found 'image'"),
        ("layout.rows", ["U", "u"], "layout: a row is one capital letter, found 'u'"),
        ("layout.columns", 0, "layout.columns: input should be greater than or equal to 1, found 0"),
        ("answers.defect_modes", {"passed": LEAN}, "answers.defect_modes: 'passed' is not a defect; leave it out"),
        ("answers.defect_modes", {"X plus": LEAN}, "answers.defect_modes.X plus: string should match pattern"),
        ("answers.defect_modes", {"bend": LEAN, "-plus": LEAN}, "answers.defect_modes.-plus: string should match"),
        ("answers.defect_modes", {}, "answers.defect_modes: dictionary should have at least 1 item"),
        ("answers.defect_modes", ["bend"], "answers.defect_modes: expected one line per mode, such as 'bend: {draw:"),
        ("answers.defect_modes.bend.draw", "tilt", "answers.defect_modes.bend.draw: input should be 'lean', 'lower'"),
        ("answers.defect_modes.bend.direction", "north", "answers.defect_modes.bend.direction: input should be 'any'"),
        (
            "answers.defect_modes.missing.direction",
            "up",
            "answers.defect_modes.missing: only 'draw: lean' has a direction; remove 'direction: up'",
        ),
        ("answers.shapes", [], "answers.shapes: list should have at least 1 item"),
        ("answers.shapes", ["CYLN_RAW"], "answers.shapes.0: string should match pattern"),
        ("chat.views", ["RAW", "IR"], "chat.views.1: input should be 'RAW' or 'DST', found 'IR'"),
        ("train.rank", 0, "train.rank: input should be greater than or equal to 1, found 0"),
        ("evaluate.wanted_escape_rate", 1.0, "evaluate.wanted_escape_rate: input should be less than 1, found 1.0"),
        ("color", {}, "color: unknown key"),
    ],
)
def test_a_key_or_value_that_cannot_be_used_is_named(tmp_path, shipped, key, value, message):
    *path, last = key.split(".")
    section = shipped
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ParamsError) as caught:
        load(tmp_path, shipped)
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: {message}")


def test_an_adapter_that_would_change_nothing_is_refused(tmp_path, shipped):
    shipped["train"] |= {"vision": False, "language": False}
    with pytest.raises(ParamsError, match="the adapter would change nothing"):
        load(tmp_path, shipped)


def test_several_problems_are_reported_at_once(tmp_path, shipped):
    del shipped["dst"]
    shipped["raw"]["color"] = "red"
    with pytest.raises(ParamsError) as caught:
        load(tmp_path, shipped)
    problems = str(caught.value).splitlines()
    assert len(problems) == 2
    assert any("raw.color: unknown key" in problem for problem in problems)
    assert any(problem.endswith("dst: missing") for problem in problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"raw: [", "not readable as YAML"),
        (b"\xff\xfe", "not readable as YAML"),
        (b"- a\n- b\n", "expected sections such as 'train:', found list"),
        (b"", "expected sections such as 'train:', found NoneType"),
    ],
)
def test_an_invalid_params_file_is_refused(tmp_path, content, message):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=message):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml: not found; run this in the project's folder"):
        load_params(tmp_path / "params.yaml")


def test_params_cannot_be_changed_once_read():
    with pytest.raises(ValueError, match="frozen"):
        load_params(ROOT / "params.yaml").raw.max_pixels = 1


def load_settings(root: Path):
    return load_registry_settings(root), load_report_settings(root), load_station_settings(root)


@pytest.fixture
def settings() -> dict:
    return yaml.safe_load((ROOT / SETTINGS_FILE).read_text())


def write_settings(root: Path, content: dict) -> None:
    (root / SETTINGS_FILE).write_text(yaml.safe_dump(content, sort_keys=False))


def test_the_shipped_settings_are_accepted():
    registry, report, station = load_settings(ROOT)
    assert registry.register.model_name == "pin-inspector"
    assert registry.report == report
    assert station.drift.window == 200


def test_every_section_of_the_settings_is_known_and_shipped(settings):
    assert sorted(settings) == sorted(SETTINGS_SECTIONS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("report.confidence", 1.0, "report.confidence: input should be less than 1, found 1.0"),
        ("report.bounds.exact_macht", 0.9, "report.bounds.exact_macht: input should be 'exact_match'"),
        ("register.model_name", "pin inspector", "register.model_name: string should match pattern"),
        ("register.lock_database", "sqlite:///x.db", "register.lock_database: string should match pattern"),
        ("promote.significance", 0, "promote.significance: input should be greater than 0, found 0"),
        ("promote.maximum_escape_rate", 3, "promote.maximum_escape_rate: input should be less than or equal to 1"),
        ("station.port", 70000, "station.port: input should be less than or equal to 65535, found 70000"),
        ("station.colour", "red", "station.colour: unknown key; remove it or correct its spelling"),
        ("station.drift.minimum", 0, "station.drift.minimum: input should be greater than or equal to 1, found 0"),
        ("statoin", {}, "statoin: unknown section; the sections are register, promote, prune, station, report"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(tmp_path, settings, key, value, message):
    *path, last = key.split(".")
    section = settings
    for name in path:
        section = section[name]
    section[last] = value
    write_settings(tmp_path, settings)
    with pytest.raises(ParamsError) as caught:
        load_settings(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / SETTINGS_FILE}: {message}")


def test_a_section_is_read_even_if_other_sections_are_invalid(tmp_path, settings):
    settings["station"]["port"] = "eight thousand"
    write_settings(tmp_path, settings)
    assert load_register_settings(tmp_path).model_name == "pin-inspector"


def test_a_missing_section_of_the_station_takes_the_defaults(tmp_path, settings):
    del settings["station"]
    write_settings(tmp_path, settings)
    assert load_station_settings(tmp_path) == load_station_settings(ROOT)


def test_a_missing_section_without_defaults_is_named(tmp_path, settings):
    del settings["register"]
    write_settings(tmp_path, settings)
    with pytest.raises(ParamsError, match=r"register\.model_name: missing"):
        load_register_settings(tmp_path)


def test_missing_settings_are_named(tmp_path):
    with pytest.raises(ParamsError, match=r"settings.yaml: not found; run this in the project's folder"):
        load_station_settings(tmp_path)


def test_defect_modes_may_be_words_with_capitals_digits_and_hyphens(tmp_path, shipped):
    modes = {
        "X-plus": {"draw": "lean", "direction": "right"},
        "Y-minus": {"draw": "lean", "direction": "down"},
        "pullout": {"draw": "lower"},
        "bend2": {"draw": "nothing"},
    }
    shipped["answers"]["defect_modes"] = modes
    contract = load(tmp_path, shipped).contract()
    assert contract.defect_modes == tuple(modes)
    assert contract.drawings["X-plus"].direction == "right"
    assert contract.drawings["pullout"].direction == "any"
