"""What a new line's project is made of: its choices, parameters, settings and pipeline."""

from pathlib import Path

import pytest
import yaml

from pinspect.cli.choices import read_choices
from pinspect.cli.project_text import code_text, params_text, pipeline_text, settings_text
from pinspect.cli.shipped import ENTRIES
from pinspect.core.code import PACKAGE, room_digest
from pinspect.core.errors import PinspectError
from pinspect.core.params import load_params
from pinspect.core.yaml_file import SETTINGS_FILE
from pinspect.registry.settings import load_registry_settings
from tests.support.sample import ROOT

PARAMS, SETTINGS, PIPELINE = ((ROOT / name).read_text() for name in ("params.yaml", SETTINGS_FILE, "dvc.yaml"))


def choices(folder: str = "line 7", name: str = "", registry: str = "", **answers: str):
    options = {"rows": "A,B", "columns": "10", "shapes": "CYLN,SQUR", "mode": "bend,X-plus"} | answers
    return read_choices(Path(folder), {f"--{option}": text for option, text in options.items()}, name, registry)


def changed_lines(shipped: str, made: str) -> list[str]:
    return [line for line in made.splitlines() if line not in shipped.splitlines()]


def test_the_parameters_have_the_choices_and_keep_everything_else(tmp_path):
    line = choices(mode="X-plus, scratch,missing,push=lean:left,dent=lower")
    (tmp_path / "params.yaml").write_text(params_text(PARAMS, line))
    contract = load_params(tmp_path / "params.yaml").contract()
    assert (contract.layout, contract.shapes) == (line.layout, line.shapes)
    drawings = {mode: (drawing.draw, drawing.direction) for mode, drawing in contract.drawings.items()}
    assert drawings == {
        "X-plus": ("lean", "right"),
        "scratch": ("nothing", "any"),
        "missing": ("absent", "any"),
        "push": ("lean", "left"),
        "dent": ("lower", "any"),
    }
    assert any("scratch" in remark for remark in line.remarks)
    made, shipped = (yaml.safe_load(text) for text in (params_text(PARAMS, line), PARAMS))
    assert {section for section in shipped if made[section] != shipped[section]} == {"layout", "answers"}
    assert len(changed_lines(PARAMS, params_text(PARAMS, line))) <= 10
    comments = [text.partition("#")[2] for text in PARAMS.splitlines() if "#" in text]
    assert [text.partition("#")[2] for text in params_text(PARAMS, line).splitlines() if "#" in text] == comments


@pytest.mark.parametrize("answers", [{"shapes": "HEXA"}, {"mode": "scratch,stain"}])
def test_a_line_that_cannot_be_drawn_has_no_virtual_captures(answers):
    line = choices(**answers)
    virtual = yaml.safe_load(params_text(PARAMS, line))["raw"]["virtual"]
    assert [virtual[split] for split in ("train", "validation", "test")] == [0, 0, 0]
    assert "real captures only" in line.remarks[-1]


def test_lines_of_one_registry_have_their_own_model_and_experiment(tmp_path):
    line = choices("line 7", registry=str(tmp_path))
    (tmp_path / SETTINGS_FILE).write_text(settings_text(SETTINGS, line))
    register = load_registry_settings(tmp_path).register
    assert (register.model_name, register.experiment) == ("line-7", "line-7")
    assert register.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert choices(registry="https://mlflow.example").registry == "https://mlflow.example"


