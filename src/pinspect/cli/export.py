"""Exports a registered version as one merged checkpoint, which vLLM and other engines can serve."""

from __future__ import annotations

import tempfile
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from pinspect.core.errors import ModelError, RegistryError
from pinspect.core.files import write_file
from pinspect.core.params import load_params
from pinspect.core.prompts import SHOTS
from pinspect.evaluation.score_names import SCORE_NAMES
from pinspect.model.card import CARD, scored_card
from pinspect.model.checkpoint_files import one_line
from pinspect.model.families import checkpoint_of
from pinspect.model.merging import export_merged
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import RegisterSettings
from pinspect.registry.versions import (
    ADAPTER_TAG,
    EVALUATION_TAG,
    TEST_SET_TAG,
    number_of,
    require_version,
    version_folder,
)

_DIGESTS = (ADAPTER_TAG, "base_sha256", "dataset_digest", TEST_SET_TAG, EVALUATION_TAG, "git_commit")


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
        registered = require_version(client, settings.model_name, reference)
        version = number_of(registered)
        folder = version_folder(registered, Path(scratch))
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
        write_file(out / CARD, _card(paths["adapter"], registered))
    return version


def push(out: Path, repository: str) -> str:
    """Upload an exported folder to a repository of the Hugging Face hub; a new repository is private.

    Args:
        out: The exported folder.
        repository: Name of the repository, such as `company/pin-inspector`.

    Returns:
        The address of the commit.

    Raises:
        ModelError: Network access is off, or the hub refuses.
    """
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{out} is complete, but not pushed: pinspect works offline; upload it with "
            f"`HF_HUB_OFFLINE=0 hf upload {repository} {out}`, or export again with HF_HUB_OFFLINE=0"
        )
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=out, commit_message="Export of pinspect")
    except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise ModelError(
            f"{out} is complete, but {repository} did not take it: {one_line(error)}; correct this (`hf auth login`), "
            f"then upload it with `HF_HUB_OFFLINE=0 hf upload {repository} {out}`"
        ) from None
    return str(commit.commit_url)


def _card(adapter: Path, version: ModelVersion) -> str:
    """Return the card of the export of a version, from the card of its adapter and the version's scores and digests."""
    card = (adapter / CARD).read_text(encoding="utf-8") if (adapter / CARD).is_file() else ""
    tags: dict[str, str] = version.tags
    scores = {f"{shot}.{name}": tags.get(f"{shot}.{name}") for shot in SHOTS for name in SCORE_NAMES}
    digests = {name: tags[name] for name in _DIGESTS if name in tags}
    name = f"{version.name} version {number_of(version)}"
    return scored_card(card, name, {name: float(value) for name, value in scores.items() if value}, digests)
