"""Checks of a version before an alias moves to it: its stored controls, and that it inspects its references."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from pinspect.core.errors import RegistryError
from pinspect.registry.versions import ADAPTER_TAG, load_version, number_of, stored_report

DETAIL = "detail.json"


def stored_controls(version: ModelVersion) -> dict[str, bool | None]:
    """Read the results of the controls from the evaluation that is stored with a version.

    Args:
        version: The version.

    Returns:
        Control -> whether it holds; None if it could not be made. Empty if the version has no such file.

    Raises:
        RegistryError: The file is broken, or belongs to another adapter.
    """
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        path = stored_report(version, DETAIL, Path(folder))
        if path is None:
            return {}
        try:
            detail = json.loads(path.read_text(encoding="utf-8"))
            adapter, controls = detail[ADAPTER_TAG], {each["name"]: each["held"] for each in detail["controls"]}
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"version {number_of(version)}: its stored {DETAIL} cannot be read ({type(error).__name__}: {error}); "
                "run dvc repro --force register"
            ) from None
    if adapter != version.tags.get(ADAPTER_TAG):
        raise RegistryError(
            f"version {number_of(version)}: its stored {DETAIL} belongs to adapter {adapter[:12]}; run dvc repro "
            "--force register"
        )
    return controls


def trial_problem(version: ModelVersion) -> str:
    """Load a version of the registry that is open, and let it inspect its references.

    Args:
        version: The version to try.

    Returns:
        Why the version cannot be used, in one line; empty if it can.
    """
    try:
        with contextlib.closing(load_version(version)) as inspector:
            inspector.try_out()
    except Exception as error:  # a damaged version can make its loaders raise anything
        return f"it does not inspect its references: {' '.join(str(error).split())[:300]}"
    return ""