def test_a_line_of_one_shape_needs_no_control_of_another_shape(tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(settings_text(SETTINGS, choices(shapes="CYLN")))
    assert "other_shape" not in load_registry_settings(tmp_path).promote.required_controls
    (tmp_path / SETTINGS_FILE).write_text(settings_text(SETTINGS, choices()))
    assert "other_shape" in load_registry_settings(tmp_path).promote.required_controls


def test_a_stage_depends_on_rooms_of_the_package_in_place_of_folders_of_the_repository():
    shipped, made = yaml.safe_load(PIPELINE), yaml.safe_load(pipeline_text(PIPELINE))
    code = yaml.safe_load(code_text(PIPELINE))
    assert made | {"stages": None} == shipped | {"stages": None}
    for name, stage in shipped["stages"].items():
        *params, rooms = made["stages"][name].pop("params")
        folders = [dep for dep in stage["deps"] if dep.startswith("src/")]
        assert params == stage.pop("params")
        assert [f"src/pinspect/{room}" for room in rooms["code.yaml"]] == [dep.removesuffix(".py") for dep in folders]
        assert made["stages"][name] == stage | {"deps": [dep for dep in stage["deps"] if dep not in folders]}
        assert set(rooms["code.yaml"]) <= set(code)
    assert "station" not in code


def test_everything_that_a_stage_depends_on_is_made_by_a_stage_or_shipped():
    stages = yaml.safe_load(pipeline_text(PIPELINE))["stages"].values()
    outs = {path for stage in stages for out in stage["outs"] for path in (out if isinstance(out, dict) else [out])}
    outs |= {path for stage in stages for metrics in stage.get("metrics", []) for path in metrics}
    needed = {dep for stage in stages for dep in stage["deps"]} - {"data/captures"}
    shipped = {path for entry in ENTRIES for path in (entry, str(Path(entry).parent))}
    assert [dep for dep in needed if not {dep, *map(str, Path(dep).parents)} & (outs | (shipped - {"."}))] == []
    assert [entry for entry in ENTRIES if not (ROOT / entry).exists()] == []
    manifest = (ROOT / "MANIFEST.in").read_text().split()
    assert [entry for entry in ENTRIES if entry not in manifest] == []


def test_the_digest_of_a_room_covers_its_files_without_compiled_code(tmp_path, monkeypatch):
    for name in ("core/a.py", "core/templates/page.html", "core/__pycache__/a.pyc", "model/families.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr("pinspect.core.code.PACKAGE", tmp_path)
    before = {room: room_digest(room) for room in ("core", "model/families")}
    (tmp_path / "core/__pycache__/a.pyc").write_text("after")
    assert {room: room_digest(room) for room in before} == before
    for name, room in {"core/templates/page.html": "core", "model/families.py": "model/families"}.items():
        (tmp_path / name).write_text("after")
        assert room_digest(room) != before[room]
    assert (PACKAGE / "core/code.py").is_file()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"rows": "A,AB"}, "--rows, --columns: a row is one capital letter, found 'AB'"),
        ({"rows": "A,A"}, "--rows, --columns: a row is named twice in ['A', 'A']"),
        ({"columns": "0"}, "--rows, --columns: columns must be at least 1, found 0"),
        ({"columns": "nine"}, "--columns: expected a number, found 'nine'"),
        ({"shapes": "round"}, "--shapes, --mode: shapes.0: string should match pattern"),
        ({"mode": "passed"}, "--shapes, --mode: defect_modes: 'passed' is not a defect; leave it out"),
        ({"mode": "bent pin"}, "--shapes, --mode: defect_modes.bent pin: string should match pattern"),
        ({"mode": "bend=leen"}, "--mode: bend.draw: input should be 'lean', 'lower'"),
        ({"mode": "dent=lower:left"}, "--mode: dent: only 'draw: lean' has a direction"),
        ({"name": "line 7"}, "--name: expected letters, digits, '.', '_' and '-', found 'line 7'"),
        ({"rows": "", "mode": ""}, "--rows, --mode: missing; an example: --rows U,C,D"),
    ],
)
def test_a_wrong_choice_is_one_line_that_names_the_option(answers, message):
    with pytest.raises(PinspectError) as error:
        choices(**answers)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_missing_choices_are_asked_on_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.prompt", lambda _text, default: default)
    line = choices(rows="", columns="", shapes="", mode="")
    assert (str(line.layout), line.shapes) == ("rows U,C,D and columns 1..9", ("CYLN",))
    assert list(line.drawings) == ["bend", "retract", "missing"]
