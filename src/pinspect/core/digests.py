"""Digests of data and weights, and the state of the code: where an adapter and its scores come from."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd

from pinspect.core.errors import StageInputError

# The files that decide an adapter's answers.
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
OPERATING_POINT = "operating_point.json"  # lies beside the adapter's folder, because it is chosen after the training
CODE = ("src", "stages", "code.yaml", "params.yaml", "dvc.yaml")


def weights_sha256(adapter: Path) -> str:
    """Return the sha256 over names and contents of an adapter's configuration and weights.

    Args:
        adapter: Folder of the adapter.

    Raises:
        StageInputError: The folder has no weights.
    """
    return _names_and_contents([adapter / name for name in WEIGHTS])


def adapter_sha256(adapter: Path) -> str:
    """Return the sha256 over everything that decides an adapter's answers: its weights and its operating point.

    Args:
        adapter: Folder of the adapter. The operating point lies beside the folder; if it is missing, the hash covers
            the weights only.

    Raises:
        StageInputError: The folder has no weights.
    """
    return _names_and_contents([*(adapter / name for name in WEIGHTS), adapter.parent / OPERATING_POINT])


def dvc_directory_hash(folder: Path) -> str:
    """Return the hash under which DVC caches `folder`, such as `0a1b….dir`, as dvc.lock has it.

    Raises:
        StageInputError: The folder is missing.
    """
    if not folder.is_dir():
        raise StageInputError(f"{folder}: not found; run dvc repro, which makes it")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    # DVC hashes exactly this JSON, with the entries in the order of their paths.
    entries = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def digest_of_test_set(answered: pd.DataFrame) -> str:
    """Return a hash that identifies a test set: its photographs and the right answer for each.

    Files of the raw folder are named after their content, so a name stands for a photograph. The right answer is
    judgement, defect mode and address. View, prompt and reference do not enter the hash: two inspectors may look at the
    same photographs in different ways. The order of the rows does not matter.

    Args:
        answered: Predictions table.

    Returns:
        sha256 in hexadecimal digits.
    """
    columns = ["file", "expected_judgement", "expected_defect_mode", "expected_defect_position"]
    facts = sorted(set(answered[columns].itertuples(index=False, name=None)))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes.

    Raises:
        StageInputError: The file is missing.
    """
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run dvc repro, which makes it")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digests(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the sha256 of each file of a folder that matches a pattern, by its path in the folder.

    Args:
        folder: The folder.
        *patterns: Patterns such as `core/**/*`. Compiled code (`__pycache__`) never matches.
    """
    paths = {path for pattern in patterns for path in folder.glob(pattern)}
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def git_commit(root: Path) -> str:
    """Return the commit that is checked out at `root`, followed by `+` if the code differs from the commit.

    Outside of a git repository the result is empty.
    """
    commit = _git(root, "rev-parse", "HEAD").strip()
    # In a project folder below lines/, the code is a link to that of the repository.
    code = [str((root / name).resolve()) for name in CODE]
    changed = commit and _git(root, "status", "--porcelain", "--", *code).strip()
    return f"{commit}+" if changed else commit


def _names_and_contents(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
        elif path.suffix == ".safetensors":
            raise StageInputError(f"{path}: not found; run the train stage first (dvc repro train)")
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
