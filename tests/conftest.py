"""Fixtures of the whole session, and how its tests are divided among the workers of pytest-xdist."""

import os

import hypothesis
import pytest

from pinspect.core import environment
from tests.support.flow_stack import deployed, prefect_api, scheduled_run
from tests.support.shared_project import evaluated_project, prepared, project

os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are as many workers as cores
environment.apply()
hypothesis.settings.register_profile("any machine", deadline=None)  # no test asserts a speed
hypothesis.settings.load_profile("any machine")

# Groups of files that share a Prefect server, and so a worker. They take longest and come first.
_GROUPS = {
    "schedules": ("test_schedules",),
    "flows": ("test_interruptions", "test_flows", "test_drift_flow", "test_remotes"),
}
_GROUP_OF = {file: group for group, files in _GROUPS.items() for file in files}
_TIERS = ("system", "stages", "unit")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in a hook of the same name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each file, or group of files, to one worker; the longest come first, so that no worker waits at the end."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return

    def rank(item: pytest.Item) -> tuple[int, int]:
        tier = item.path.parent.name
        group = _GROUP_OF.get(item.path.stem)
        return (_TIERS.index(tier) if tier in _TIERS else 0, list(_GROUPS).index(group) if group else len(_GROUPS))

    items.sort(key=rank)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_GROUP_OF.get(item.path.stem, item.path.stem)))
