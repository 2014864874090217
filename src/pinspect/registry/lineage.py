"""Keeps what made a registered version as an experiment of DVC, and checks it out again into a new folder.

A scheduled run changes captures, locks and reports without a commit. `dvc exp save` keeps them as a commit beside the
branches (`refs/exps`), and the version gets a tag with that commit.
"""

from __future__ import annotations

import os
import secrets
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
_REASONS = ("ERROR: ", "error: ", "fatal: ", "! ")  # how DVC and git begin the line that names the problem


class LineageError(RegistryError):
    """What made a version cannot be saved or checked out."""


def new_name(kind: str, time: datetime) -> str:
    """Return a name for an experiment, with random digits: two machines may save theirs at the same time.

    Args:
        kind: How the name begins.
        time: The present time.
    """
    return f"{kind}-{time:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def save_lineage(root: Path, settings: RegisterSettings, name: str, log: Callable[[str], object]) -> None:
    """Save the project as an experiment, and tag the version of the last registration with its commit.

    Args:
        root: The project's folder.
        settings: The section `register`.
        name: The name of the experiment.
        log: Called with one line.

    Raises:
        LineageError: The project is no git repository with a commit, or git or DVC fails.
        RegistryError: The registry has no such version.
    """
    commit = save_experiment(root, name)
    number = str(read_run_facts(root, "register").get("version", ""))
    with open_registry(root, settings) as client, registry_lock(root, settings):
        version = require_version(client, settings.model_name, number)
        client.set_model_version_tag(version.name, number, LINEAGE_TAG, commit)
    log(f"version {number}: made by commit {commit[:12]}, experiment {name}")


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
    run_git(root, "rev-parse", "--verify", "HEAD")
    # Files, not folders: DVC would also add what git ignores in a folder, such as images that DVC keeps itself.
    untracked = run_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *_NEW)
    new = [path for path in untracked.split("\0") if path]
    run_dvc(root, "exp", "save", "--name", name, *(option for path in new for option in ("--include-untracked", path)))
    return run_git(root, "rev-parse", ref_of(root, name))


def ref_of(root: Path, name: str) -> str:
    """Return git's full name of an experiment in the project's repository; raise LineageError without git."""
    return run_git(root, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")


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
        run_dvc(root, "exp", "remove", *names)


def push_experiment(root: Path, name: str) -> str:
    """Push the project's data to the DVC remote, then an experiment to the git remote, as far as they exist.

    Args:
        root: The project's folder, as it was when the experiment was saved.
        name: The name of the experiment.

    Returns:
        The remotes; empty if there is none.

    Raises:
        LineageError: A remote refuses, or does not answer.
    """
    stores, remotes = run_dvc(root, "remote", "list").split(), run_git(root, "remote").split()
    pushed = []
    if stores:
        pushed.append(stores[0])
        run_dvc(root, "push")
    if remotes:
        pushed.append("origin" if "origin" in remotes else remotes[0])
        # `dvc exp push` has its own git, without ssh's settings, credential helpers and the answers of hooks.
        run_git(root, "push", "--quiet", pushed[-1], ref_of(root, name))
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
    repository = run_git(root, "rev-parse", "--show-toplevel")
    folder = run_git(root, "rev-parse", "--show-prefix")
    if _run(root, "git", "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        raise LineageError(
            f"{repository}: commit {commit[:12]} is not here; fetch it: git fetch origin '+refs/exps/*:refs/exps/*'"
        )
    cache = run_dvc(root, "cache", "dir")
    run_git(root, "clone", "--quiet", "--no-checkout", repository, str(out.resolve()))
    run_git(out, "fetch", "--quiet", "origin", "+refs/exps/*:refs/exps/*")
    run_git(out, "checkout", "--quiet", "--detach", commit)
    project = out / folder
    run_dvc(project, "cache", "dir", "--local", str((root / cache).resolve()))
    run_dvc(project, "checkout")


def run_git(root: Path, *arguments: str) -> str:
    """Run git in a folder and return its output; raise LineageError with git's message if it fails."""
    return _output(_run(root, "git", *arguments), "git", arguments[0])


def run_dvc(root: Path, *arguments: str) -> str:
    """Run DVC in a folder and return its output; raise LineageError with DVC's message if it fails."""
    command = " ".join(word for word in arguments[:2] if word.isalpha())
    return _output(_run(root, sys.executable, "-m", "dvc", *arguments), "dvc", command)


def _run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}  # a missing password is an error, nobody answers
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LineageError(f"{command[0]}: not found; install it") from None


def _output(done: subprocess.CompletedProcess[str], program: str, command: str) -> str:
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith(_REASONS)] or lines
        reason = reasons[0].removeprefix("ERROR: ") if reasons else f"exit code {done.returncode}"
        raise LineageError(f"{program} {command}: {reason}")
    return done.stdout.strip()
