"""Packs what a version answers with: adapter, base, operating point, line, line profile, parameters and code."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pinspect
from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, rank_references, raw_captures
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params
from pinspect.core.product_files import read_product
from pinspect.core.question import preferred_source
from pinspect.inspection.line_profile import read_line_profile
from pinspect.inspection.package import CODE, package_sha256
from pinspect.registry.candidate import Candidate

_ROOMS = ("core", "nsoartc", "composites", "model", "inspection")


@dataclass(frozen=True)
class Package:
    """The artifacts of a version.

    Attributes:
        artifacts: The path of each artifact, by its name.
        code: The folder `pinspect` with the rooms that inspect.
        sha256: The hash of artifacts and code (`inspection.package.package_sha256`).
    """

    artifacts: Mapping[str, str]
    code: Path
    sha256: str


@contextlib.contextmanager
def pack(candidate: Candidate, params: Params) -> Iterator[Package]:
    """Gather the artifacts of a version in one place.

    A base that lies on the hub stays there: the parameters name it with its revision.

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
        named = {
            "adapter": candidate.adapter,
            "base": candidate.base.folder and candidate.base.folder.resolve(),  # MLflow packs no linked folder
            "line": line,
            "line_profile": candidate.line_profile,
            "operating_point": candidate.operating_point,
            "params": candidate.root / "params.yaml",
        }
        artifacts = {name: path for name, path in named.items() if path}
        code = Path(folder) / CODE
        pack_code(code / "pinspect")
        sha256 = package_sha256(artifacts, code)
        yield Package({name: str(path) for name, path in artifacts.items()}, code / "pinspect", sha256)


def pack_code(out: Path) -> None:
    """Copy the rooms that a model inspects with.

    Args:
        out: The folder `pinspect` to make.
    """
    source = Path(pinspect.__file__).parent
    out.mkdir(parents=True)
    for path in [source / "__init__.py", *(path for room in _ROOMS for path in (source / room).rglob("*.py"))]:
        copy = out / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


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
    captures = raw_captures(read_manifest(root / "data/raw/manifest.csv", RAW_COLUMNS))
    references = rank_references(captures, read_manifest(root / "data/dst/manifest.csv", DST_COLUMNS))
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
            (out / f"{line.aspect}-reference{reference.suffix}").write_bytes(read_product(reference))
