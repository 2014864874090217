"""The deployments of prefect.yaml on one host, without a work pool: this process runs them as their time comes.

PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.serve
"""

from __future__ import annotations

import importlib
import os
from datetime import timedelta
from pathlib import Path

import yaml

from pinspect.core import environment as quiet
from pinspect.core.errors import PinspectError, run

quiet.apply()
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")  # as in prefect.yaml: flows/zombies.py counts on it

from prefect import serve  # noqa: E402  after the settings that it reads while it is imported
from prefect.client.schemas.objects import ConcurrencyLimitConfig  # noqa: E402
from prefect.deployments.runner import RunnerDeployment  # noqa: E402
from prefect.schedules import Cron, Interval, Schedule  # noqa: E402

from flows.zombies import ensure_automation  # noqa: E402


def deployments(file: Path = Path("prefect.yaml")) -> list[RunnerDeployment]:
    """What prefect.yaml deploys, as deployments that a process serves."""
    return [_deployment(told) for told in yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]]


def _deployment(told: dict) -> RunnerDeployment:
    path, name = told["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    return flow.to_deployment(
        name=told["name"],
        description=told["description"],
        parameters=told.get("parameters"),
        schedules=[_schedule(one) for one in told.get("schedules", [])],
        concurrency_limit=ConcurrencyLimitConfig(**told["concurrency_limit"]),
    )


def _schedule(told: dict) -> Schedule:
    active = told.get("active", True)
    if "cron" in told:
        return Cron(told["cron"], timezone=told.get("timezone"), active=active)
    return Interval(timedelta(seconds=told["interval"]), active=active)


def main() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise PinspectError("PREFECT_API_URL is not set; start a server with `make server` and name its address")
    ensure_automation()
    serve(*deployments())


if __name__ == "__main__":
    run(main)
