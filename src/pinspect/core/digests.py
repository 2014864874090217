"""Where an adapter and its figures come from: digests of data and weights, and the state of the code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd

from pinspect.core.errors import StageInputError

# What decides an adapter's answers; its learning curve and training times differ from run to run.
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")
OPERATING_POINT = "operating_point.json"  # beside the adapter's folder: it is chosen after the training
CODE = ("src", "stages", "params.yaml", "dvc.yaml")


def weights_sha256(adapter: Path) -> str:
    """sha256 over names and contents of what the training made: configuration and weights.

    Raises StageInputError when there are no weights.
    """
    return _names_and_contents([adapter / name for name in WEIGHTS])


def adapter_sha256(adapter: Path) -> str:
    """The hash that names an adapter with all that decides its answers: its weights and its operating point.

    Raises StageInputError when there are no weights. Without an operating point the weights alone decide.
    """
    return _names_and_contents([*(adapter / name for name in WEIGHTS), adapter.parent / OPERATING_POINT])


def dvc_directory_hash(folder: Path) -> str:
    """The hash under which DVC keeps `folder`, such as `0a1b….dir`: the same one that stands in dvc.lock.

    Raises StageInputError when the folder is missing.
    """
    if not folder.is_dir():
        raise StageInputError(f"{folder}: not found; run dvc repro, which makes it")
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    # This very JSON, entries by path, is what DVC hashes.
    entries = [{"md5": _md5(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def digest_of_test_set(answered: pd.DataFrame) -> str:
    """The hash that names a test set, from a predictions table: which photographs it has, and what is right for each.

    Files of the raw folder are named after their content, so that a name stands for a photograph. Right are judgement,
    defect mode and address. View, prompt, reference and drawing are no part of it: those belong to the inspector, and
    two inspectors may see the same photographs each in its own way. The order of rows does not count.
    """
    columns = ["file", "expected_judgement", "expected_defect_mode", "expected_defect_position"]
    facts = sorted(set(answered[columns].itertuples(index=False, name=None)))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes. Raises StageInputError when it is missing."""
    if not path.is_file():
        raise StageInputError(f"{path}: not found; run dvc repro, which makes it")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_commit(root: Path) -> str:
    """The commit that is checked out at `root`, with a `+` when the code differs from it; empty outside of git."""
    commit = _git(root, "rev-parse", "HEAD").strip()
    changed = commit and _git(root, "status", "--porcelain", "--", *CODE).strip()
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
