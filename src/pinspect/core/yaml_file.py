"""Checked YAML: `params.yaml` and `settings.yaml` become typed sections, and every mistake in them is named.

`params.yaml` holds what changes an answer (`core/params.py`). `settings.yaml` holds what never does; each of its
sections has its schema in the room that uses the section, so that a new setting runs no stage again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pinspect.core.errors import ParamsError

SETTINGS_FILE = "settings.yaml"
SETTINGS_SECTIONS = ("register", "promote", "prune", "station", "report", "notify", "imaging")

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NaturalInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, types are not converted, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionType = TypeVar("SectionType", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ParamsError: The file is missing, is not YAML or holds anything but named sections.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run this in the project's folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as 'train:', found {type(content).__name__}")
    return cast(dict[str, Any], content)


def check(content: object, schema: type[SectionType], path: Path, section: str = "") -> SectionType:
    """Validate `content` by `schema`.

    Args:
        content: The mapping that was read.
        schema: The class of the section.
        path: The file, for error messages.
        section: The key of the section in the file, for error messages; empty for the whole file.

    Raises:
        ParamsError: One line per mistake: file, key, the value found and what is allowed.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        prefix = (section,) if section else ()
        lines = [_explain(path, (*prefix, *problem["loc"]), problem) for problem in error.errors()]
        raise ParamsError("\n".join(lines)) from None


def load_settings(root: Path, section: str, schema: type[SectionType]) -> SectionType:
    """Read one section of `settings.yaml` in the project folder `root`.

    Args:
        root: The project folder.
        section: One of `SETTINGS_SECTIONS`. A section that the file lacks is read as an empty one.
        schema: The class of the section.

    Raises:
        ParamsError: The file or the section cannot be used, or the file has a section that does not exist.
    """
    path = root / SETTINGS_FILE
    content = read_yaml(path)
    if unknown := sorted(str(name) for name in content if name not in SETTINGS_SECTIONS):
        raise ParamsError(
            f"{path}: {', '.join(unknown)}: unknown section; the sections are {', '.join(SETTINGS_SECTIONS)}"
        )
    return check(content.get(section, {}), schema, path, section)


def _explain(path: Path, location: tuple[str | int, ...], problem: Mapping[str, Any]) -> str:
    # Pydantic appends "[key]" where the key of a mapping is wrong.
    key = ".".join(str(part) for part in location if part != "[key]") or "(file)"
    if problem["type"] == "extra_forbidden":
        return f"{path}: {key}: unknown key; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"{path}: {key}: missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{path}: {key}: {message[0].lower()}{message[1:]}, found {problem['input']!r}"
