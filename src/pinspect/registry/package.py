"""Packs what a version answers with: adapter, base, operating point, line, line profile and parameters."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from pinspect.core import digests
from pinspect.core.params import Params
from pinspect.core.question import Question
from pinspect.inspection.inspector import pack_line
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


def _answer_params(params: Params) -> dict:
    """Return the parameters that decide an answer."""
    sections = params.model_dump(mode="json", by_alias=True)
    return {name: sections[name] for name in ("layout", "answers", "dst", "composite")} | {
        "family": params.model.family,
        "max_pixels": params.raw.max_pixels,
        "asked": list(astuple(Question.of(params.evaluate))),
    }
