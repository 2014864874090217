from typing import get_args

import pytest

from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerKind
from pinspect.core.params import PromptKind as PromptKindName
from pinspect.core.prompts import PromptKind


def build(kind: PromptKind, view: str, answer: str | None = None, worked: str | None = None) -> list[prompts.Message]:
    if kind is PromptKind.TWO_IMAGE:
        return prompts.two_image(view, answer, star=worked)
    if kind is PromptKind.STACKED:
        return prompts.stacked(view, answer, worked=worked)
    return prompts.one_image(view, answer)


def test_prompt_kinds_are_those_that_params_know():
    assert get_args(PromptKindName) == tuple(PromptKind)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", PromptKind)
def test_messages_have_the_hugging_face_form(kind, view):
    messages = build(kind, view, "the answer", worked="the worked answer")
    assert {message["role"] for message in messages} == {"user", "assistant"}
    for message in messages:
        text, *images = message["content"]
        assert images == [{"type": "image"}] * len(images)
        assert set(text) == {"type", "text"}
        assert text["type"] == "text"
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)


@pytest.mark.parametrize(
    ("messages", "images"),
    [
        (prompts.two_image("DST"), 2),
        (prompts.two_image("DST", star="s"), 3),
        (prompts.one_image("DST"), 1),
        (prompts.stacked("DST"), 1),
        (prompts.stacked("DST", worked="w"), 2),
    ],
)
def test_every_prompt_kind_has_its_number_of_images(messages, images):
    assert prompts.image_count(messages) == images


def test_the_star_and_its_answer_come_before_the_images_to_compare():
    messages = prompts.two_image("RAW", "the answer", star="the star answer")
    assert [prompts.image_count([message]) for message in messages] == [1, 0, 2, 0]
    assert messages[0]["content"][0]["text"] == prompts.STAR_INSTRUCTION
    assert messages[1]["content"][-1]["text"] == "the star answer"


@pytest.mark.parametrize("kind", PromptKind)
def test_without_an_answer_the_prompt_ends_with_the_user(kind):
    ready = build(kind, "RAW")
    assert ready[-1]["role"] == "user"
    answered = build(kind, "RAW", "the answer")
    assert answered[-1]["content"] == [{"type": "text", "text": "the answer"}]
    assert prompts.without_answer(answered) == ready
    assert prompts.without_answer(ready) == ready


def test_only_one_image_prompts_ask_for_a_discrimination():
    kinds = {kind: prompts.answer_kind_of(kind) for kind in PromptKind}
    assert kinds == {
        PromptKind.TWO_IMAGE: AnswerKind.COMPARISON,
        PromptKind.ONE_IMAGE: AnswerKind.DISCRIMINATION,
        PromptKind.STACKED: AnswerKind.COMPARISON,
    }


def test_only_prompts_about_distance_images_mention_a_white_circle():
    for (kind, view), text in prompts.INSTRUCTIONS.items():
        assert ("solid white circle" in text) == (view == "DST"), kind


def test_instructions_stay_short_since_every_token_costs():
    assert max(len(text.split()) for text in prompts.texts()) <= 48
    assert len(set(prompts.texts())) == len(PromptKind) * len(VIEWS) + len(prompts.SimpleKind)


def test_an_unknown_view_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"expected a view of \['RAW', 'DST'\], found 'XRAY'"):
        prompts.two_image("XRAY")
