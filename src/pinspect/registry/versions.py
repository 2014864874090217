"""Looks up registered versions by number, alias or package hash, and reads what is stored with them."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pinspect.core.errors import ModelError, RegistryError
from pinspect.inspection.inspector_process import InspectorProcess
from pinspect.inspection.package import CODE, package_artifacts, package_sha256
from pinspect.registry.addresses import local_path
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
_NO_FILES = "No such artifact"  # MLflow's words
REPORTS = "reports"  # the folder of a run's artifacts that holds the evaluation


def load_registered(root: Path, settings: RegisterSettings, alias: str = "") -> InspectorProcess:
    """Load a registered version, with its packed code.

    Args:
        root: The project's folder.
        settings: The section `register`.
        alias: The alias of the version. Empty: the champion, or the challenger if there is no champion yet.

    Returns:
        The inspector, in a process of its own.

    Raises:
        RegistryError: No version has the alias.
        ModelError: Its files are not those that were registered, or they cannot be loaded.
    """
    with open_registry(root, settings) as client:
        return load_version(chosen_version(client, settings.model_name, alias))


def load_version(version: ModelVersion) -> InspectorProcess:
    """Load a version of the registry that is open, with its packed code.

    Args:
        version: The version.

    Returns:
        The inspector, in a process of its own.

    Raises:
        ModelError: Its files are not those that were registered, or they cannot be loaded.
    """
    scratch = tempfile.TemporaryDirectory(prefix="pinspect-")
    try:
        return InspectorProcess(_intact_folder(version, Path(scratch.name)), number_of(version), scratch)
    except BaseException:
        scratch.cleanup()
        raise


def version_folder(version: ModelVersion, copy_to: Path) -> Path:
    """Return the folder with the package of a version of the registry that is open.

    Args:
        version: The version.
        copy_to: A folder for a copy, if the registry keeps its files on another machine. MLflow would choose a
            temporary folder that nobody removes.

    Raises:
        ModelError: The files are missing.
    """
    number = number_of(version)
    here = local_path(MlflowClient().get_model_version_download_uri(version.name, number))
    try:
        return Path(download_artifacts(f"models:/{version.name}/{number}", dst_path=None if here else str(copy_to)))
    except (OSError, MlflowException) as error:
        if isinstance(error, MlflowException) and _NO_FILES not in str(error):
            raise
        raise ModelError(
            f"version {number} of {version.name}: its files are missing; if the registry was moved, move the folder "
            "artifacts/ with mlflow.db, else restore the folder"
        ) from None


def _intact_folder(version: ModelVersion, copy_to: Path) -> Path:
    """Return `version_folder` if its files are those that were registered."""
    folder = version_folder(version, copy_to)
    sha256 = package_sha256(package_artifacts(folder), folder / CODE)
    if sha256 != version.tags.get(PACKAGE_TAG):
        raise ModelError(
            f"{folder}: version {number_of(version)} of {version.name} was changed or is incomplete: the hash of its "
            f"files is {sha256[:12]}, registered was {version.tags.get(PACKAGE_TAG, 'none')[:12]}; restore the folder, "
            "or roll back to another version (pinspect rollback)"
        )
    return folder


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


def chosen_version(client: MlflowClient, name: str, reference: str) -> ModelVersion:
    """Return the version that a number or an alias names; if empty, the champion, or the challenger without a champion.

    Raises:
        RegistryError: There is no such version.
    """
    if not reference:
        reference = CHAMPION if version_of(client, name, CHAMPION) else CHALLENGER
    return require_version(client, name, reference)


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
