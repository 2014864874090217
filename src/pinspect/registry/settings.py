"""The sections `register`, `promote`, `prune` and `notify` of `settings.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pinspect.core.yaml_file import PositiveInt, Section, Share, load_settings
from pinspect.evaluation.settings import ReportSettings, load_report_settings


class RegisterSettings(Section):
    """Where adapters are registered.

    Attributes:
        model_name: Name of the registered model in MLflow.
        experiment: Name of the MLflow experiment that holds the runs.
        tracking_uri: MLflow tracking URI; empty for SQLite in `mlruns/` of the project.
        lock_database: URL of a PostgreSQL database in which machines that use one MLflow server lock a model while they
            register or promote; empty for the registry itself, if that is a PostgreSQL database.
    """

    model_name: Annotated[str, Field(pattern=r"\A[\w.-]+\z")]
    experiment: Annotated[str, Field(min_length=1)]
    tracking_uri: str
    lock_database: Annotated[str, Field(pattern=r"\A(postgres(ql)?(\+psycopg)?://.+)?\z")] = ""


class PruneSettings(Section):
    """What `pinspect prune` and the Prefect server of `make server` keep.

    Attributes:
        versions: The newest versions that stay, besides those that have an alias or were promoted or rolled back.
        results_days: Days for which the station's results stay.
        runs_days: Days for which the runs of flows stay on the Prefect server, with their logs and artifacts.
        events_days: Days for which events stay on the Prefect server.
    """

    versions: PositiveInt = 30
    results_days: PositiveInt = 730
    runs_days: PositiveInt = 90
    events_days: PositiveInt = 7


class PromoteSettings(Section):
    """What a challenger must prove on the test split before it becomes champion.

    Attributes:
        maximum_escape_rate: Highest escape rate that is accepted.
        maximum_overkill_rate: Highest overkill rate that is accepted.
        minimum_defective: Fewest defective test captures that count as a proof.
        significance: Level of McNemar's test below which the challenger counts as worse than the champion.
        required_controls: Controls that the challenger must have passed.
        approval_required: Whether a person must approve each promotion.
    """

    maximum_escape_rate: Share
    maximum_overkill_rate: Share
    minimum_defective: PositiveInt
    significance: Annotated[float, Field(gt=0, lt=1)]
    required_controls: list[Literal["blank", "swapped", "other_shape", "shuffled_letters", "lighting"]]
    approval_required: bool


class NotifySettings(Section):
    """Who gets a notice of an event (`registry.notices`).

    Attributes:
        webhook: Address that notices are sent to by HTTP POST; empty for nobody.
    """

    webhook: Annotated[str, Field(pattern=r"\A(https?://.+)?\z")] = ""


@dataclass(frozen=True)
class RegistrySettings:
    """Everything that registering, comparing and promoting versions reads from `settings.yaml`."""

    register: RegisterSettings
    promote: PromoteSettings
    report: ReportSettings


def load_register_settings(root: Path) -> RegisterSettings:
    """Read the section `register` of the project in `root`. Raises ParamsError."""
    return load_settings(root, "register", RegisterSettings)


def load_registry_settings(root: Path) -> RegistrySettings:
    """Read every section of the project in `root` that the registry uses. Raises ParamsError."""
    promote = load_settings(root, "promote", PromoteSettings)
    return RegistrySettings(load_register_settings(root), promote, load_report_settings(root))


def load_notify_settings(root: Path) -> NotifySettings:
    """Read the section `notify` of the project in `root`. Raises ParamsError."""
    return load_settings(root, "notify", NotifySettings)


def load_prune_settings(root: Path) -> PruneSettings:
    """Read the section `prune` of the project in `root`. Raises ParamsError."""
    return load_settings(root, "prune", PruneSettings)
