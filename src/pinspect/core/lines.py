"""Find out which captures belong to one line, and which two captures show one connector to two eyes.

A left and a right camera see a connector from different places, so each eye has its own references and its own unit
space. File names reveal the eye and the shot (see `core.names`): a shot has two views of one connector.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import pandas as pd

from pinspect.core.names import EYES, eye_of, series_name, shot_of

COLUMNS = ("file", "source", "capture", "shape", "role")
LABEL = ("shape", "judgement", "defect_mode", "defect_position", "role")


class Line(NamedTuple):
    """A set of captures with one unit space.

    Attributes:
        source: `camera` or `virtual`.
        shape: The pin shape, e.g. `CYLN`.
        eye: `left` or `right` where two cameras look at a connector, else empty.
    """

    source: str
    shape: str
    eye: str = ""

    def __str__(self) -> str:
        """Join the words that are not empty, e.g. `camera CYLN left`."""
        return " ".join(filter(None, self))

    @property
    def aspect(self) -> str:
        """The shape and the eye as file names have them: `CYLN` or `CYLN-left`."""
        return "-".join(filter(None, (self.shape, self.eye)))

    @property
    def unit_space(self) -> str:
        """The file of its unit space, relative to the dst folder."""
        return f"unit_space/{self.source}-{self.aspect}.npz"


LineRule = dict[Line, Line]


def line_rule(parts: Iterable[pd.DataFrame]) -> LineRule:
    """Find the lines of a manifest.

    Eyes count where a source has captures of a shape from both eyes. An eye without references uses the references
    without an eye, if the source has any; otherwise the eye is a line without a unit space.

    Args:
        parts: The raw manifest, whole or in parts, with `COLUMNS`.

    Returns:
        The line of the captures of a source, a shape and an eye, as their names have it.
    """
    eyes: dict[Line, set[str]] = defaultdict(set)
    with_references: set[Line] = set()
    kinds: set[Line] = set()
    for captures in parts:
        by_eye = _by_eye(captures)
        kinds.update(by_eye)
        with_references.update(line for line, role in zip(by_eye, captures["role"], strict=True) if role == "reference")
    for line in kinds:
        eyes[line._replace(eye="")].add(line.eye)

    def line_of(line: Line) -> Line:
        shared = line._replace(eye="")
        has_both_eyes = eyes[shared].issuperset(EYES)
        return line if has_both_eyes and (line in with_references or shared not in with_references) else shared

    return {line: line_of(line) for line in kinds}


def lines_of(captures: pd.DataFrame, rule: LineRule | None = None) -> dict[str, Line]:
    """Return the line of each capture, by its file.

    Args:
        captures: Rows of the raw manifest, with `COLUMNS`.
        rule: The lines of the manifest, from `line_rule`; needed unless the rows are the whole manifest.
    """
    lines = line_rule([captures]) if rule is None else rule
    return {file: lines[line] for file, line in zip(captures["file"], _by_eye(captures), strict=True)}


def _by_eye(captures: pd.DataFrame) -> list[Line]:
    columns = zip(*(captures[name] for name in ("source", "shape", "capture")), strict=True)
    return [Line(source, shape, eye_of(capture)) for source, shape, capture in columns]


def pair_eyes(captures: pd.DataFrame, lines: dict[str, Line]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pair the left and the right view of each connector.

    Args:
        captures: The raw manifest, with `COLUMNS` and `LABEL`.
        lines: The line of each capture, from `lines_of`.

    Returns:
        The files of the left and the right view of each pair, and one remark for each view without a partner. A shot of
        the series that only one eye has seen needs no partner.
    """
    shots: dict[tuple[str, str], dict[str, dict[Hashable, str]]] = defaultdict(dict)
    for row in captures.to_dict("records"):
        if eye := eye_of(row["capture"]):
            shots[row["source"], shot_of(row["capture"])].setdefault(eye, row)
    pairs: list[tuple[str, str]] = []
    remarks: list[str] = []
    for by_eye in shots.values():
        views = [by_eye[eye] for eye in EYES if eye in by_eye]
        names = [view["capture"] for view in views]
        if len(views) == 1 and series_name(names[0]):
            continue
        if problem := _pair_problem(views, [lines[view["file"]] for view in views]):
            remarks.append(f"{' and '.join(names)}: no double-eye: {problem}")
        else:
            left, right = views
            pairs.append((left["file"], right["file"]))
    return pairs, remarks


def _pair_problem(views: list[dict[Hashable, str]], lines: list[Line]) -> str:
    """Return why the views of one connector make no pair; empty if they do."""
    if len(views) == 1:
        name = views[0]["capture"]
        eye = eye_of(name)
        partner = {"left": "right", "right": "left"}[eye] + name.removeprefix(eye)
        return f"there is no {partner}; add it, or take the eye out of the name"
    left, right = (" ".join(view[column] for column in LABEL) for view in views)
    if left != right:
        return f"their labels differ ({left}; {right}); correct the wrong one in labels.csv"
    if not all(line.eye for line in lines):
        return "an eye has no references; add passed captures of both eyes with the role 'reference'"
    return ""
