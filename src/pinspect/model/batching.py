"""From chat messages to tensors: the same encoding for training and for generation."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pinspect.core.prompts import Message, without_answer

IGNORED = -100  # the label that torch's cross entropy ignores
# A family's processor pads by changing its tokenizer for the time of a call. Threads that encode ahead share it.
TOKENIZING = threading.Lock()
_AHEAD = 4  # batches prepared before they are needed
# Tensors with one value per prompt token that processors return besides ids and mask.
_PER_TOKEN = {"token_type_ids", "mm_token_type_ids", "cross_attention_mask"}
_Batch = TypeVar("_Batch")


@dataclass(frozen=True)
class EncodedChat:
    """Token ids of one chat.

    Attributes:
        input_ids: Ids of the prompt, with one id per visual token, and of the expected answer.
        prompt_length: Number of ids before the expected answer.
    """

    input_ids: list[int]
    prompt_length: int

    @property
    def prompt(self) -> list[int]:
        """The ids without the expected answer, which generation starts from."""
        return self.input_ids[: self.prompt_length]


def encode_chat(processor: Any, messages: Sequence[Message], image_tokens: Sequence[int]) -> EncodedChat:
    """Encode chat messages; a final assistant turn is the expected answer, followed by the end-of-turn token.

    Prompt and answer are tokenized apart, so that training sees exactly the prompt that generation starts from.

    Args:
        processor: The processor of the model family.
        messages: The chat.
        image_tokens: Number of visual tokens of each image, in order.

    Raises:
        ValueError: The prompt has another number of image placeholders than there are images.
    """
    prompt = prompt_text(processor, messages, len(image_tokens))
    parts = prompt.split(processor.image_token)
    text = parts[0] + "".join(processor.image_token * n + part for n, part in zip(image_tokens, parts[1:], strict=True))
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    return EncodedChat(ids + expected_ids(processor.tokenizer, messages), len(ids))


def prompt_text(processor: Any, messages: Sequence[Message], images: int) -> str:
    """Render the family's prompt for `messages`, without the expected answer and with one placeholder per image.

    Args:
        processor: The processor of the model family.
        messages: The chat.
        images: Number of images in the chat.

    Raises:
        ValueError: The prompt has another number of image placeholders than `images`.
    """
    prompt = processor.apply_chat_template(without_answer(messages), tokenize=False, add_generation_prompt=True)
    placeholder = getattr(processor, "image_token", None)  # None if the checkpoint's own code numbers its images
    if placeholder is not None and prompt.count(placeholder) != images:
        raise ValueError(f"{prompt.count(placeholder)} image placeholders for {images} images")
    return prompt


def expected_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of the expected answer and of the end of its turn; [] if there is no expected answer."""
    if messages[-1]["role"] != "assistant":
        return []
    answer = "".join(part["text"] for part in messages[-1]["content"])
    return [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def collate(chats: Sequence[EncodedChat], pad_id: int, image_id: int, *, answers: bool) -> dict[str, torch.Tensor]:
    """Pad encoded chats to one batch.

    Args:
        chats: The chats of the batch.
        pad_id: Id of the padding token.
        image_id: Id of a visual token.
        answers: Whether the batch contains the expected answers. With answers, chats are padded on the right. Without,
            prompts are padded on the left, as generation needs them.

    Returns:
        int64 (chats, longest) each: `input_ids`, `attention_mask`, `mm_token_type_ids`, and with answers `labels`: the
        ids of the expected answers, IGNORED elsewhere.
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
    """Append the ids of expected answers to prompts that are padded on the left.

    Tensors with one value per token are extended too: token types by `answer_type`, cross-attention masks by a copy of
    the last prompt token's mask, so that the answer sees the images that the end of its prompt sees.

    Args:
        prompts: The output of a processor.
        answers: Ids of the expected answer to each prompt.
        pad_id: Id of the padding token.
        answer_type: Token type of answers.

    Returns:
        A new batch with `labels`: the ids of the answers, IGNORED elsewhere.
    """
    longest = max(map(len, answers))
    ids, mask = torch.full((len(answers), longest), pad_id), torch.zeros(len(answers), longest, dtype=torch.long)
    for index, answer in enumerate(answers):
        ids[index, : len(answer)], mask[index, : len(answer)] = torch.tensor(answer), 1
    width = prompts["input_ids"].shape[1]
    extensions = {"input_ids": ids, "attention_mask": mask}
    for name in _PER_TOKEN & prompts.keys():
        values = prompts[name]
        extensions[name] = (
            torch.full_like(ids, answer_type)
            if values.ndim == 2
            else values[:, -1:].expand(-1, longest, *values.shape[2:])
        )
    joined = {
        name: torch.cat([prompts[name], extension.to(prompts[name].dtype)], dim=1)
        for name, extension in extensions.items()
    }
    ignored = torch.full((len(answers), width), IGNORED)
    labels = torch.cat([ignored, torch.where(mask == 1, ids, IGNORED)], dim=1)
    return {**prompts, **joined, "labels": labels}


def prepared_ahead(make: Callable[[int], _Batch], count: int, ahead: int = _AHEAD) -> Iterator[_Batch]:
    """Yield `make(0)` to `make(count - 1)`, prepared by a thread while the caller computes.

    An exception in `make` is raised in place of its batch.

    Args:
        make: Returns the batch with a number.
        count: Number of batches.
        ahead: Batches that wait in memory at most.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=ahead)

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
