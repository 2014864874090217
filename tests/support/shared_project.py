"""Projects that are made once for all workers of a test session, and fixtures that give them to tests."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.checkout import Checkout


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the session that the first worker to ask for it makes; the others wait for it.

    Args:
        tmp_path_factory: Of pytest.
        name: The name of the folder.
        make: Fills the folder, which is empty.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def evaluated_project(tmp_path_factory) -> Path:
    """A project that all stages up to evaluate have made; tests change a copy of it."""
    from tests.support.evaluated_project import make_project

    return made_once(tmp_path_factory, "evaluated", make_project)


@pytest.fixture(scope="module")
def project(evaluated_project, tmp_path_factory) -> Path:
    """A test module's own copy of the evaluated project."""
    return shutil.copytree(evaluated_project, tmp_path_factory.mktemp("module") / "project")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Checkout:
    """A checkout whose stages have all run, known to DVC; tests change a copy of it."""
    from tests.support.checkout import make_prepared

    return Checkout(made_once(tmp_path_factory, "prepared", make_prepared))
