"""Fixtures of the whole session, and how its tests are divided among the workers of pytest-xdist."""

import os
from importlib.util import find_spec

import hypothesis
import pytest

from pinspect.core import environment
from tests.support.flow_stack import deployed, prefect_api, scheduled_run
from tests.support.shared_project import evaluated_project, prepared, project

os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are as many workers as cores
environment.apply()
hypothesis.settings.register_profile("any machine", deadline=None)  # no test asserts a speed
hypothesis.settings.load_profile("any machine")

collect_ignore = [] if find_spec("torchvision") else ["stack"]  # `make test-stack`

# Files that wait for servers and schedules take longest and come first, so that no worker waits at the end.
_LONGEST = (
    *("test_machines", "test_schedules", "test_containers", "test_model_process", "test_prefect_restart"),
    *("test_promotion", "test_flows", "test_postgres", "test_interruptions", "test_watch", "test_station_server"),
    "test_adapter",
)
_TIERS = ("system", "stages", "unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files for the workers of pytest-xdist, which each take whole files (`--dist loadfile`)."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return

    def rank(item: pytest.Item) -> tuple[int, int]:
        file, tier = item.path.stem, item.path.parent.name
        return (
            _TIERS.index(tier) if tier in _TIERS else 0,
            _LONGEST.index(file) if file in _LONGEST else len(_LONGEST),
        )

    items.sort(key=rank)
