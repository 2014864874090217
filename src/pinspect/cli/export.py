"""Exports a registered version as one merged checkpoint, which vLLM and other engines can serve."""

from __future__ import annotations

import tempfile
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.models import Model

from pinspect.core.errors import RegistryError
from pinspect.core.params import load_params
from pinspect.model.families import checkpoint_of
from pinspect.model.merging import export_merged
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import number_of, require_version


def export_version(root: Path, settings: RegisterSettings, reference: str, out: Path) -> str:
    """Merge the adapter of a registered version into its base.

    Args:
        root: The project's folder.
        settings: The section `register`.
        reference: An alias or the number of a version.
        out: The folder to create.

    Returns:
        The number of the version.

    Raises:
        RegistryError: There is no such version, or its package is incomplete.
        ModelError: The output folder is not empty, or base and adapter do not fit.
    """
    with open_registry(root, settings) as client, tempfile.TemporaryDirectory(prefix="pinspect-") as scratch:
        version = number_of(require_version(client, settings.model_name, reference))
        folder = Path(download_artifacts(f"models:/{settings.model_name}/{version}", dst_path=scratch))
        flavor = Model.load(str(folder)).flavors["python_function"]
        paths = {name: folder / artifact["path"] for name, artifact in flavor["artifacts"].items()}
        missing = {"adapter", "params"} - paths.keys()
        if missing:
            raise RegistryError(
                f"{settings.model_name} version {version}: its package lacks {', '.join(sorted(missing))}; register "
                "the adapter again (dvc repro --force register)"
            )
        base = checkpoint_of(load_params(paths["params"]).model, root)
        export_merged(base.at(paths["base"]) if "base" in paths else base, paths["adapter"], out)
    return version
