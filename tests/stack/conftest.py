"""What the tests with the trainers and loaders of others share."""

from pathlib import Path

import pytest

from pinspect.cli.export_dataset import export_dataset
from tests.support.chat_rows import write_rows


@pytest.fixture(scope="session")
def chat_project(tmp_path_factory) -> Path:
    """A folder with a small chat dataset in `data/chat`, and in `dataset` its export."""
    root = tmp_path_factory.mktemp("project")
    write_rows(root)
    export_dataset(root, root / "dataset")
    return root
