"""What `retrain` does on a machine without a checkout: it works in a clone; data come from the remotes, and go there.

`prefect-elsewhere.yaml` deploys it. Prefect's step `git_clone` makes the clone in a temporary folder, because in one
that stays, Prefect deletes everything whenever `git pull` fails. What has to outlive a run is in KEEP/LINE:

    cache/         DVC's cache: data are downloaded once, and what a run has made is not lost with its clone
    results.git/   experiments of DVC that are not pushed yet; the next run pushes them first

A result is an experiment of the commit that was cloned: no branch moves, and two machines never write to one name.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.states import SKIPPED
from pinspect.registry.connection import registry_database
from pinspect.registry.lineage import LineageError, new_name, push_experiment, ref_of, run_dvc, run_git, save_lineage
from pinspect.registry.settings import load_register_settings

_KIND = "elsewhere"  # how the names of these experiments begin


def in_clone(project: Path, keep: Path, train: Callable[[], State], attempts: dict[str, Any]) -> State:
    """Get the data, retrain, and push the result.

    Args:
        project: The project's folder in a clone.
        keep: The folder that stays; `~` is the user's own.
        train: Brings the project up to date.
        attempts: `retries` and `retry_delay_seconds` of getting and pushing.

    Returns:
        The state of `train`; its message ends with the name of the experiment. Skipped if nothing has changed.

    Raises:
        LineageError: The registry is a file of the clone, or a remote refuses or does not answer. Results stay in
            `keep`.
        StageFailedError: As in `retrain`.
    """
    settings = load_register_settings(project)
    if (database := registry_database(project, settings)) and database.is_relative_to(project):
        raise LineageError("versions would be lost with the clone; set register.tracking_uri to a server, and push it")
    kept = keep.expanduser() / settings.model_name
    start = get.with_options(**attempts)(project, kept)
    state = train()
    if not _changes(project, start):
        return state.model_copy(update={"name": SKIPPED, "message": f"Nothing has changed since {Path(start).name}."})
    name = new_name(_KIND, datetime.now())
    save_lineage(project, settings, name, get_run_logger().info)
    _copy(ref_of(project, name), project, kept / "results.git")
    push.with_options(**attempts)(project, kept)
    return state.model_copy(update={"message": f"{state.message} Result: experiment {name}."})


@task(cache_policy=NO_CACHE)
def get(project: Path, kept: Path) -> str:
    """Push the results of earlier runs, then get the data of the newest result, or of the commit if it has none.

    Returns:
        The experiment, by git's full name, or the commit.
    """
    results, commit = kept / "results.git", run_git(project, "rev-parse", "HEAD")
    kept.mkdir(parents=True, exist_ok=True)
    run_git(kept, "init", "--quiet", "--bare", str(results))
    run_dvc(project, "cache", "dir", "--local", str(kept / "cache"))
    for key, value in (("user.name", "pinspect"), ("user.email", f"pinspect@{platform.node()}")):
        if not run_git(project, "config", "--default", "", "--get", key):
            run_git(project, "config", key, value)  # DVC saves no experiment without
    _push(project, results)
    run_git(project, "checkout", "--quiet", "--force", "--detach", commit)
    of_commit = f"refs/exps/{commit[:2]}/{commit[2:]}/{_KIND}-*"
    run_git(project, "fetch", "--quiet", "origin", f"+{of_commit}:{of_commit}")
    refs = run_git(project, "for-each-ref", "--sort=-refname", "--format=%(refname)", of_commit).split()
    if refs:  # `dvc exp apply` would want the data at once
        run_git(project, "read-tree", "--reset", "-u", refs[0])
        run_git(project, "reset", "--quiet")
    run_dvc(project, "pull")
    return refs[0] if refs else commit


@task(cache_policy=NO_CACHE)
def push(project: Path, kept: Path) -> None:
    """Push the experiments that are kept, with their data."""
    _push(project, kept / "results.git")


def _push(project: Path, results: Path) -> None:
    for ref in run_git(results, "for-each-ref", "--format=%(refname)").split():
        _copy(ref, results, project)
        run_git(project, "checkout", "--quiet", "--force", "--detach", ref)  # `dvc push` reads the files of the project
        try:
            pushed = push_experiment(project, Path(ref).name)
        except LineageError as error:
            place = f"{results.parent} on {platform.node()}"
            raise LineageError(f"{error}; the result is kept in {place}, and the next run there pushes it") from None
        get_run_logger().info("experiment %s pushed to %s", Path(ref).name, pushed)
        run_git(results, "update-ref", "-d", ref)


def _changes(project: Path, start: str) -> str:
    """Return the files that differ from a commit, new ones too, except those that git ignores."""
    run_git(project, "read-tree", start)  # some of its files may be among those that git ignores
    run_git(project, "add", "--all")
    names = run_git(project, "diff", "--cached", "--name-only", start, "--", ":(exclude).dvc")  # DVC adds a note there
    run_git(project, "reset", "--quiet")
    return names


def _copy(ref: str, source: Path, target: Path) -> None:
    run_git(target, "fetch", "--quiet", "--update-shallow", str(source), f"+{ref}:{ref}")
