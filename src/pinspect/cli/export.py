"""A registered version as one merged checkpoint: what vLLM and other engines serve."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
from mlflow.models import Model

from pinspect.core.errors import RegistryError
from pinspect.core.params import load_params
from pinspect.model.families import checkpoint_of
from pinspect.model.merging import export_merged
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import number_of, require_version


def export_version(root: Path, settings: RegisterSettings, reference: str, out: Path) -> str:
    """Write the version that `reference` names, an alias or a number, merged into its base to the new folder `out`.

    Returns the version's number. Raises RegistryError when there is no such version, ModelError as `export_merged`.
    """
    with open_registry(root, settings) as client, tempfile.TemporaryDirectory(prefix="pinspect-") as scratch:
        version = number_of(require_version(client, settings.model_name, reference))
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{settings.model_name}/{version}", dst_path=scratch))
        packed = Model.load(folder).flavors["python_function"]["artifacts"]
        found = {name: folder / artifact["path"] for name, artifact in packed.items()}
        missing = {"adapter", "params"} - found.keys()
        if missing:
            raise RegistryError(f"{settings.model_name} version {version} has no {', '.join(sorted(missing))} packed")
        base = checkpoint_of(load_params(found["params"]).model, root)
        export_merged(base.at(found["base"]) if "base" in found else base, found["adapter"], out)
    return version
