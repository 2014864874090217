"""Keeps what made a registered version as an experiment of DVC, and checks it out again into a new folder.

A scheduled run changes captures, locks and reports without a commit. `dvc exp save` keeps them as a commit beside the
branches (`refs/exps`), and the version gets a tag with that commit.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from pinspect.core.errors import RegistryError
from pinspect.core.runs import read_run_facts
from pinspect.registry.connection import open_registry, registry_lock
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import number_of, require_version

LINEAGE_TAG = "lineage"  # the commit that made the version
_COMMIT_TAG = "git_commit"
# What a run makes or takes and git may not know yet.
_NEW = ("data/captures", "data/splits.csv", "dvc.lock", "reports/eval")


class LineageError(RegistryError):
    """What made a version cannot be saved or checked out."""


def save_lineage(root: Path, settings: RegisterSettings, time: datetime, log: Callable[[str], object]) -> str:
    """Save the project as the experiment `retrain-<date>`, tag the version of the last registration, and push.

    Args:
        root: The project's folder.
        settings: The section `register`.
        time: The present time, part of the experiment's name.
        log: Called with one line for each thing done.

    Returns:
        The commit.

    Raises:
        LineageError: The project is no git repository with a commit, or git or DVC fails.
        RegistryError: The registry has no such version.
    """
    name = f"retrain-{time:%Y%m%d-%H%M%S}"
    commit = save_experiment(root, name)
    number = str(read_run_facts(root, "register").get("version", ""))
    with open_registry(root, settings) as client, registry_lock(root, settings):
        version = require_version(client, settings.model_name, number)
        client.set_model_version_tag(version.name, number, LINEAGE_TAG, commit)
    log(f"version {number}: made by commit {commit[:12]}, experiment {name}")
    if pushed := push_experiment(root, name):
        log(f"experiment {name} pushed to {pushed}")
    return commit


def save_experiment(root: Path, name: str) -> str:
    """Save the project's files as an experiment of DVC.

    Args:
        root: The project's folder.
        name: The name of the experiment.

    Returns:
        The commit.

    Raises:
        LineageError: git or DVC fails.
    """
    _git(root, "rev-parse", "--verify", "HEAD")
    # Files, not folders: DVC would also add what git ignores in a folder, such as images that DVC keeps itself.
    untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *_NEW)
    new = [path for path in untracked.split("\0") if path]
    _dvc(root, "exp", "save", "--name", name, *(option for path in new for option in ("--include-untracked", path)))
    return _git(root, "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{name}")


def experiments(root: Path, commit: str = "") -> list[str]:
    """Return the names of the experiments in the project's repository; none without git.

    Args:
        root: The project's folder.
        commit: Only those that keep this commit; it may be unknown here, because another machine has made it.
    """
    of_commit = ("--points-at", commit) if commit else ()
    return _run(root, "git", "for-each-ref", "--format=%(refname:lstrip=-1)", *of_commit, "refs/exps").stdout.split()


def remove_experiments(root: Path, commit: str) -> None:
    """Remove the experiments that keep a commit from the project's repository; remotes keep theirs.

    Args:
        root: The project's folder.
        commit: The commit.

    Raises:
        LineageError: DVC fails.
    """
    if names := experiments(root, commit):
        _dvc(root, "exp", "remove", *names)


def push_experiment(root: Path, name: str) -> str:
    """Push an experiment to the git remote, its data to the DVC remote, as far as they exist.

    Args:
        root: The project's folder.
        name: The name of the experiment.

    Returns:
        The remotes; empty if there is none.

    Raises:
        LineageError: A remote refuses.
    """
    stores, remotes = _dvc(root, "remote", "list").split(), _git(root, "remote").split()
    pushed = []
    if remotes:
        pushed.append("origin" if "origin" in remotes else remotes[0])
        _dvc(root, "exp", "push", "--no-cache", pushed[0], name)
    if stores:
        pushed.append(stores[0])
        _dvc(root, "push")  # `exp push` would read the remote from the experiment's own configuration
    return " and ".join(pushed)


def check_out_version(root: Path, settings: RegisterSettings, reference: str, out: Path) -> tuple[str, str]:
    """Check out what made a version into a new folder: code, parameters, captures, and data from DVC's cache.

    Args:
        root: The project's folder.
        settings: The section `register`.
        reference: Number or alias of the version.
        out: The folder to make.

    Returns:
        The number of the version, and the commit.

    Raises:
        LineageError: The version has no commit, `out` exists, or git or DVC fails.
        RegistryError: There is no such version.
    """
    with open_registry(root, settings) as client:
        version = require_version(client, settings.model_name, reference)
    number = number_of(version)
    commit = version.tags.get(LINEAGE_TAG) or version.tags.get(_COMMIT_TAG, "")
    if not commit or commit.endswith("+"):
        state = f"changes on top of commit {commit[:12]}" if commit else "a folder without git"
        raise LineageError(
            f"version {number} was made from {state} that nobody saved; it can be inspected with and exported, not "
            "reproduced. Runs of the retrain flow save theirs"
        )
    check_out_commit(root, commit, out)
    return number, commit


def check_out_commit(root: Path, commit: str, out: Path) -> None:
    """Check out a commit of the project's repository into a new folder, with the data in the project's DVC cache.

    Args:
        root: The project's folder.
        commit: The commit.
        out: The folder to make.

    Raises:
        LineageError: `out` exists, or git or DVC fails.
    """
    if out.exists():
        raise LineageError(f"{out}: exists already; choose a new folder")
    repository = _git(root, "rev-parse", "--show-toplevel")
    folder = _git(root, "rev-parse", "--show-prefix")
    if _run(root, "git", "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise LineageError(
            f"{repository}: commit {commit[:12]} is not here; fetch it: git fetch origin '+refs/exps/*:refs/exps/*'"
        )
    cache = _dvc(root, "cache", "dir")
    _git(root, "clone", "--quiet", "--no-checkout", repository, str(out.resolve()))
    _git(out, "fetch", "--quiet", "origin", "+refs/exps/*:refs/exps/*")
    _git(out, "checkout", "--quiet", "--detach", commit)
    project = out / folder
    _dvc(project, "cache", "dir", "--local", str((root / cache).resolve()))
    _dvc(project, "checkout")


def _git(root: Path, *arguments: str) -> str:
    return _output(_run(root, "git", *arguments), "git", arguments[0])


def _dvc(root: Path, *arguments: str) -> str:
    command = " ".join(arguments[:2])
    return _output(_run(root, sys.executable, "-m", "dvc", *arguments), "dvc", command)


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LineageError(f"{command[0]}: not found; install it") from None


def _output(done: subprocess.CompletedProcess[str], program: str, command: str) -> str:
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise LineageError(f"{program} {command}: {lines[0] if lines else f'exit code {done.returncode}'}")
    return done.stdout.strip()
