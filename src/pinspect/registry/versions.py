"""Looks up registered versions by number, alias or package hash, and reads what is stored with them."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient, pyfunc
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from pinspect.core.errors import RegistryError
from pinspect.registry.connection import open_registry, without_password
from pinspect.registry.settings import RegisterSettings

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous"
ADAPTER_TAG = "adapter_sha256"
PACKAGE_TAG = "package_sha256"
EVALUATION_TAG = "evaluation_sha256"
TEST_SET_TAG = "test_set_digest"
DECISION_TAG = "promotion"  # JSON: the last decision on a version, see `promotion.Decision`
ROLLBACK_TAG = "rolled_back"  # JSON: why a version is no longer champion, see `promotion.Rollback`
PREDICTIONS = "test.csv"  # answers to the test split, among the reports of a version
REGISTER_ONE = (  # DVC does not know that a registry is lost: it compares files
    f"run dvc repro, which registers one as {CHALLENGER}; if it reports that nothing has changed, run dvc repro "
    "--force --single-item register"
)
REPORTS = "reports"  # the folder of a run's artifacts that holds the evaluation


def load_registered(root: Path, settings: RegisterSettings, alias: str = "") -> tuple[PyFuncModel, str]:
    """Load a registered model.

    Args:
        root: The project's folder.
        settings: The section `register`.
        alias: The alias of the version. Empty: the champion, or the challenger if there is no champion yet.

    Returns:
        The model (see `inspection.registered_model` for its input and output) and the number of its version.

    Raises:
        RegistryError: No version has the alias.
    """
    with open_registry(root, settings) as client:
        if not alias:
            alias = CHAMPION if version_of(client, settings.model_name, CHAMPION) else CHALLENGER
        version = require_version(client, settings.model_name, alias).version
        return pyfunc.load_model(f"models:/{settings.model_name}/{version}"), str(version)


def find_version(client: MlflowClient, name: str, package_sha256: str) -> ModelVersion | None:
    """Return the oldest version of a package, by the package's hash; None if it has no version."""
    versions = client.search_model_versions(f"name = '{name}' and tags.{PACKAGE_TAG} = '{package_sha256}'")
    return min(versions, key=lambda version: int(version.version), default=None)


def version_of(client: MlflowClient, name: str, reference: str) -> ModelVersion | None:
    """Return the version that a number or an alias names, with all its aliases; None if there is no such version."""
    try:
        if not reference.isdecimal():
            reference = client.get_model_version_by_alias(name, reference).version
        return client.get_model_version(name, reference)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def number_of(version: ModelVersion) -> str:
    """Return the number of a version as text: MLflow's servers return text, its sqlite store an integer."""
    return str(version.version)


def require_version(client: MlflowClient, name: str, reference: str) -> ModelVersion:
    """Return the version that a number or an alias names, with all its aliases.

    Raises:
        RegistryError: There is no such version.
    """
    version = version_of(client, name, reference)
    if version is None:
        problem = f"no version {reference} of {name}; see pinspect models"
        if not reference.isdecimal():
            problem = f"no version of {name} has the alias {reference}; {REGISTER_ONE}"
        raise RegistryError(f"{without_password(client.tracking_uri)}: {problem}")
    return version


def stored_report(version: ModelVersion, name: str, folder: Path) -> Path | None:
    """Return a file of the evaluation that is stored with a version.

    Args:
        version: The version.
        name: The file, such as `predictions.csv`.
        folder: Where to put a copy if the file lies on another machine.

    Returns:
        The path of the file, or of its copy; None if the version has no such file.
    """
    try:
        path = download_artifacts(run_id=version.run_id, artifact_path=f"{REPORTS}/{name}", dst_path=str(folder))
    except (MlflowException, OSError):
        return None
    return Path(path)
