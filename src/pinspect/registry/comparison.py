"""Gathers the answers of registered versions to one test set: stored answers, or new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from pinspect.core import digests, predictions, prompts
from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.errors import ImageError, RegistryError, StageInputError
from pinspect.core.params import Params
from pinspect.core.product_files import has_product, read_product
from pinspect.core.question import camera_else_virtual
from pinspect.core.rows import read_chat
from pinspect.inspection.records import Photograph
from pinspect.registry.evidence import Evidence, LabeledPhotograph, new_evidence, opened, question_of, table_of
from pinspect.registry.versions import EVALUATION_TAG, PREDICTIONS, number_of, stored_report


class _TestPhotograph(LabeledPhotograph):
    """A photograph of the test split, which stage raw has checked; it may lie in an archive."""

    def read(self, max_pixels: int) -> Photograph:
        """Return the photograph, of any size: stage raw has checked it. Raises ImageError if it cannot be read."""
        try:
            return Photograph(self.name, read_product(self.path))
        except OSError as error:
            raise ImageError(f"{self.name}: {self.path} cannot be read: {error.strerror}; run dvc repro") from None


def on_one_test_set(root: Path, params: Params, versions: Sequence[ModelVersion]) -> list[Evidence]:
    """Gather the evidence of versions on the same test set.

    If the stored answers of all versions belong to one test set, they are the evidence. Otherwise the present test set
    of the project counts, and a version that was scored on another one answers it now: with its own adapter, line and
    code, as in production.

    Args:
        root: The project's folder.
        params: The project's parameters.
        versions: The versions to compare.

    Returns:
        The evidence of each version, in the same order.

    Raises:
        RegistryError: A version cannot answer, or its evaluation is stored in part only.
        StageInputError: The project lacks files of the present test set.
    """
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        stored = [_stored(version, Path(folder) / number_of(version)) for version in versions]
    complete = [evidence for evidence in stored if evidence]
    if len(complete) == len(versions) and len({evidence.test_set for evidence in complete}) == 1:
        return complete
    contract = params.contract()
    photographs = _test_photographs(root, contract)
    present = []
    for version, evidence in zip(versions, stored, strict=True):
        test_set = digests.digest_of_test_set(table_of(photographs, {}, contract, question_of(version)))
        if evidence and evidence.test_set == test_set:
            present.append(evidence)
        else:
            with opened(version) as inspector:
                present.append(new_evidence(inspector, version, photographs, contract, test_set))
    return present


def _stored(version: ModelVersion, folder: Path) -> Evidence | None:
    """Return the evidence that is stored with a version; None if it has none."""
    folder.mkdir()
    path = stored_report(version, PREDICTIONS, folder)
    if path is None or EVALUATION_TAG not in version.tags:
        return None
    if digests.file_sha256(path) != version.tags[EVALUATION_TAG]:
        raise RegistryError(
            f"version {number_of(version)}: an interrupted registration has renewed its evaluation in part; run dvc "
            "repro register"
        )
    answered = camera_else_virtual(question_of(version).answers(predictions.read(path)))
    return Evidence(number_of(version), answered, digests.digest_of_test_set(answered))


def _test_photographs(root: Path, contract: AnswerContract) -> Sequence[LabeledPhotograph]:
    """Return the captures of the test split: the camera's, else the virtual line's."""
    chat = root / "data/chat/test.jsonl"
    rows = camera_else_virtual([row for row in read_chat(chat) if row["shot"] == prompts.ZERO_SHOT])
    if not rows:
        raise StageInputError(f"{chat}: no capture to compare versions on; add captures")
    photographs = [
        _TestPhotograph(
            row["file"],
            root / "data/raw" / row["file"],
            row["capture"],  # on a line with two cameras the name holds the eye
            contract.parse(row["answer"], AnswerKind(row["answer_kind"])),
            source=row["source"],
            shape=row["shape"],
        )
        for row in {row["file"]: row for row in rows}.values()
    ]
    for photograph in photographs:
        if not has_product(photograph.path):
            raise StageInputError(f"{photograph.path}: not found; run dvc checkout, or dvc repro")
    return photographs
