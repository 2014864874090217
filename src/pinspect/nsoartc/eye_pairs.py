"""The pairs of views that two eyes have of one connector, and the files of their double-eyes."""

# Cells of a manifest are strings, but pandas types them as Any.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import chain, groupby, islice
from pathlib import PurePosixPath

import pandas as pd

from pinspect.core.lines import LABEL, LineRule, lines_of, pair_eyes
from pinspect.core.manifests import WINDOW
from pinspect.core.names import eye_of, shot_of
from pinspect.core.temporary_database import temporary_database

COLUMNS = ("file", "sha256", "source", "capture", *LABEL)

Pair = tuple[str, str, str]  # the files of the double-eye, the left and the right view


class EyePairs:
    """The pairs of views of one connector, in a temporary database.

    Args:
        parts: The raw manifest, whole or in parts, with `COLUMNS`.
        rule: The lines of the manifest.
    """

    def __init__(self, parts: Iterable[pd.DataFrame], rule: LineRule):
        self._database = temporary_database(f"""
            CREATE TABLE views ({", ".join(COLUMNS)}, shot, PRIMARY KEY (file)) WITHOUT ROWID;
            CREATE INDEX shots ON views (source, shot, capture);
            CREATE TABLE pairs (eyes_file, left_file PRIMARY KEY, right_file);
            CREATE INDEX right_files ON pairs (right_file);
        """)
        self._remarks: list[str] = []
        insert = f"INSERT INTO views VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
        for part in parts:
            views = part.loc[part["capture"].map(eye_of) != "", list(COLUMNS)]
            self._database.executemany(insert, views.assign(shot=views["capture"].map(shot_of)).itertuples(index=False))
        for views in self._whole_shots():
            pairs, remarks = pair_eyes(views, lines_of(views, rule))
            rows = ((f"{PurePosixPath(left).with_suffix('')}-EYES.png", left, right) for left, right in pairs)
            self._database.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
            self._remarks += remarks

    def of_left(self, files: Iterable[str], set_aside: Container[str]) -> Iterator[Pair]:
        """Yield the pairs whose left view is among some files, without those of which a view is set aside.

        Args:
            files: Files of views, and of other captures.
            set_aside: Names of captures.
        """
        for file in files:
            pairs = self._database.execute("SELECT * FROM pairs WHERE left_file = ?", (file,)).fetchall()
            yield from (pair for pair in pairs if not self._lost(pair, set_aside))

    def views(self, pairs: Iterable[Pair]) -> pd.DataFrame:
        """Return the rows of the views of some pairs, with `COLUMNS`."""
        query = f"SELECT {', '.join(COLUMNS)} FROM views WHERE file = ?"
        rows = [self._database.execute(query, (file,)).fetchone() for _, *files in pairs for file in files]
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)

    def eyes_file(self, file: str, set_aside: Container[str]) -> str:
        """Return the double-eye's file of a view; empty if there is none."""
        query = "SELECT * FROM pairs WHERE left_file = ? OR right_file = ?"
        pairs = self._database.execute(query, (file, file))
        return next((pair[0] for pair in pairs if not self._lost(pair, set_aside)), "")

    def remarks(self, set_aside: Container[str]) -> list[str]:
        """Return reasons why views have no double-eye, one line each."""
        remarks = [*self._remarks]
        for pair in self._database.execute("SELECT * FROM pairs"):
            if lost := self._lost(pair, set_aside):
                both = " and ".join(self._names(pair))
                remarks.append(f"{both}: no double-eye: {' and '.join(lost)} set aside")
        return remarks

    def _lost(self, pair: Pair, set_aside: Container[str]) -> list[str]:
        """Return the names of the views of a pair that are among the captures set aside."""
        return [name for name in self._names(pair) if name in set_aside]

    def _names(self, pair: Pair) -> list[str]:
        query = "SELECT capture FROM views WHERE file = ?"
        return [self._database.execute(query, (file,)).fetchone()[0] for file in pair[1:]]

    def _whole_shots(self) -> Iterator[pd.DataFrame]:
        """Yield all views, those of a shot together."""
        query = f"SELECT {', '.join(COLUMNS)}, shot FROM views ORDER BY source, shot, capture"
        shots = groupby(self._database.execute(query), key=lambda row: (row[2], row[-1]))
        while rows := list(chain.from_iterable(list(views) for _, views in islice(shots, WINDOW))):
            yield pd.DataFrame([row[:-1] for row in rows], columns=list(COLUMNS), dtype=str)
