"""From chat messages to tensors: the same encoding for training and for generation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pinspect.prompts import Message, without_answer

_AHEAD = 4  # batches
IGNORED = -100  # the label that torch's cross entropy leaves out


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
    prompt = processor.apply_chat_template(without_answer(messages), tokenize=False, add_generation_prompt=True)
    parts = prompt.split(processor.image_token)
    if len(parts) != len(image_tokens) + 1:
        raise ValueError(f"{len(parts) - 1} image placeholders for {len(image_tokens)} images")
    text = parts[0] + "".join(processor.image_token * n + part for n, part in zip(image_tokens, parts[1:], strict=True))
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    expected = []
    if messages[-1]["role"] == "assistant":
        answer = "".join(part["text"] for part in messages[-1]["content"])
        expected = [*processor.tokenizer(answer, add_special_tokens=False).input_ids, processor.tokenizer.eos_token_id]
    return EncodedChat(ids + expected, len(ids))


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
