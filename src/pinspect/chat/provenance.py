"""What the rows of the chat dataset come from: the labels of the captures, and what each composite shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pinspect.core.answers import VERDICT
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.rows import Row


@dataclass(frozen=True)
class Provenance:
    """The labels and the composites, as the stages before the chat dataset have written them.

    Attributes:
        labels: Raw file -> the values of `core.answers.VERDICT` in its label.
        shown: Composite, relative to its folder -> the raw file that it shows; of a stacked one, the inspected capture.
    """

    labels: Mapping[str, tuple[str, ...]]
    shown: Mapping[str, str]

    @classmethod
    def read(cls, data: Path) -> Provenance:
        """Read raw/manifest.csv and composited/manifest.csv below `data`. Raises StageInputError if one is missing."""
        raw = read_manifest(data / "raw" / MANIFEST, ("file", *VERDICT))
        composited = read_manifest(data / "composited" / MANIFEST, ("file", "raw_file"))
        labels = {file: tuple(label) for file, *label in raw[["file", *VERDICT]].itertuples(index=False)}
        return cls(labels, dict(zip(composited["file"], composited["raw_file"], strict=True)))

    def columns(self, row: Row) -> dict[str, object]:
        """Return the label of a row's capture, and the raw file that its last image shows; None for what is unknown."""
        label = self.labels.get(str(row.get("file")), (None,) * len(VERDICT))
        images = row.get("images")
        shown = [self.shown.get(str(image)) for image in images] if isinstance(images, list) else []
        return {
            **{f"label_{field}": value for field, value in zip(VERDICT, label, strict=True)},
            "shown": shown[-1] if shown and all(shown) else None,
        }
