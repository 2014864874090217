"""The instructions that the model reads, as chat messages in the Hugging Face form.

Every message is `{"role": ..., "content": [{"type": "text", "text": ...} | {"type": "image"}]}`, which the chat
template of any processor accepts unchanged. The text of a turn comes before its images, in this order: star (or worked
composite), reference, inspected. So all captures of a line share the beginning of their prompt, up to the inspected
picture. There is no system turn. No text mentions the layout: the images show the product, and the answer contract
limits the answers.
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


class SimpleKind(StrEnum):
    """Questions about what a picture shows, whose answers need no judgement."""

    STAR = "star"  # a star image: where is the red star?
    GRID = "grid"  # one composite: which marks has its address grid?


_ROLE = "You are a visual inspector of pins."
_REPORT = "Report image type, number of pins, your judgement, defect mode and defect position."
_REPORT_ONE = "Report image type, quantity of pins, your judgement, defect mode and defect position."
_PICTURES = {"RAW": "photograph", "DST": "distance image"}
_DIFFERENCES = {
    "RAW": "a significant difference is a defect",
    "DST": "a significant difference, most likely a solid white circle, is a defect",
}


def _instruction_texts(view: str) -> dict[PromptKind, str]:
    picture, difference = _PICTURES[view], _DIFFERENCES[view]
    return {
        PromptKind.TWO_IMAGE: (
            f"{_ROLE} The first {picture} is passed. Compare the second pin by pin: {difference}. {_REPORT}"
        ),
        PromptKind.ONE_IMAGE: (
            f"{_ROLE} Compare each pin of the {picture} with its neighbors: {difference}. {_REPORT_ONE}"
        ),
        PromptKind.STACKED: (
            f"{_ROLE} The upper {picture} is passed. Compare the lower pin by pin: {difference}. {_REPORT}"
        ),
    }


INSTRUCTIONS = {(kind, view): text for view in VIEWS for kind, text in _instruction_texts(view).items()}

STAR_INSTRUCTION = (
    "A red star lies on one of the passed pins. "
    "Report image type, number of pins and, as defect position, the address of the star."
)

GRID_INSTRUCTION = (
    "Read the yellow marks of this picture. Report the numbers of its columns from the left and the letters of its "
    "rows from above."
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


def simple(kind: str, answer: str | None = None) -> list[Message]:
    """Return the messages of a simple question about one picture.

    Args:
        kind: A `SimpleKind`.
        answer: As for `two_image`.
    """
    instruction = {SimpleKind.STAR: STAR_INSTRUCTION, SimpleKind.GRID: GRID_INSTRUCTION}[SimpleKind(kind)]
    return [_user(instruction, images=1), *_expected(answer)]


def without_answer(messages: Sequence[Message]) -> list[Message]:
    """Return the messages without an expected answer at the end."""
    return list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def image_count(messages: Sequence[Message]) -> int:
    """Return the number of image placeholders in the messages."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def texts() -> tuple[str, ...]:
    """Return every instruction once: what a tokenizer must know besides the answers."""
    return (*INSTRUCTIONS.values(), STAR_INSTRUCTION, GRID_INSTRUCTION)


def _instruction(kind: PromptKind, view: str) -> str:
    if view not in VIEWS:
        raise ValueError(f"expected a view of {list(VIEWS)}, found {view!r}")
    return INSTRUCTIONS[kind, view]


def _user(text: str, *, images: int) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text}, *({"type": "image"} for _ in range(images))]}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _expected(answer: str | None) -> list[Message]:
    return [] if answer is None else [_assistant(answer)]
