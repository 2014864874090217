"""The evaluated project, made once a session, and a module's own copy of it."""

import shutil

import pytest

from tests.support.evaluated_project import make_project


@pytest.fixture(scope="session")
def evaluated_project(tmp_path_factory):
    """A project that all stages up to evaluate have made; copy it to change it."""
    return make_project(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def project(evaluated_project, tmp_path_factory):
    """An evaluated project of a test module's own."""
    return shutil.copytree(evaluated_project, tmp_path_factory.mktemp("module") / "project")
