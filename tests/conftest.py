"""Fixtures of the whole session: what takes long is started or made once."""

import hypothesis

from tests.support.flow_stack import deployed, prefect_api, prepared, scheduled_run  # noqa: F401
from tests.support.shared_project import evaluated_project, project  # noqa: F401

hypothesis.settings.register_profile("any machine", deadline=None)  # no test asserts how fast it runs
hypothesis.settings.load_profile("any machine")
