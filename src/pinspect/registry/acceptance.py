"""The acceptance test: challenger and champion answer a labeled folder, and the rules of promotion hold there, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from pinspect.captures.labeled_folder import LabeledFolder, read_labeled_folder
from pinspect.core.errors import CaptureError
from pinspect.core.params import Params
from pinspect.registry.evidence import new_evidence, opened, photographs_of
from pinspect.registry.rules import Rule, weigh_acceptance
from pinspect.registry.settings import RegistrySettings


@dataclass(frozen=True)
class Acceptance:
    """The result of an acceptance test.

    Attributes:
        folder: The folder.
        digest: The digest of its photographs and labels.
        captures: The number of its captures.
        remarks: Remarks on its captures, one line each.
        scores: Version -> metric -> value.
        not_inspected: Version -> capture -> why the version could not inspect it.
    """

    folder: str
    digest: str
    captures: int
    remarks: tuple[str, ...]
    scores: Mapping[str, Mapping[str, float]]
    not_inspected: Mapping[str, Mapping[str, str]]

    @classmethod
    def from_dict(cls, fields: Mapping) -> Acceptance:
        """Return the result that `dataclasses.asdict` wrote, read from JSON."""
        return cls(**{**fields, "remarks": tuple(fields["remarks"])})


def read_acceptance_folder(root: Path, params: Params, folder: Path) -> LabeledFolder:
    """Read the captures of an acceptance test.

    Args:
        root: The project's folder.
        params: The project's parameters.
        folder: The labeled folder.

    Raises:
        CaptureError: Labels cannot be used, or the project trains on captures of the folder; one line for each.
        StageInputError: The project has no record of its splits.
    """
    captures = read_labeled_folder(folder, params.contract())
    if trained_on := captures.trained_on(root, params.raw):
        lines = [f"{folder}: {name}: the project trains on this capture" for name in trained_on]
        lines += ["an acceptance test on training captures proves nothing; remove them from the folder"]
        raise CaptureError("\n".join(lines))
    return captures


def accept(
    params: Params, settings: RegistrySettings, folder: LabeledFolder, versions: Sequence[ModelVersion]
) -> tuple[Acceptance, list[Rule]]:
    """Let versions of the registry that is open answer the captures of a folder, and apply the rules.

    Args:
        params: The project's parameters.
        settings: The registry's settings.
        folder: The captures.
        versions: The challenger, then the champion if there is one.

    Returns:
        The figures, and the rules with their results.

    Raises:
        RegistryError: A version cannot be loaded.
    """
    contract = params.contract()
    evidence = []
    for version in versions:
        with opened(version) as inspector:
            photographs = photographs_of(folder, contract)
            evidence.append(new_evidence(inspector, version, photographs, contract, folder.digest))
    acceptance = Acceptance(
        folder=str(folder.folder),
        digest=folder.digest,
        captures=len(folder.captures),
        remarks=folder.remarks,
        scores={each.version: each.values(settings.report) for each in evidence},
        not_inspected={each.version: each.not_inspected for each in evidence},
    )
    ours, *theirs = evidence
    return acceptance, weigh_acceptance(ours, theirs[0] if theirs else None, settings)
