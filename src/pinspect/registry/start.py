"""Fetches the adapter of a registered version into models/start, where the stage train starts from it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from pinspect.core.errors import RegistryError
from pinspect.core.files import write_file
from pinspect.core.start import FILES, ORIGIN, START
from pinspect.inspection.package import package_artifacts
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import number_of, require_version, version_folder


def fetch_start(root: Path, settings: RegisterSettings, reference: str) -> str:
    """Copy the adapter that a training is to start from.

    Args:
        root: The project's folder.
        settings: The section `register`.
        reference: `train.start`: an alias or the number of a version, after the name of its model and a slash if it
            belongs to another line of the same registry (`pin-inspector/champion`). Empty: remove the copy.

    Returns:
        The name and number of the version; "" if the copy was removed.

    Raises:
        RegistryError: There is no such version, or its package has no adapter.
        ModelError: Its files are missing.
    """
    folder = root / START
    if not reference:
        for name in (ORIGIN, *FILES):
            (folder / name).unlink(missing_ok=True)
        return ""
    model, _, version_reference = reference.rpartition("/")
    with open_registry(root, settings) as client, tempfile.TemporaryDirectory(prefix="pinspect-") as scratch:
        version = require_version(client, model or settings.model_name, version_reference)
        name = f"{version.name}/{number_of(version)}"
        adapter = package_artifacts(version_folder(version, Path(scratch))).get("adapter")
        if adapter is None or not all((adapter / file).is_file() for file in FILES):
            raise RegistryError(f"{name}: its package has no adapter to start from; choose another version")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ORIGIN).unlink(missing_ok=True)  # written last: a start that is copied in part is none
        for file in FILES:
            shutil.copyfile(adapter / file, folder / file)
    write_file(folder / ORIGIN, json.dumps({"reference": reference, "version": name}, indent=2) + "\n")
    return name
