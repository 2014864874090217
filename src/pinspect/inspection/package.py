"""Reads a packed model: adapter, base, line, operating point, line profile, parameters and code of one version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from pinspect.core import digests
from pinspect.core.errors import ModelError
from pinspect.core.operating_point import read_operating_point
from pinspect.core.params import ModelParams, load_params
from pinspect.inspection.inspector import CaptureInspector

if TYPE_CHECKING:
    from pinspect.model.loading import Inspector

_MLMODEL = "MLmodel"  # the file by which MLflow knows a model's folder
CODE = "code"  # the folder beside MLmodel that MLflow puts the code into
_REQUIRED = ("adapter", "line", "operating_point", "params")
_FILES = {
    "adapter": "adapter",
    "base": "base",
    "line": "line",
    "line_profile": "line_profile.json",
    "operating_point": "operating_point.json",
    "params": "params.yaml",
}


def load_package(
    artifacts: Mapping[str, Path], version: str | None = None, *, with_model: bool = True
) -> CaptureInspector:
    """Load the inspector of a packed model.

    Args:
        artifacts: The path of each artifact: `adapter`, `line`, `operating_point` and `params`; `base` unless the base
            is a checkpoint of the Hugging Face hub.
        version: Number of the registered version.
        with_model: Whether to load the model; without it the inspector prepares captures and draws them.

    Returns:
        The inspector.

    Raises:
        ModelError: The base or the adapter cannot be loaded.
        StageInputError: The operating point belongs to another adapter, or the line lacks a reference.
        ParamsError: The packed parameters cannot be read.
    """
    params = load_params(artifacts["params"])
    point = read_operating_point(artifacts["operating_point"], artifacts["adapter"])
    return CaptureInspector(
        _load_model(artifacts, params.model) if with_model else None,
        artifacts["line"],
        params,
        point.threshold,
        localizer_threshold=point.localizer_threshold,
        version=version,
    )


def _load_model(artifacts: Mapping[str, Path], settings: ModelParams) -> Inspector:
    from pinspect.model.families import checkpoint_of
    from pinspect.model.loading import load_inspector

    base = checkpoint_of(settings)
    if "base" in artifacts:
        base = base.at(artifacts["base"])
    return load_inspector(base, artifacts["adapter"])


def package_artifacts(folder: Path) -> dict[str, Path]:
    """Find the artifacts in a folder: a model that MLflow saved or downloaded, or its artifacts alone.

    Args:
        folder: The folder.

    Returns:
        The path of each artifact, by its name.

    Raises:
        ModelError: The folder does not exist or lacks an artifact.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder; pass a folder with a packed model, or a version and a project")
    if (folder / _MLMODEL).is_file():
        names = _mlflow_artifacts(folder / _MLMODEL)
        artifacts = {name: folder / path for name, path in names.items()}
    else:
        artifacts = {name: folder / file for name, file in _FILES.items() if (folder / file).exists()}
    missing = [name for name in _REQUIRED if name not in artifacts or not artifacts[name].exists()]
    if missing:
        raise ModelError(
            f"{folder}: not a packed model of pinspect: {', '.join(missing)} missing; download one with "
            "`mlflow artifacts download --artifact-uri models:/NAME/VERSION`"
        )
    return artifacts


def package_sha256(artifacts: Mapping[str, Path], code: Path) -> str:
    """Return the hash over everything that a packed model answers with.

    Comments and layout of the parameters do not enter it.

    Args:
        artifacts: The path of each artifact, by its name.
        code: The folder with the folder `pinspect`.

    Returns:
        sha256 in hexadecimal digits.

    Raises:
        StageInputError: A file is missing.
    """
    hashed: dict[str, Any] = {name: _digest(path) for name, path in artifacts.items() if name != "params"}
    hashed["params"] = yaml.safe_load(artifacts["params"].read_text(encoding="utf-8"))
    hashed["code"] = digests.code_digests(code, "**/*.py")
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    return digests.dvc_directory_hash(path) if path.is_dir() else digests.file_sha256(path)


def _mlflow_artifacts(path: Path) -> dict[str, str]:
    try:
        model: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        artifacts = cast(Mapping[str, Mapping[str, str]], model["flavors"]["python_function"]["artifacts"])
        return {name: artifact["path"] for name, artifact in artifacts.items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a model that pinspect registered ({type(error).__name__}: {error})") from None
