"""The files that a project is made of, as they come with the package: the pipeline, the stages, the flows, the base.

A wheel has them in `pinspect/shipped`; `setup.py`, which runs this module, puts them there. An editable installation
uses those of its repository. Standard library only.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

FOLDER = "shipped"
CODE_ENTRIES = ("stages", "flows")  # they belong to the code: `pinspect update` renews them
ENTRIES = (
    *CODE_ENTRIES,
    ".dvcignore",
    ".gitignore",
    "data/.gitignore",
    "dvc.yaml",
    "models/.gitignore",
    "models/base",
    "models/start/.gitkeep",
    "params.yaml",
    "prefect-elsewhere.yaml",
    "prefect.yaml",
    "reports/.gitignore",
    "settings.yaml",
)


def shipped_folder() -> Path:
    """Return the folder with `ENTRIES`."""
    package = Path(__file__).resolve().parents[1]
    installed = package / FOLDER
    return installed if installed.is_dir() else package.parents[1]


def copy_shipped(source: Path, target: Path, entries: Iterable[str]) -> None:
    """Copy entries from one folder to another, over those that the other folder has.

    Args:
        source: The folder to read.
        target: The folder to write.
        entries: Some of `ENTRIES`.
    """
    for entry in entries:
        (target / entry).parent.mkdir(parents=True, exist_ok=True)
        if (source / entry).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / entry, target / entry, ignore=ignore, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / entry, target / entry)
