"""Makes a project for a new line, as a git and DVC repository of its own, and brings one to the installed code."""

from __future__ import annotations

import logging
import subprocess
import tempfile
from pathlib import Path

import dvc.repo.init
from dvc.repo import Repo
from dvc.repo.add import add
from jinja2 import Environment, PackageLoader

from pinspect.captures.labels import IMAGES, IMAGES_RECORD
from pinspect.captures.table import LABELS
from pinspect.cli.choices import Choices
from pinspect.cli.project_text import code_text, params_text, pipeline_text, settings_text
from pinspect.cli.shipped import CODE_ENTRIES, ENTRIES, copy_shipped, shipped_folder
from pinspect.cli.status import UNCHANGED, stage_states
from pinspect.core.code import CODE_FILE, changed_rooms
from pinspect.core.errors import PinspectError, StageInputError
from pinspect.core.files import write_file
from pinspect.core.params import load_params
from pinspect.core.yaml_file import SETTINGS_FILE
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings, load_register_settings

_DVC_CONFIG = "[core]\n    analytics = false\n"
_CAPTURES = "data/captures"
# How git merges the captures of two people; the first one after `dvc install`.
_GIT_ATTRIBUTES = f"{_CAPTURES}/{IMAGES_RECORD} merge=dvc\n{_CAPTURES}/{LABELS} merge=union\n"
_PARAMS, _PIPELINE = "params.yaml", "dvc.yaml"


class ProjectError(PinspectError):
    """A project cannot be made in a folder."""


def make_project(folder: Path, choices: Choices) -> list[str]:
    """Make a project: its files, a git and a DVC repository, and a first commit. A failure leaves nothing behind.

    Args:
        folder: The folder to make; an empty one may exist.
        choices: The line.

    Returns:
        Remarks for the user.

    Raises:
        ProjectError: The folder is not empty or cannot be written, git is missing, or another line has the name.
        RegistryError: The shared registry cannot be used.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProjectError(f"{folder}: not an empty folder; name one that does not exist yet")
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            draft = Path(scratch) / target.name
            _write_files(draft, choices)
            _require_new_name(draft, choices)
            remarks = _make_repositories(draft)
            _move(draft, target)
    except OSError as error:
        raise ProjectError(f"{folder}: not made: {error}") from None
    return choices.remarks + remarks


def update_project(root: Path) -> list[str]:
    """Bring a project that `pinspect new` made to the installed code; parameters, settings and captures stay.

    Args:
        root: The project's folder.

    Returns:
        One line for each thing to know: the rooms that changed, the stages that will run again.

    Raises:
        StageInputError: The folder is not such a project.
        ParamsError: The installed code expects other parameters; the code of the project is new already.
    """
    if not (root / CODE_FILE).is_file():
        raise StageInputError(f"{root / CODE_FILE}: not found; run this in a project that pinspect new made")
    rooms = changed_rooms(root)
    _write_code(root)
    load_params(root / _PARAMS)
    states = stage_states(root)
    stale = [stage for stage, state in states.items() if state["state"] != UNCHANGED]
    return [
        f"code that changed: {', '.join(rooms) or 'none'}",
        f"stages that dvc repro will run: {', '.join(stale) or 'none'}",
    ]


def _write_files(folder: Path, choices: Choices) -> None:
    copy_shipped(shipped_folder(), folder, ENTRIES)
    _write_code(folder)
    for name, make in ((_PARAMS, params_text), (SETTINGS_FILE, settings_text)):
        write_file(folder / name, make((folder / name).read_text(encoding="utf-8"), choices))
    load_params(folder / _PARAMS).contract()
    (folder / _CAPTURES / IMAGES).mkdir(parents=True)
    write_file(folder / ".gitattributes", _GIT_ATTRIBUTES)
    templates = Environment(loader=PackageLoader("pinspect.cli"), keep_trailing_newline=True, autoescape=False)
    write_file(folder / "README.md", templates.get_template("project.md.j2").render(line=choices))


def _write_code(folder: Path) -> None:
    """Write all that belongs to the installed code: pipeline, stages, flows, and the digests of the code."""
    copy_shipped(shipped_folder(), folder, CODE_ENTRIES)
    shipped = (shipped_folder() / _PIPELINE).read_text(encoding="utf-8")
    write_file(folder / _PIPELINE, pipeline_text(shipped))
    write_file(folder / CODE_FILE, code_text(shipped))


def _require_new_name(folder: Path, choices: Choices) -> None:
    """Check that no other line has its versions in the shared registry under this name."""
    if not choices.registry:
        return
    settings: RegisterSettings = load_register_settings(folder)
    with open_registry(folder, settings) as client:
        if client.search_registered_models(f"name = '{settings.model_name}'"):
            raise ProjectError(f"{choices.registry}: another line is named {choices.name}; choose a name with --name")


def _make_repositories(folder: Path) -> list[str]:
    """Make a git and a DVC repository with a first commit; return what the user has to do if git does not commit."""
    _git(folder, "init", "--quiet")
    logging.getLogger(dvc.repo.init.__name__).setLevel(logging.WARNING)  # it would print its own next step
    with Repo.init(str(folder)) as repo:
        write_file(folder / ".dvc/config", _DVC_CONFIG)
        repo.scm_context.quiet = True  # all is committed below
        add(repo, str(folder / _CAPTURES / IMAGES))  # from now on `dvc repro` and `pinspect add` record the images
    _git(folder, "add", ".")
    try:
        _git(folder, "commit", "--quiet", "--message", f"New line {folder.name}")
    except ProjectError as error:
        return [f"{error}; nothing is committed yet: correct this, then git commit --message 'New line'"]
    return []


def _git(folder: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ProjectError("git: not found; install it") from None
    if done.returncode:
        problem = next(filter(None, (done.stderr + done.stdout).splitlines()), "no message")
        raise ProjectError(f"git {arguments[0]}: {problem}")


def _move(draft: Path, target: Path) -> None:
    """Move a folder to its place; the content alone if the place exists, which may be the user's current folder."""
    if not target.exists():
        draft.rename(target)
        return
    for entry in draft.iterdir():
        entry.rename(target / entry.name)
