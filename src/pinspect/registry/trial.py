"""Checks of a version before an alias moves to it: its stored controls, and that it inspects its references."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from pinspect.core.errors import RegistryError
from pinspect.registry.connection import registry_environment
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import ADAPTER_TAG, number_of, stored_report

DETAIL = "detail.json"

# A separate process, because a version is tried with the code that it was registered with, not with this code.
_TRIAL = """
import sys, mlflow
mlflow.pyfunc.load_model(sys.argv[1]).unwrap_python_model().inspector.try_out()
"""


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


def trial_problem(root: Path, settings: RegisterSettings, version: ModelVersion) -> str:
    """Load a version with its packed code, in a process of its own, and let it inspect its references.

    Args:
        root: The project's folder.
        settings: The section `register`.
        version: The version to try.

    Returns:
        Why the version cannot be used, in one line; empty if it can.
    """
    done = subprocess.run(
        [sys.executable, "-c", _TRIAL, f"models:/{version.name}/{number_of(version)}"],
        env=registry_environment(root, settings),
        capture_output=True,
        text=True,
        check=False,
    )
    if not done.returncode:
        return ""
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return f"it does not inspect its references: {reason[0][:300]}"
