"""The pairs of views that two eyes have of one connector, and the files of their double-eyes."""

# Cells of a manifest are strings, but pandas types them as Any.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pandas as pd

from pinspect.core.lines import Line, pair_eyes


@dataclass(frozen=True)
class EyePairs:
    """The pairs of views of one connector.

    Attributes:
        pairs: The double-eye's file -> the files of the left and the right view.
        names: The name of each of these views.
        remarks: Reasons why views make no pair.
    """

    pairs: dict[str, tuple[str, str]]
    names: dict[str, str]
    remarks: list[str]

    @classmethod
    def of(cls, views: pd.DataFrame, lines: dict[str, Line]) -> EyePairs:
        """Pair the captures whose names have an eye.

        Args:
            views: Their rows of the raw manifest.
            lines: The line of each, by its file.
        """
        pairs, remarks = pair_eyes(views, lines)
        names: dict[str, str] = dict(zip(views["file"], views["capture"], strict=True))
        return cls({f"{PurePosixPath(pair[0]).with_suffix('')}-EYES.png": pair for pair in pairs}, names, remarks)

    def of_left(self, files: Container[str]) -> EyePairs:
        """Return the pairs whose left view is among some files."""
        return replace(self, pairs={eyes: pair for eyes, pair in self.pairs.items() if pair[0] in files})

    def lost(self, pair: tuple[str, str], set_aside: Container[str]) -> list[str]:
        """Return the names of the views of a pair that are among the captures set aside."""
        return [self.names[file] for file in pair if self.names[file] in set_aside]

    def files(self, set_aside: Container[str]) -> tuple[dict[str, str], list[str]]:
        """Return the double-eye's file by each view's file, and remarks on captures without a double-eye.

        Args:
            set_aside: Names of captures.
        """
        files: dict[str, str] = {}
        remarks = [*self.remarks]
        for eyes_file, pair in self.pairs.items():
            if lost := self.lost(pair, set_aside):
                both = " and ".join(self.names[file] for file in pair)
                remarks.append(f"{both}: no double-eye: {' and '.join(lost)} set aside")
            else:
                files |= dict.fromkeys(pair, eyes_file)
        return files, remarks
