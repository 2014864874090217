"""Shows the state of a project: what `dvc repro` would do, which captures are new, which version is champion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import Stage
from rich.console import Console
from rich.table import Table

from pinspect.captures.labels import images_folder
from pinspect.core.code import changed_rooms
from pinspect.core.errors import RegistryError, StageInputError
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.registry.settings import RegisterSettings

UNCHANGED, CHANGED, FOLLOWS = "unchanged", "changed", "follows"
_NAMES_SHOWN = 5  # captures in the table; --json lists all


def stage_states(root: Path) -> dict[str, dict]:
    """Ask DVC what `dvc repro` would do with each stage; write nothing.

    Args:
        root: The project's folder.

    Returns:
        Stage -> `{"state": ..., "why": [...]}`, in an order in which each stage comes after its dependencies. The
        state is `changed` (the stage will run; `why` lists each changed dependency, parameter, output or command),
        `follows` (an earlier stage will run; so will this one, unless the earlier outputs turn out the same) or
        `unchanged`.

    Raises:
        StageInputError: The folder has no pipeline that DVC can read.
    """
    try:
        with Repo(str(root)) as repo:
            pipeline = root.resolve() / "dvc.yaml"  # the repository may hold other projects: lines/
            changes = repo.status([str(pipeline)])
            graph = repo.index.graph  # its edges lead from a stage to its dependencies
            states: dict[str, dict] = {}
            for stage in (stage for stage in plan_repro(graph) if _belongs_to(stage, pipeline)):
                earlier = [each.name for each in graph.successors(stage) if _belongs_to(each, pipeline)]
                states[stage.name] = _state(changes.get(stage.addressing), earlier, states)
            return states
    except DvcException as error:
        raise StageInputError(f"{root}: {' '.join(str(error).split())}; run this in the project's folder") from None


def new_captures(root: Path) -> tuple[list[str], list[str]]:
    """Compare data/captures with the last run of the raw stage.

    Args:
        root: The project's folder.

    Returns:
        The names of the images that the raw stage has not seen, and of the images that have gone since.
    """
    folder = images_folder(root / "data/captures")
    present: set[str] = set()
    if folder.is_dir():
        present = {path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    if not (root / "data/raw" / MANIFEST).is_file():
        return sorted(present), []
    manifest = read_manifest(root / "data/raw" / MANIFEST, ("capture", "source"))
    seen = set(manifest.loc[manifest["source"] == "camera", "capture"])
    return sorted(present - seen), sorted(seen - present)


def project_status(root: Path, settings: RegisterSettings) -> dict:
    """Gather the state of a project.

    Args:
        root: The project's folder.
        settings: The section `register`.

    Returns:
        stages (see `stage_states`), changed_code (rooms of the installed pinspect that differ from code.yaml),
        new_captures and gone_captures (names), aliases (champion, challenger and previous -> version, or None) and
        registry_error (None, or why the registry could not be read).

    Raises:
        StageInputError: The folder has no pipeline that DVC can read.
    """
    # These import MLflow, which takes longer than all else that a flow imports; a flow needs `stage_states` only.
    from pinspect.registry.connection import open_registry
    from pinspect.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, number_of, version_of

    new, gone = new_captures(root)
    aliases: dict[str, str | None] = dict.fromkeys((CHAMPION, CHALLENGER, PREVIOUS))
    registry_error = None
    try:
        with open_registry(root, settings) as client:
            versions = {alias: version_of(client, settings.model_name, alias) for alias in aliases}
        aliases = {alias: number_of(version) if version else None for alias, version in versions.items()}
    except RegistryError as error:  # stages and captures are useful without it
        registry_error = str(error)
    return {
        "stages": stage_states(root),
        "changed_code": changed_rooms(root),
        "new_captures": new,
        "gone_captures": gone,
        "aliases": aliases,
        "registry_error": registry_error,
    }


def print_status(status: Mapping) -> None:
    """Print the result of `project_status`."""
    table = Table(title="what dvc repro would do", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("because", overflow="fold")
    for stage, state in status["stages"].items():
        table.add_row(stage, state["state"], ", ".join(state["why"]))
    console = Console()
    console.print(table)
    if rooms := status["changed_code"]:
        console.print(f"the installed pinspect has other code in {', '.join(rooms)}: run pinspect update")
    for change, names in (("new", status["new_captures"]), ("gone", status["gone_captures"])):
        if names:
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            console.print(f"captures {change} since the last raw stage: {', '.join(names[:_NAMES_SHOWN])}{more}")
    if not status["new_captures"] and not status["gone_captures"]:
        console.print("captures: none new since the last raw stage")
    if status["registry_error"]:
        console.print(f"registry: {status['registry_error']}")
    else:
        console.print(", ".join(f"{alias}: {version or 'none'}" for alias, version in status["aliases"].items()))


def _belongs_to(stage: Stage, pipeline: Path) -> bool:
    return bool(stage.cmd) and Path(stage.path) == pipeline


def _state(changes: Sequence | None, earlier: Sequence[str], states: Mapping[str, Mapping]) -> dict:
    if changes:
        return {"state": CHANGED, "why": list(_reasons(changes))}
    running = [stage for stage in earlier if states[stage]["state"] != UNCHANGED]
    if running:
        return {"state": FOLLOWS, "why": [f"after {stage}" for stage in running]}
    return {"state": UNCHANGED, "why": []}


def _reasons(changes: Sequence) -> Iterator[str]:
    """Yield DVC's changes, such as `{"changed deps": {"data/captures": "modified"}}`, as `data/captures modified`."""
    for change in changes:
        if isinstance(change, str):
            yield change
            continue
        for details in change.values():
            for name, detail in details.items():
                if isinstance(detail, Mapping):  # parameters, by their file
                    yield from (f"{name}:{key} {status}" for key, status in detail.items())
                else:
                    yield f"{name} {detail}"
