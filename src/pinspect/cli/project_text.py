"""Makes the text files of a new project from those of the repository: parameters, settings, pipeline, code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import yaml

from pinspect.cli.choices import Choices
from pinspect.core.code import CODE_FILE, room_digest

_CODE = "src/pinspect/"
_PIPELINE_HEADER = f"""\
# The pipeline, in the order of the data; `pinspect update` rewrites this file. A stage depends on its script and on
# rooms of the installed pinspect, by their digests in {CODE_FILE}.
"""
_CODE_HEADER = """\
# The code that this project's results belong to: room of pinspect {version} -> sha256; `pinspect update` writes it.
# A stage that finds other code installed does not run.
"""


def params_text(shipped: str, choices: Choices) -> str:
    """Return the project's `params.yaml`: the shipped one with the layout, the shapes and the modes of the line.

    Args:
        shipped: The text of the shipped file. Its comments and all other sections stay.
        choices: The line.
    """
    modes = "".join(
        f"    {_flow({mode: drawing.model_dump(exclude_defaults=True)})[1:-1]}\n"
        for mode, drawing in choices.drawings.items()
    )
    text = re.sub(r"(?m)^(  defect_modes:.*\n)(?:    .*\n)+", lambda match: match[1] + modes, shipped, count=1)
    values: dict[str, Any] = {
        "rows": list(choices.layout.rows),
        "columns": choices.layout.columns,
        "shapes": list(choices.shapes),
    }
    if not choices.can_be_drawn:
        values |= dict.fromkeys(("train", "validation", "test"), 0)
    return _with_values(text, values)


def settings_text(shipped: str, choices: Choices) -> str:
    """Return the project's `settings.yaml`: the shipped one with names of the line, so that lines can share a registry.

    Args:
        shipped: The text of the shipped file.
        choices: The line. The control `other_shape` is not required of a line of one shape.
    """
    values: dict[str, Any] = {"model_name": choices.name, "experiment": choices.name}
    if choices.registry:
        values["tracking_uri"] = choices.registry
    if len(choices.shapes) == 1:
        required = yaml.safe_load(shipped)["promote"]["required_controls"]
        values["required_controls"] = [control for control in required if control != "other_shape"]
    return _with_values(shipped, values)


def pipeline_text(shipped: str) -> str:
    """Return the project's `dvc.yaml`: the shipped one with entries of `code.yaml` in place of folders of the code.

    Args:
        shipped: The text of the shipped file.
    """
    pipeline = yaml.safe_load(shipped)
    for stage in pipeline["stages"].values():
        rooms = [_room(dependency) for dependency in stage["deps"] if dependency.startswith(_CODE)]
        stage["deps"] = [dependency for dependency in stage["deps"] if not dependency.startswith(_CODE)]
        stage["params"].append({CODE_FILE: rooms})
    return _PIPELINE_HEADER + yaml.safe_dump(pipeline, sort_keys=False, default_flow_style=None, width=118)


def code_text(shipped: str) -> str:
    """Return the project's `code.yaml`: the digest of each room that a stage depends on.

    Args:
        shipped: The text of the shipped `dvc.yaml`.
    """
    stages: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(shipped)["stages"]
    dependencies = {dependency for stage in stages.values() for dependency in stage["deps"]}
    rooms = sorted(_room(dependency) for dependency in dependencies if dependency.startswith(_CODE))
    digests = {room: room_digest(room) for room in rooms}
    return _CODE_HEADER.format(version=version("pinspect")) + yaml.safe_dump(digests)


def _room(dependency: str) -> str:
    """Return the entry of `code.yaml` for a dependency; DVC would read a dot in it as a nested key."""
    return dependency.removeprefix(_CODE).removesuffix(".py")


def _with_values(text: str, values: Mapping[str, Any]) -> str:
    """Replace the values of keys that occur once in a YAML text; comments stay, in their column if there is room."""
    for key, value in values.items():
        pattern = re.compile(rf"^( +{key}: *)(\S.*?)( *)(#.*)?$", re.MULTILINE)
        match = pattern.search(text)
        if not match:
            raise KeyError(key)
        new = _flow(value)
        if match[4]:
            new = new.ljust(len(match[2] + match[3]) - 1) + " " + match[4]
        text = text[: match.start()] + match[1] + new + text[match.end() :]
    return text


def _flow(value: object) -> str:
    """Return a value as YAML in one line."""
    dumped = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return dumped.strip()[1:-1]
