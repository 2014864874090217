"""The instructions that the model reads, as chat messages in the Hugging Face form.

Every message is `{"role": ..., "content": [{"type": "image"} | {"type": "text", "text": ...}]}`, which the chat
template of any processor accepts unchanged. Images come before the text of their turn, in this order: star (or worked
composite), reference, inspected. There is no system turn. No text mentions the layout: the images show the product, and
the answer contract limits the answers.
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
    """Which pictures a prompt shows; the same names as `chat.kinds` in `params.yaml`."""

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
    """Return the form of the answer to a prompt of `kind`."""
    return AnswerKind.DISCRIMINATION if PromptKind(kind) is PromptKind.ONE_IMAGE else AnswerKind.COMPARISON


def two_image(view: str, answer: str | None = None, star: str | None = None) -> list[Message]:
    """Return the messages that compare an inspected capture with a passed reference.

    Images: (star,) reference, inspected.

    Args:
        view: `RAW` or `DST`.
        answer: The expected answer, added as the last turn. Without it the messages are ready for generation.
        star: The answer to a star image, which makes the prompt one-shot.
    """
    worked = [] if star is None else [_user(STAR_INSTRUCTION, images=1), _assistant(star)]
    return [*worked, _user(_instruction(PromptKind.TWO_IMAGE, view), images=2), *_expected(answer)]


def one_image(view: str, answer: str | None = None) -> list[Message]:
    """Return the messages that judge an inspected capture by itself; always zero-shot.

    Images: inspected.

    Args:
        view: `RAW` or `DST`.
        answer: As for `two_image`.
    """
    return [_user(_instruction(PromptKind.ONE_IMAGE, view), images=1), *_expected(answer)]


def stacked(view: str, answer: str | None = None, worked: str | None = None) -> list[Message]:
    """Return the messages that compare the two halves of a stacked composite.

    Images: (worked composite,) composite to inspect.

    Args:
        view: `RAW` or `DST`.
        answer: As for `two_image`.
        worked: The answer to a worked stacked composite, which makes the prompt one-shot.
    """
    instruction = _instruction(PromptKind.STACKED, view)
    example = [] if worked is None else [_user(instruction, images=1), _assistant(worked)]
    return [*example, _user(instruction, images=1), *_expected(answer)]


def without_answer(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without an expected answer at the end."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def image_count(messages: Sequence[Message]) -> int:
    """Return the number of image placeholders in the messages."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def texts() -> tuple[str, ...]:
    """Return every instruction once: what a tokenizer must know besides the answers."""
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
