"""Which rows of the test split the report shows, and therefore need an evidence map."""

from __future__ import annotations

import pandas as pd

from pinspect.core.answers import PASSED
from pinspect.core.question import CAMERA, Question, camera_else_virtual

HITS_PER_MODE = 2  # right answers shown of each defect mode, and of passed captures
VIRTUAL_MISSES = 40  # cards of the virtual line at most; reports/predictions/test.csv has all answers
CASE = ["source", "file", "view", "kind"]  # the columns that make rows one case: one prompt in every shot


def shown_row_ids(answers: pd.DataFrame, question: Question) -> list[str]:
    """Return the ids of the rows whose cases the report shows.

    These are every wrong answer about the camera's captures, the first `VIRTUAL_MISSES` wrong answers of the virtual
    line to production's prompt, and the hits that `first_hits` selects.

    Args:
        answers: Predictions of one model and decoding.
        question: What production asks.
    """
    wrong = answers[answers["answer"] != answers["expected"]]
    camera = wrong["source"] == CAMERA
    virtual = question.answers(wrong[~camera], model=None, shot=None)
    hits = [row_id for rows in first_hits(answers, question) for row_id in rows["id"]]
    return [*wrong.loc[camera, "id"], *virtual["id"].head(VIRTUAL_MISSES), *hits]


def first_hits(answers: pd.DataFrame, question: Question) -> list[pd.DataFrame]:
    """Return the first cases that were answered right in every shot with production's prompt.

    At most `HITS_PER_MODE` of each defect mode and of passed captures are selected, in the order of the files, which
    are named after the hash of their content.

    Args:
        answers: Predictions of one model and decoding.
        question: What production asks.

    Returns:
        The rows of each case, all shots together; defect modes in alphabetical order, then passed captures.
    """
    by_mode: dict[str, list[pd.DataFrame]] = {}
    for _, rows in camera_else_virtual(question.answers(answers, model=None, shot=None)).groupby(CASE, sort=True):
        if (rows["answer"] == rows["expected"]).all():
            by_mode.setdefault(rows["expected_defect_mode"].iloc[0], []).append(rows)
    modes = sorted(by_mode, key=lambda mode: (mode == PASSED, mode))
    return [rows for mode in modes for rows in by_mode[mode][:HITS_PER_MODE]]
