"""Lines: which captures are compared with one another, and which two show one connector to two eyes.

Captures named `left_...` and `right_...` come from two cameras. Their perspectives differ, so each eye has references
and a unit space of its own; names that agree in all but the eye are the two views of one connector.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pandas as pd

EYES = ("left", "right")
COLUMNS = ("file", "source", "capture", "shape", "role")
LABEL = ("shape", "judgement", "defect_mode", "defect_position", "role")


class Line(NamedTuple):
    """What a unit space is made for: a source, a shape and, where two cameras look at a connector, an eye."""

    source: str
    shape: str
    eye: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))

    @property
    def aspect(self) -> str:
        """The shape as the line's eye sees it, as files are named after it: `CYLN`, or `CYLN-left`."""
        return "-".join(filter(None, (self.shape, self.eye)))

    @property
    def unit_space(self) -> str:
        """Where its unit space lies in the dst folder."""
        return f"unit_space/{self.source}-{self.aspect}.npz"


def eye_of(capture: str) -> str:
    """The eye that a capture's name begins with; empty if there is none."""
    eye, _, rest = capture.partition("_")
    return eye if eye in EYES and rest else ""


def lines_of(captures: pd.DataFrame) -> dict[str, Line]:
    """The line of each capture of the raw manifest (`COLUMNS` of it), by file.

    Eyes count where a source has captures of a shape by both of them. An eye without references of its own then gets
    no unit space, unless there are references without an eye: those serve it as they serve a single camera.
    """
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    with_references = set()
    for row in captures.itertuples():
        seen[row.source, row.shape].add(eye_of(row.capture))
        if row.role == "reference":
            with_references.add(Line(row.source, row.shape, eye_of(row.capture)))

    def line(row) -> Line:
        own, shared = Line(row.source, row.shape, eye_of(row.capture)), Line(row.source, row.shape)
        counts = seen[shared.source, shared.shape].issuperset(EYES)
        return own if counts and (own in with_references or shared not in with_references) else shared

    return {row.file: line(row) for row in captures.itertuples()}


def pair_eyes(captures: pd.DataFrame, lines: dict[str, Line]) -> tuple[list[tuple[str, str]], list[str]]:
    """The files of the left and the right view of each connector that has both, and remarks on those that have not.

    captures: the raw manifest, labels included. lines: as `lines_of` gives them.
    """
    views: dict[tuple[str, str], dict[str, dict]] = defaultdict(dict)
    for row in captures.to_dict("records"):
        if eye := eye_of(row["capture"]):
            views[row["source"], row["capture"].removeprefix(eye)][eye] = row
    pairs, remarks = [], []
    for both in views.values():
        found = [both[eye] for eye in EYES if eye in both]
        files = tuple(row["file"] for row in found)
        if problem := _no_pair(found, [lines[file] for file in files]):
            remarks.append(f"{' and '.join(row['capture'] for row in found)}: no double-eye: {problem}")
        else:
            pairs.append(files)
    return pairs, remarks


def _no_pair(views: list[dict], lines: list[Line]) -> str:
    """Why the views of one connector make no pair; empty if they do."""
    if len(views) == 1:
        eye = eye_of(views[0]["capture"])
        other = next(one for one in EYES if one != eye)
        return f"there is no {other}{views[0]['capture'].removeprefix(eye)}; add it, or take the eye out of the name"
    left, right = (" ".join(view[name] for name in LABEL) for view in views)
    if left != right:
        return f"their labels differ ({left}; {right}); correct the wrong one in labels.csv"
    if not all(line.eye for line in lines):
        return "an eye has no references; add passed captures of both eyes with the role 'reference'"
    return ""
