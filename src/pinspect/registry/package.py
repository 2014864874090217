"""Packs what a version answers with: adapter, base, operating point, line, line profile and parameters."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, rank_references
from pinspect.core import digests
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params
from pinspect.core.question import Question, preferred_source
from pinspect.inspection.line_profile import read_line_profile
from pinspect.registry.candidate import Candidate
from pinspect.registry.versions import ADAPTER_TAG


@dataclass(frozen=True)
class Package:
    """The artifacts of a version.

    Attributes:
        artifacts: The path of each artifact, by its name.
        sha256: The hash over everything that decides an answer.
    """

    artifacts: Mapping[str, str]
    sha256: str


@contextlib.contextmanager
def pack(candidate: Candidate, params: Params) -> Iterator[Package]:
    """Gather the artifacts of a version in one place.

    A base that lies on the hub stays there: the parameters name it with its revision. The hash covers only the
    parameters that decide an answer, so that another setting does not make another version.

    Args:
        candidate: The evaluated adapter.
        params: The project's parameters.

    Yields:
        The package; its files exist while the context lasts.

    Raises:
        StageInputError: The line profile is missing or broken, or a shape has no unit space.
    """
    read_line_profile(candidate.line_profile)  # a station must not be the first to find it broken
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        line = Path(folder) / "line"
        pack_line(candidate.root, params.answers.shapes, line)
        artifacts = {
            "adapter": candidate.adapter,
            "base": candidate.base.folder and candidate.base.folder.resolve(),  # MLflow packs no linked folder
            "line": line,
            "line_profile": candidate.line_profile,
            "operating_point": candidate.operating_point,
            "params": candidate.root / "params.yaml",
        }
        hashed = {
            "adapter": candidate.digests[ADAPTER_TAG],  # covers the operating point
            "base": candidate.digests["base_sha256"],
            "line": digests.dvc_directory_hash(line),
            "line_profile": digests.file_sha256(candidate.line_profile),
            "params": _answer_params(params),
        }
        sha256 = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
        yield Package({name: str(path) for name, path in artifacts.items() if path}, sha256)


def pack_line(root: Path, shapes: Sequence[str], out: Path) -> None:
    """Gather the unit space and the reference of each shape, and of each eye if the line has two.

    A shape comes from the camera if the camera has references of it, otherwise from the virtual line.

    Args:
        root: The project's folder.
        shapes: The shapes of the product.
        out: The folder to write.

    Raises:
        StageInputError: A shape has no unit space.
    """
    references = rank_references(
        read_manifest(root / "data/raw/manifest.csv", RAW_COLUMNS),
        read_manifest(root / "data/dst/manifest.csv", DST_COLUMNS),
    )
    out.mkdir(parents=True, exist_ok=True)
    for shape in shapes:
        lines = [line for line in references if line.shape == shape]
        if not lines:
            raise StageInputError(
                f"data/dst: no unit space of shape {shape}; add references of it, or remove it from answers.shapes"
            )
        source = preferred_source({line.source for line in lines})
        for line in (line for line in lines if line.source == source):
            reference = root / "data/raw" / references[line][0].file
            shutil.copyfile(root / "data/dst" / line.unit_space, out / f"{line.aspect}.npz")
            shutil.copyfile(reference, out / f"{line.aspect}-reference{reference.suffix}")


def _answer_params(params: Params) -> dict:
    """Return the parameters that decide an answer."""
    sections = params.model_dump(mode="json", by_alias=True)
    return {name: sections[name] for name in ("layout", "answers", "dst", "composite")} | {
        "family": params.model.family,
        "max_pixels": params.raw.max_pixels,
        "asked": list(astuple(Question.of(params.evaluate))),
    }
