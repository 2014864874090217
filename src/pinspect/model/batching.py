"""From chat messages to tensors: the same encoding for training and for generation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pinspect.core.prompts import Message, without_answer

_AHEAD = 4  # batches
IGNORED = -100  # the label that torch's cross entropy leaves out
# What processors tell of each token of a prompt, besides its id and mask.
_OF_EACH_TOKEN = {"token_type_ids", "mm_token_type_ids", "cross_attention_mask"}


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of one chat, image tokens expanded, and how many of them come before the expected answer."""

    input_ids: list[int]
    prompt_length: int

    @property
    def prompt(self) -> list[int]:
        """The ids up to and without the expected answer: what generation starts from."""
        return self.input_ids[: self.prompt_length]


def encode_chat(processor, messages: Sequence[Message], image_tokens: Sequence[int]) -> EncodedChat:
    """Encode `messages`; a closing assistant turn is the expected answer, ended by the end-of-turn token.

    image_tokens: how many visual tokens each image has, in order. Prompt and answer are tokenized apart, so that
    training sees exactly the prompt that generation starts from. Raises ValueError where images and placeholders
    differ.
    """
    prompt = prompt_text(processor, messages, len(image_tokens))
    parts = prompt.split(processor.image_token)
    text = parts[0] + "".join(processor.image_token * n + part for n, part in zip(image_tokens, parts[1:], strict=True))
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    return EncodedChat(ids + expected_ids(processor.tokenizer, messages), len(ids))


def prompt_text(processor, messages: Sequence[Message], images: int) -> str:
    """The family's own prompt for `messages`, without the expected answer and with one placeholder an image.

    Raises ValueError where its placeholders are not `images` in number.
    """
    prompt = processor.apply_chat_template(without_answer(messages), tokenize=False, add_generation_prompt=True)
    placeholder = getattr(processor, "image_token", None)  # none where a checkpoint's own code counts its images
    if placeholder is not None and prompt.count(placeholder) != images:
        raise ValueError(f"{prompt.count(placeholder)} image placeholders for {images} images")
    return prompt


def expected_ids(tokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the expected answer and of the end of its turn; empty where the messages hold none."""
    if messages[-1]["role"] != "assistant":
        return []
    answer = "".join(part["text"] for part in messages[-1]["content"])
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def collate(chats: Sequence[EncodedChat], pad_id: int, image_id: int, *, answers: bool) -> dict[str, torch.Tensor]:
    """Pad encoded chats to one batch of int64 tensors (chats, longest).

    With `answers` the whole chats are padded at the right, and `labels` holds the ids of the expected answers and
    IGNORED elsewhere; without, the prompts alone are padded at the left, as generation wants them.
    """
    rows = [chat.input_ids if answers else chat.prompt for chat in chats]
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORED)
    for index, (row, chat) in enumerate(zip(rows, chats, strict=True)):
        place = slice(0, len(row)) if answers else slice(longest - len(row), longest)
        input_ids[index, place] = torch.tensor(row)
        attention_mask[index, place] = 1
        labels[index, chat.prompt_length : len(row)] = input_ids[index, chat.prompt_length : len(row)]
    batch = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "mm_token_type_ids": (input_ids == image_id).int(),
    }
    return batch | {"labels": labels} if answers else batch


def with_answers(
    prompts: dict[str, torch.Tensor], answers: Sequence[list[int]], pad_id: int, answer_type: int
) -> dict[str, torch.Tensor]:
    """Put the ids of expected answers behind prompts that are padded at the left.

    prompts: what a processor made of them. Whatever it tells of each token is told of the answers' too: token types
    are `answer_type`, and an answer looks at the images that the end of its prompt looks at. Returns a new batch with
    `labels`, IGNORED but for the answers.
    """
    longest = max(map(len, answers))
    ids, answered = torch.full((len(answers), longest), pad_id), torch.zeros(len(answers), longest, dtype=torch.long)
    for index, answer in enumerate(answers):
        ids[index, : len(answer)], answered[index, : len(answer)] = torch.tensor(answer), 1
    width = prompts["input_ids"].shape[1]
    ignored = torch.full((len(answers), width), IGNORED)
    longer = {"input_ids": ids, "attention_mask": answered}
    for name in _OF_EACH_TOKEN & prompts.keys():
        of_prompt = prompts[name]
        longer[name] = (
            torch.full_like(ids, answer_type)
            if of_prompt.ndim == 2
            else of_prompt[:, -1:].expand(-1, longest, *of_prompt.shape[2:])
        )
    joined = {name: torch.cat([prompts[name], more.to(prompts[name].dtype)], dim=1) for name, more in longer.items()}
    labels = torch.cat([ignored, torch.where(answered == 1, ids, IGNORED)], dim=1)
    return {**prompts, **joined, "labels": labels}


def prepared_ahead(make: Callable[[int], object], count: int) -> Iterator[object]:
    """Yield `make(0)` to `make(count - 1)`, prepared by a thread while the caller computes.

    An error of `make` is raised where its batch would have come.
    """
    ready: queue.Queue = queue.Queue(maxsize=_AHEAD)

    def work() -> None:
        for index in range(count):
            try:
                ready.put((make(index), None))
            except Exception as error:
                ready.put((None, error))
                return

    threading.Thread(target=work, daemon=True).start()
    for _ in range(count):
        batch, error = ready.get()
        if error:
            raise error
        yield batch
