"""Connects to the MLflow registry of a project: which one, with a lock, and with errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pinspect.core.errors import RegistryError, RegistryUnreachableError
from pinspect.core.locks import only_process
from pinspect.core.postgres import is_postgres, with_driver
from pinspect.registry.addresses import LOCKED, STORE, artifact_folder, bring_home
from pinspect.registry.database_lock import database_lock
from pinspect.registry.settings import RegisterSettings

_URI_VARIABLE = "MLFLOW_TRACKING_URI"
_CHANGED_BY_MLFLOW = (_URI_VARIABLE, "MLFLOW_REGISTRY_URI")
_PROBE_SECONDS = 10


def tracking_uri(root: Path, settings: RegisterSettings) -> str:
    """Return the URI of the registry that a project uses.

    Args:
        root: The project's folder.
        settings: The section `register`.

    Returns:
        `MLFLOW_TRACKING_URI` if that is set, else `register.tracking_uri`, else a sqlite file in `mlruns/` of the
        project. The URI of a PostgreSQL database has a driver.
    """
    chosen = with_driver(os.environ.get(_URI_VARIABLE) or settings.tracking_uri)
    return chosen or f"sqlite:///{project_database(root)}"


def registry_environment(root: Path, settings: RegisterSettings) -> dict[str, str]:
    """Return the environment of a process that uses the project's registry; a command line would show a password."""
    return os.environ | {_URI_VARIABLE: tracking_uri(root, settings)}


def without_password(uri: str) -> str:
    """Return a URI without the password in it, for files and messages."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return uri.replace(f":{parts.password}@", ":***@", 1)


def project_database(root: Path) -> Path:
    """Return the file of the registry that belongs to the project in `root`; it may be missing."""
    return (root / STORE / "mlflow.db").resolve()


def registry_database(root: Path, settings: RegisterSettings) -> Path | None:
    """Return the file of the registry that a project uses, which several projects can share; None on a server."""
    uri = tracking_uri(root, settings)
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def portable_uri(root: Path, settings: RegisterSettings) -> str:
    """Return `tracking_uri` without password, and without this machine's folders if it is a file in the project."""
    uri = tracking_uri(root, settings)
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:") or not path.is_relative_to(root.resolve()):
        return without_password(uri)
    return f"sqlite:///{path.relative_to(root.resolve()).as_posix()}"


@contextlib.contextmanager
def open_registry(root: Path, settings: RegisterSettings) -> Iterator[MlflowClient]:
    """Open the registry of a project, and make it the current one of `mlflow` while the context lasts.

    Args:
        root: The project's folder.
        settings: The section `register`.

    Yields:
        A client of the registry. The experiment that runs are logged to exists.

    Raises:
        RegistryUnreachableError: A server does not answer; raised within seconds.
        RegistryError: MLflow refuses a call inside the context, or the database cannot be used.
    """
    uri = tracking_uri(root, settings)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    _silence_mlflow()
    previous = {name: os.environ.get(name) for name in _CHANGED_BY_MLFLOW}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        # Two processes must not create the tables of a new database at the same time.
        with _lock(root, settings, uri, "tables of MLflow"):
            database = registry_database(root, settings)
            if database:
                bring_home(database, shared=database != project_database(root))
            client = MlflowClient(uri, uri)
            experiment_id(client, root, settings)
        yield client
    except MlflowException as error:
        if LOCKED in str(error):
            raise _unusable(uri, error) from error
        raise RegistryError(
            f"{without_password(uri)}: {_in_one_line(error)}; check the MLflow server and that its version fits this "
            "MLflow"
        ) from error
    except requests.RequestException as error:
        raise _unreachable(uri, error) from error
    except (SQLAlchemyError, sqlite3.OperationalError, CommandError) as error:  # CommandError: not MLflow's tables
        raise _unusable(uri, error) from error
    finally:
        # MLflow puts its URIs into the environment, where the next project would take them for the user's choice.
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def experiment_id(client: MlflowClient, root: Path, settings: RegisterSettings) -> str:
    """Return the id of the experiment that runs are logged to; create the experiment if it is new."""
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment:
        return experiment.experiment_id
    # A server chooses the place of its artifacts itself; a database in a file keeps them next to it.
    database, uri = registry_database(root, settings), tracking_uri(root, settings)
    if is_postgres(uri):  # MLflow would put them into a folder of this machine, which no other machine can read
        raise RegistryError(
            f"{without_password(uri)}: no experiment {settings.experiment}; create it with a place for artifacts that "
            f"every machine can read: mlflow experiments create --experiment-name {settings.experiment} "
            "--artifact-location s3://BUCKET/FOLDER"
        )
    location = artifact_folder(database).as_uri() if database else None
    return client.create_experiment(settings.experiment, artifact_location=location)


@contextlib.contextmanager
def registry_lock(root: Path, settings: RegisterSettings) -> Iterator[Callable[[], None]]:
    """Let processes register and promote versions of a model in turn.

    If the registry is a PostgreSQL database, or `register.lock_database` names one, processes of all machines take
    turns; else those on this machine whose projects use one registry in a file, or are one project. The lock of a
    killed process is freed. `registration.register_candidate` removes a version that two machines registered at the
    same moment.

    Args:
        root: The project's folder.
        settings: The section `register`.

    Yields:
        A function that raises RegistryError if the lock was lost in the meantime; call it before an alias moves.

    Raises:
        RegistryError: The PostgreSQL database cannot be used.
    """
    database = settings.lock_database or tracking_uri(root, settings)
    with _lock(root, settings, database, settings.model_name) as check:
        yield check


@contextlib.contextmanager
def _lock(root: Path, settings: RegisterSettings, uri: str, name: str) -> Iterator[Callable[[], None]]:
    if is_postgres(uri):
        with database_lock(uri, f"pinspect registry {name}") as check:
            yield check
        return
    database = registry_database(root, settings)
    store = database.parent if database else root / STORE
    with only_process(store / "register.lock", f"{store}: waiting for another process that registers or promotes"):
        yield lambda: None


def _probe(uri: str) -> None:
    """Ask the server for any answer: MLflow itself would retry for minutes before it gave up."""
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS)
    except requests.RequestException as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> RegistryUnreachableError:
    return RegistryUnreachableError(
        f"{without_password(uri)}: no MLflow server answers ({type(error).__name__}); start it or correct "
        "MLFLOW_TRACKING_URI, then run dvc repro again: only this stage is left"
    )


def _unusable(uri: str, error: Exception) -> RegistryError:
    uri = without_password(uri)
    if LOCKED in str(error):
        return RegistryUnreachableError(f"{uri}: another program keeps the database locked; end it, or try again later")
    advice = "correct its rights or choose another one" if is_postgres(uri) else "move it away"
    return RegistryError(f"{uri}: not usable as MLflow's database ({_in_one_line(error)}); {advice}")


def _silence_mlflow() -> None:
    """Keep the logs of MLflow and its database migrations to errors."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(type hints|input example).*")  # we pass the signature ourselves


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
