"""Fixtures of the system tests: servers and stations."""

from tests.support.mlflow_server import mlflow_server
from tests.support.postgres import postgres
from tests.support.s3 import s3
from tests.support.station_stack import registered, running_station, three_versions
