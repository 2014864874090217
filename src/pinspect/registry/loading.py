"""Loads inspectors: registered versions of a project, or packed models in folders."""

from __future__ import annotations

import os
from pathlib import Path

from pinspect.inspection.inspector_process import InspectorProcess
from pinspect.inspection.package import CODE, load_package, package_artifacts
from pinspect.inspection.photograph_inspector import PhotographInspector
from pinspect.registry.settings import load_register_settings


def load_inspector(version_or_folder: str | int | Path = "", project: str | Path = ".") -> PhotographInspector:
    """Load an inspector.

    A registered version, or a folder that was downloaded from a registry, inspects in a process of its own, with the
    code that it was registered with.

    Args:
        version_or_folder: The alias or the number of a registered version, such as `champion` or 3; or the folder of a
            packed model: a `Path`, or a string with a path separator, such as `./model`. Empty: the champion, or the
            challenger if there is no champion yet.
        project: The folder of the project whose registry has the version. A packed model needs no project.

    Returns:
        The inspector: call it with a photograph, or with a list of photographs.

    Raises:
        RegistryError: There is no such version; RegistryUnreachableError if the registry does not answer.
        ModelError: The folder is not a packed model, or the model cannot be loaded.
        ParamsError: The project has no `settings.yaml`, or a broken one.
        ModuleNotFoundError: `pinspect` is installed without `[station]` or `[pipeline]`.
    """
    name = os.fspath(version_or_folder) if isinstance(version_or_folder, str | Path) else str(version_or_folder)
    try:
        if isinstance(version_or_folder, Path) or os.sep in name:
            folder = Path(name)
            artifacts = package_artifacts(folder)
            return InspectorProcess(folder) if (folder / CODE).is_dir() else load_package(artifacts)
        from pinspect.registry.versions import load_registered  # a packed model needs no MLflow

        return load_registered(Path(project), load_register_settings(Path(project)), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"load_inspector needs the package {error.name}; install it with: pip install 'pinspect[station]'",
            name=error.name,
        ) from None
