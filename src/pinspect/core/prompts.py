"""The instructions that the model reads, as chat messages in the Hugging Face form.

Every message is `{"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}]}`, which any processor's
chat template takes unchanged. Images stand before the text of their turn, in this order: star (or worked composite),
reference, inspected. There is no system turn, and no text mentions the layout: what a product looks like comes from
its images, what an answer may say from the answer contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from pinspect.core.answers import VIEWS, AnswerKind

Message = dict[str, Any]

ZERO_SHOT = "zero_shot"
ONE_SHOT = "one_shot"
SHOTS = (ZERO_SHOT, ONE_SHOT)


class PromptKind(StrEnum):
    """What a prompt shows besides its words; the same names as `chat.kinds` in `params.yaml`."""

    TWO_IMAGE = "two_image"  # a passed reference, then the inspected capture
    ONE_IMAGE = "one_image"  # the inspected capture alone
    STACKED = "stacked"  # one composite: passed above, inspected below


_ROLE = "You are a visual inspector."
_REPORT = "Report image type, number of pins, your judgement, defect mode and defect position."
_REPORT_ONE = "Report image type, quantity of pins, your judgement, defect mode and defect position."
_DISC = "a solid white circle most likely"

INSTRUCTIONS = {
    (PromptKind.TWO_IMAGE, "RAW"): (
        f"{_ROLE} Both photographs show a group of pins from above, alike in number and arrangement. The first is "
        "passed. Count the pins of the second and compare both, pin by pin: a significant difference is a defect. "
        f"{_REPORT}"
    ),
    (PromptKind.TWO_IMAGE, "DST"): (
        f"{_ROLE} Both distance images show a group of pins from above, alike in number and arrangement. The first is "
        "passed. Count the pins of the second and compare both, pin by pin: a significant difference is a defect, "
        f"{_DISC}. {_REPORT}"
    ),
    (PromptKind.ONE_IMAGE, "RAW"): (
        f"{_ROLE} The photograph shows a group of pins from above. Count them and look for one that stands out from "
        f"its neighbours: that is a defect. {_REPORT_ONE}"
    ),
    (PromptKind.ONE_IMAGE, "DST"): (
        f"{_ROLE} The distance image shows a group of pins from above. Count them and look for one that stands out "
        f"from its neighbours: that is a defect, {_DISC}. {_REPORT_ONE}"
    ),
    (PromptKind.STACKED, "RAW"): (
        f"{_ROLE} The picture holds two photographs of pins from above, alike in number and arrangement: passed on "
        "top, to inspect below. Count the pins below and compare both, pin by pin: a significant difference is a "
        f"defect. {_REPORT}"
    ),
    (PromptKind.STACKED, "DST"): (
        f"{_ROLE} The picture holds two distance images of pins from above, alike in number and arrangement: passed "
        "on top, to inspect below. Count the pins below and compare both, pin by pin: a significant difference is a "
        f"defect, {_DISC}. {_REPORT}"
    ),
}

STAR_INSTRUCTION = (
    "The image shows a group of passed pins from above; a red star lies on one of them. "
    "Report image type, number of pins and, as defect position, the address of the star."
)


def answer_kind_of(kind: str) -> AnswerKind:
    """The form of the answer that a prompt of `kind` asks for."""
    return AnswerKind.DISCRIMINATION if PromptKind(kind) is PromptKind.ONE_IMAGE else AnswerKind.COMPARISON


def two_image(view: str, answer: str | None = None, star: str | None = None) -> list[Message]:
    """Compare an inspected capture with a passed reference.

    `view` is `RAW` or `DST`. `star`, the answer to a star image, makes the prompt one-shot. `answer` is the expected
    answer as the last, assistant turn; without it the messages are ready for generation. Images: (star,) reference,
    inspected.
    """
    worked = [] if star is None else [_user(STAR_INSTRUCTION, images=1), _assistant(star)]
    return [*worked, _user(_instruction(PromptKind.TWO_IMAGE, view), images=2), *_expected(answer)]


def one_image(view: str, answer: str | None = None) -> list[Message]:
    """Judge an inspected capture by itself; zero-shot only. Images: inspected. `answer` as in `two_image`."""
    return [_user(_instruction(PromptKind.ONE_IMAGE, view), images=1), *_expected(answer)]


def stacked(view: str, answer: str | None = None, worked: str | None = None) -> list[Message]:
    """Compare the two halves of a stacked composite.

    `worked`, the answer to a worked stacked composite, makes the prompt one-shot. Images: (worked composite,)
    composite to inspect. `answer` as in `two_image`.
    """
    instruction = _instruction(PromptKind.STACKED, view)
    example = [] if worked is None else [_user(instruction, images=1), _assistant(worked)]
    return [*example, _user(instruction, images=1), *_expected(answer)]


def without_answer(messages: Sequence[Message]) -> list[Message]:
    """`messages` up to the turn that the model has to write: an expected answer at the end is left out."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def image_count(messages: Sequence[Message]) -> int:
    """How many image placeholders the messages hold."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def texts() -> tuple[str, ...]:
    """Every instruction once: what a tokenizer has to know besides the answers."""
    return (*INSTRUCTIONS.values(), STAR_INSTRUCTION)


def _instruction(kind: PromptKind, view: str) -> str:
    if view not in VIEWS:
        raise ValueError(f"expected a view of {list(VIEWS)}, found {view!r}")
    return INSTRUCTIONS[kind, view]


def _user(text: str, *, images: int) -> Message:
    return {"role": "user", "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _expected(answer: str | None) -> list[Message]:
    return [] if answer is None else [_assistant(answer)]
