"""Production's prompt, and which captures count."""

import pandas as pd

from pinspect.core.predictions import BASELINE
from pinspect.core.prompts import ONE_SHOT
from pinspect.core.question import Question, camera_else_virtual, preferred_source
from tests.support.evaluation_examples import PARAMS, answered, baseline, chat_row

QUESTION = Question.of(PARAMS.evaluate)


def test_the_question_selects_its_rows_of_a_chat_dataset_each_capture_once():
    rows = [
        chat_row(number, view=view, kind=kind, shot=shot)
        for number in range(3)
        for view in ("RAW", "DST")
        for kind in ("two_image", "stacked")
        for shot in ("zero_shot", "one_shot")
    ]
    assert Question("DST", "two_image", "constrained") == QUESTION
    assert [row["id"] for row in QUESTION.rows(rows)] == [
        f"camera-{number}-DST-two_image-zero_shot" for number in range(3)
    ]


def test_the_question_selects_its_answers_of_one_model_shot_and_decoding():
    rows = [chat_row(0), chat_row(0, view="RAW"), chat_row(0, kind="stacked"), chat_row(0, shot=ONE_SHOT)]
    table = pd.concat([answered(rows), answered(rows[:1], decoding="free"), baseline(rows[:1])], ignore_index=True)
    assert QUESTION.answers(table).index.tolist() == [0]
    assert QUESTION.answers(table, shot=ONE_SHOT).index.tolist() == [3]
    assert QUESTION.answers(table, model=BASELINE).index.tolist() == [5]
    assert QUESTION.answers(table, model=None).index.tolist() == [0, 5]


def test_camera_captures_count_or_virtual_ones_if_there_are_no_camera_captures():
    camera, virtual = chat_row(0), chat_row(1, source="virtual")
    assert camera_else_virtual([virtual, camera]) == [camera]
    assert camera_else_virtual([virtual]) == [virtual]
    assert camera_else_virtual([]) == []
    assert camera_else_virtual(answered([virtual, camera]))["source"].tolist() == ["camera"]
    assert camera_else_virtual(answered([virtual]))["source"].tolist() == ["virtual"]
    assert camera_else_virtual(answered([])).empty


def test_captures_of_the_camera_that_are_not_enough_do_not_count():
    rows = [chat_row(0), *(chat_row(number, source="virtual") for number in range(2))]
    assert camera_else_virtual(rows, enough=lambda chosen: len(chosen) > 1) == rows[1:]
    assert camera_else_virtual(rows, enough=lambda chosen: len(chosen) > 2) == []


def test_the_preferred_source_is_the_camera():
    assert preferred_source({"virtual", "camera"}) == "camera"
    assert preferred_source(["virtual"]) == "virtual"
    assert preferred_source([]) is None
