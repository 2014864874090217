"""The few choices that make a line: its layout, its pin shapes and its defect modes, from options or prompts."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from pinspect.core.drawings import NAMED_DIRECTIONS, ModeDrawing
from pinspect.core.errors import ParamsError
from pinspect.core.layout import Layout
from pinspect.core.params import AnswersParams
from pinspect.core.yaml_file import check
from pinspect.virtual_line import DRAWN_SHAPES

DRAWINGS = {
    "bend": ModeDrawing(draw="lean"),
    "retract": ModeDrawing(draw="lower"),
    "missing": ModeDrawing(draw="absent"),
    "pullout": ModeDrawing(draw="lower"),
    **{mode: ModeDrawing(draw="lean", direction=direction) for mode, direction in NAMED_DIRECTIONS.items()},
}
_NOTHING = ModeDrawing(draw="nothing")
_QUESTIONS = {
    "--rows": ("Row letters, from the top", "U,C,D"),
    "--columns": ("Columns", "9"),
    "--shapes": ("Pin shapes: CYLN (round), SQUR (square)", "CYLN"),
    "--mode": ("Defect modes", "bend,retract,missing"),
}


@dataclass(frozen=True)
class Choices:
    """What a new line is.

    Attributes:
        name: Name of the line and of its registered model.
        layout: Rows and columns.
        shapes: Pin shapes.
        drawings: Defect mode -> how the virtual line draws it.
        registry: MLflow tracking URI of a registry that several lines share; empty for a registry in the project.
    """

    name: str
    layout: Layout
    shapes: tuple[str, ...]
    drawings: Mapping[str, ModeDrawing]
    registry: str = ""

    @property
    def can_be_drawn(self) -> bool:
        """Whether the virtual line can render captures of this line."""
        drawn = any(drawing != _NOTHING for drawing in self.drawings.values())
        return drawn and set(self.shapes) <= set(DRAWN_SHAPES)

    @property
    def remarks(self) -> list[str]:
        """What the user should know about the choices."""
        remarks = [
            f"{mode}: the virtual line does not draw this mode; if it can, pass --mode {mode}=lean, lower, higher, "
            "absent or darker (docs/words.md)"
            for mode, drawing in self.drawings.items()
            if drawing == _NOTHING
        ]
        if not self.can_be_drawn:
            remarks.append("the virtual line renders no captures of this line: it trains on real captures only")
        return remarks


def read_choices(folder: Path, answers: Mapping[str, str], name: str = "", registry: str = "") -> Choices:
    """Check the choices; ask for missing ones on a terminal.

    Args:
        folder: The folder of the new project.
        answers: Option (a key of `_QUESTIONS`) -> words separated by commas; empty if the option is missing.
        name: Name of the line; by default that of the folder.
        registry: A folder of this machine, or an MLflow tracking URI; empty for a registry in the project.

    Raises:
        ParamsError: A choice is missing and nobody can be asked, or cannot be used.
    """
    words = {option: _words(text) for option, text in _complete(answers).items()}
    if not words["--columns"][0].isdecimal():
        raise ParamsError(f"--columns: expected a number, found {words['--columns'][0]!r}")
    try:
        layout = Layout(tuple(words["--rows"]), int(words["--columns"][0]))
    except ValueError as error:
        raise ParamsError(f"--rows, --columns: {error}") from None
    drawings = dict(map(_mode, words["--mode"]))
    content = {"shapes": words["--shapes"], "defect_modes": {mode: _content(each) for mode, each in drawings.items()}}
    check(content, AnswersParams, Path("--shapes, --mode"))
    name = name or re.sub(r"[^\w.-]+", "-", folder.resolve().name)
    if not re.fullmatch(r"[\w.-]+", name):
        raise ParamsError(f"--name: expected letters, digits, '.', '_' and '-', found {name!r}")
    return Choices(name, layout, tuple(words["--shapes"]), drawings, _registry_uri(registry))


def _content(drawing: ModeDrawing) -> dict[str, str]:
    return drawing.model_dump(exclude_defaults=True)


def _complete(answers: Mapping[str, str]) -> dict[str, str]:
    missing = [option for option, text in answers.items() if not text]
    if missing and not sys.stdin.isatty():
        raise ParamsError(
            f"{', '.join(missing)}: missing; an example: --rows U,C,D --columns 9 --shapes CYLN,SQUR --mode bend "
            "--mode missing"
        )
    return {
        option: text or typer.prompt(_QUESTIONS[option][0], default=_QUESTIONS[option][1])
        for option, text in answers.items()
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def _mode(text: str) -> tuple[str, ModeDrawing]:
    """Read `NAME`, `NAME=DRAW` or `NAME=DRAW:DIRECTION`."""
    mode, _, drawing = text.partition("=")
    if not drawing:
        return mode, DRAWINGS.get(mode, _NOTHING)
    draw, _, direction = drawing.partition(":")
    content = {"draw": draw} | ({"direction": direction} if direction else {})
    return mode, check(content, ModeDrawing, Path("--mode"), mode)


def _registry_uri(registry: str) -> str:
    if not registry or "://" in registry:
        return registry
    return f"sqlite:///{Path(registry).expanduser().resolve() / 'mlflow.db'}"
