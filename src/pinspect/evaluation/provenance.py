"""Where an adapter and its figures come from: digests of data and weights, and the state of the code."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from pinspect.errors import StageInputError

# What decides an adapter's answers; its learning curve and training times differ from run to run.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "operating_point.json")
CODE = ("src", "stages", "params.yaml", "dvc.yaml")


def adapter_sha256(adapter: Path) -> str:
    """The hash that names an adapter: sha256 over names and contents of `ADAPTER_FILES`, as far as it has them.

    Raises StageInputError when there are no weights.
    """
    digest = hashlib.sha256()
    for path in (adapter / name for name in ADAPTER_FILES):
        if path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
        elif path.suffix == ".safetensors":
            raise StageInputError(f"{path}: not found; run the train stage first (dvc repro train)")
    return digest.hexdigest()


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


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
