"""Scores a registered version on a folder of labeled captures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pinspect.captures.labeled_folder import LabeledFolder
from pinspect.core.errors import ImageError, UnitSpaceError
from pinspect.core.params import Params
from pinspect.evaluation.folder_score import FolderScore
from pinspect.evaluation.score_page import PICTURED
from pinspect.inspection.files import read_photograph
from pinspect.inspection.photograph_inspector import PhotographInspector
from pinspect.registry.connection import open_registry
from pinspect.registry.evidence import new_evidence, opened, photographs_of, progress, question_of
from pinspect.registry.settings import RegistrySettings
from pinspect.registry.versions import chosen_version


def score_folder(
    root: Path,
    params: Params,
    settings: RegistrySettings,
    folder: LabeledFolder,
    reference: str = "",
    shape: str = "",
) -> FolderScore:
    """Let a registered version answer the captures of a folder, with its packed code, and score the answers.

    Nothing is stored.

    Args:
        root: The project's folder.
        params: The project's parameters.
        settings: The registry's settings.
        folder: The captures.
        reference: Number or alias of the version. Empty: the champion, or the challenger without a champion.
        shape: The pin shape that the version gets; empty for the shape that fits best.

    Returns:
        The score, with pictures of the misses and of the captures that were not inspected.

    Raises:
        RegistryError: There is no such version, or it cannot be loaded.
        StageInputError: The project has no record of its splits.
    """
    contract = params.contract()
    trained_on = folder.trained_on(root, params.raw)
    with open_registry(root, settings.register) as client:
        version = chosen_version(client, settings.register.model_name, reference)
        photographs = photographs_of(folder, contract, shape)
        with opened(version) as inspector:
            evidence = new_evidence(inspector, version, photographs, contract, folder.digest)
            score = FolderScore(
                model=version.name,
                version=evidence.version,
                view=question_of(version).view,
                folder=str(folder.folder),
                digest=folder.digest,
                answered=evidence.answered,
                not_inspected=evidence.not_inspected,
                trained_on=trained_on,
                remarks=folder.remarks,
                contract=contract,
                settings=settings.report,
            )
            return replace(score, pictures=_pictures(inspector, score, folder, shape))


def _pictures(
    inspector: PhotographInspector, score: FolderScore, folder: LabeledFolder, shape: str
) -> dict[str, bytes]:
    """Return the first misses as the model sees them, and the first captures that were not inspected as they are."""
    pictures: dict[str, bytes] = {}
    misses = [miss.file for miss in score.misses[:PICTURED]]
    for file in [*progress(misses, "pictures"), *list(score.not_inspected)[:PICTURED]]:
        try:
            photograph = read_photograph(folder.images / file, inspector.max_pixels, file)
            seen = file not in score.not_inspected
            pictures[file] = inspector.pictures(photograph, shape or None)[score.view] if seen else photograph.content
        except (ImageError, UnitSpaceError):
            continue
    return pictures
