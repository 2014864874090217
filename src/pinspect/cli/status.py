"""Where a project stands: what `dvc repro` would do, which captures are new, who is champion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from dvc.stage import PipelineStage
from rich.console import Console
from rich.table import Table

from pinspect.captures.labels import images_folder
from pinspect.core.errors import RegistryError, StageInputError
from pinspect.core.images import IMAGE_SUFFIXES
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import CHALLENGER, CHAMPION, PREVIOUS, version_of

UNCHANGED, CHANGED, FOLLOWS = "unchanged", "changed", "follows"
_TOLD = 5  # names of captures in the table; --json has all


def stage_states(root: Path) -> dict[str, dict]:
    """What `dvc repro` would do with each stage, in its order: stage -> state and why.

    state: `changed` (it runs; why names each dependency, parameter, output or command), `follows` (a stage before it
    runs; it runs too, unless that one gives the same as before), or `unchanged`. Asks DVC and writes nothing. Raises
    StageInputError where there is no pipeline.
    """
    try:
        with Repo(str(root)) as repo:
            changes = repo.status()
            graph = repo.index.graph  # its edges lead from a stage to what it depends on
            states: dict[str, dict] = {}
            for stage in (stage for stage in plan_repro(graph) if stage.cmd):
                before = [_name_of(needed, root) for needed in graph.successors(stage) if needed.cmd]
                states[_name_of(stage, root)] = _state(changes.get(stage.addressing), before, states)
            return states
    except DvcException as error:
        raise StageInputError(f"{root}: {' '.join(str(error).split())}; run this in the project's folder") from None


def new_captures(root: Path) -> tuple[list[str], list[str]]:
    """Names of the images in data/captures that the last raw stage has not seen, and of those that are gone since."""
    folder = images_folder(root / "data/captures")
    there = (
        {path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES} if folder.is_dir() else set()
    )
    if not (root / "data/raw" / MANIFEST).is_file():
        return sorted(there), []
    manifest = read_manifest(root / "data/raw" / MANIFEST, ("capture", "source"))
    seen = set(manifest.loc[manifest["source"] == "camera", "capture"])
    return sorted(there - seen), sorted(seen - there)


def project_status(root: Path, settings: RegisterSettings) -> dict:
    """Keys: stages (`stage_states`), new_captures and gone_captures (names), aliases (champion, challenger, previous ->
    version or None) and registry_error (None, or why the registry did not tell). Raises as `stage_states`."""
    new, gone = new_captures(root)
    aliases: dict[str, str | None] = dict.fromkeys((CHAMPION, CHALLENGER, PREVIOUS))
    registry_error = None
    try:
        with open_registry(root, settings) as client:
            found = {alias: version_of(client, settings.model_name, alias) for alias in aliases}
        aliases = {alias: str(version.version) if version else None for alias, version in found.items()}
    except RegistryError as error:  # without it, the rest is worth telling all the same
        registry_error = str(error)
    return {
        "stages": stage_states(root),
        "new_captures": new,
        "gone_captures": gone,
        "aliases": aliases,
        "registry_error": registry_error,
    }


def print_status(told: Mapping) -> None:
    """Print `project_status`."""
    table = Table(title="what dvc repro would do", title_justify="left")
    table.add_column("stage")
    table.add_column("state")
    table.add_column("because", overflow="fold")
    for stage, state in told["stages"].items():
        table.add_row(stage, state["state"], ", ".join(state["why"]))
    console = Console()
    console.print(table)
    for what, names in (("new", told["new_captures"]), ("gone", told["gone_captures"])):
        if names:
            more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
            console.print(f"captures {what} since the last raw stage: {', '.join(names[:_TOLD])}{more}")
    if not told["new_captures"] and not told["gone_captures"]:
        console.print("captures: none new since the last raw stage")
    if told["registry_error"]:
        console.print(f"registry: {told['registry_error']}")
    else:
        held = (f"{alias}: {version or 'none'}" for alias, version in told["aliases"].items())
        console.print(", ".join(held))


def _name_of(stage: PipelineStage, root: Path) -> str:
    """What `dvc repro` calls a stage when it runs in `root`, wherever this process does."""
    file = Path(stage.path).relative_to(root.resolve())
    return stage.name if file == Path("dvc.yaml") else f"{file.as_posix()}:{stage.name}"


def _state(changes: list | None, before: list[str], states: Mapping[str, Mapping]) -> dict:
    if changes:
        return {"state": CHANGED, "why": _reasons(changes)}
    running = [stage for stage in before if states[stage]["state"] != UNCHANGED]
    return (
        {"state": FOLLOWS, "why": [f"after {stage}" for stage in running]}
        if running
        else {"state": UNCHANGED, "why": []}
    )


def _reasons(changes: list) -> list[str]:
    """DVC's own findings, such as `{"changed deps": {"data/captures": "modified"}}`, as `data/captures modified`."""
    told = []
    for change in changes:
        if isinstance(change, str):
            told.append(change)
            continue
        for found in change.values():
            told += [f"{path} {what}" for path, what in _flat(found)]
    return told


def _flat(found: Mapping) -> list[tuple[str, str]]:
    """Parameters come one level deeper, by their file."""
    pairs = []
    for name, what in found.items():
        pairs += (
            [(f"{name}:{key}", said) for key, said in what.items()] if isinstance(what, Mapping) else [(name, what)]
        )
    return pairs
