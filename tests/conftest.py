"""Fixtures of the whole session: what takes long is started or made once."""

from flow_stack import deployed, prefect_api, prepared, scheduled_run  # noqa: F401
from shared_project import evaluated_project, project  # noqa: F401
