"""Fixtures of the whole session: what takes long is started or made once."""

import hypothesis

from pinspect.core import environment
from tests.support.flow_stack import deployed, prefect_api, prepared, scheduled_run
from tests.support.shared_project import evaluated_project, project

environment.apply()
hypothesis.settings.register_profile("any machine", deadline=None)  # no test asserts how fast it runs
hypothesis.settings.load_profile("any machine")
