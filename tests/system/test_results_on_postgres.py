"""The tests of the results table on a real PostgreSQL server: `tests/unit/test_results.py` with the URL changed."""

import pytest

from tests.unit.test_results import *  # noqa: F403 (the same tests, all of them, also those to come)


@pytest.fixture
def results_url(postgres) -> str:
    return postgres.new_database()
