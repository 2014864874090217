"""Answers by real generation: greedy, batched, with a key-value cache, under the contract's grammar or free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import llguidance
import llguidance.hf
import llguidance.torch
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pinspect.answers import DEFECTIVE, PASSED, AnswerContract, AnswerKind
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

MAXIMUM_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class GeneratedAnswer:
    """What the model said of one row.

    p_defective: P(defective) / (P(defective) + P(passed)) at the judgement's token, 0..1; None where the text has no
    judgement line. seconds: this row's share of its batch's time.
    """

    text: str
    p_defective: float | None
    seconds: float


class GrammarProcessor(LogitsProcessor):
    """Leaves only tokens with which the answer can still become a well-formed one (llguidance)."""

    def __init__(self, tokenizer, patterns: Sequence[str], prompt_length: int) -> None:
        if not hasattr(tokenizer, "_pinspect_llguidance"):
            tokenizer._pinspect_llguidance = llguidance.hf.from_tokenizer(tokenizer)
        grammar_tokens = tokenizer._pinspect_llguidance
        grammars = {pattern: llguidance.LLMatcher.grammar_from_regex(pattern) for pattern in set(patterns)}
        self.matchers = [llguidance.LLMatcher(grammar_tokens, grammars[pattern]) for pattern in patterns]
        self.masks = llguidance.torch.allocate_token_bitmask(len(patterns), grammar_tokens.vocab_size)
        self.end, self.read = tokenizer.eos_token_id, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask `scores` (rows, vocabulary) for the next token of every row."""
        for index, matcher in enumerate(self.matchers):
            for token in input_ids[index, self.read :].tolist():
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        self.read = input_ids.shape[1]
        allowed = torch.full_like(scores, float("-inf"))
        for index, matcher in enumerate(self.matchers):
            # A matcher stops as soon as the answer is complete, before the end token: ask for it ourselves.
            if matcher.is_stopped():
                allowed[index, self.end] = 0
                continue
            llguidance.torch.fill_next_token_bitmask(matcher, self.masks, index)
            bits = self.masks[index].unsqueeze(-1).bitwise_right_shift(torch.arange(32, dtype=torch.int32)) & 1
            allowed[index, : bits.numel()][bits.flatten()[: scores.shape[1]].bool()] = 0
        return scores + allowed.to(scores.device)


def answer_rows(
    inspector: Inspector,
    rows: Sequence[dict],
    images_dir: str | Path,
    contract: AnswerContract,
    *,
    batch_size: int,
    constrained: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[GeneratedAnswer]:
    """Generate an answer for every row of a chat dataset, in the order of `rows`.

    Rows of like length share a batch. `progress` is called with the number of rows that each batch finished.
    """
    encoder = RowEncoder(inspector.processor, images_dir)
    answers: list[GeneratedAnswer | None] = [None] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda index: encoder.chat(rows[index]).prompt_length)
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        for index, answer in zip(
            chosen, _answer_batch(inspector, encoder, [rows[i] for i in chosen], contract, constrained), strict=True
        ):
            answers[index] = answer
        if progress:
            progress(len(chosen))
    return answers


@torch.inference_mode()
def _answer_batch(inspector, encoder, rows, contract, constrained) -> Iterator[GeneratedAnswer]:
    began = time.perf_counter()
    batch = {name: tensor.to(inspector.device) for name, tensor in encoder.batch(rows, answers=False).items()}
    tokenizer = inspector.processor.tokenizer
    prompt_length = batch["input_ids"].shape[1]
    processors = LogitsProcessorList()
    if constrained:
        patterns = [contract.pattern(AnswerKind(row["answer_kind"]), anchored=False) for row in rows]
        processors.append(GrammarProcessor(tokenizer, patterns, prompt_length))
    made = inspector.model.generate(
        **batch,
        logits_processor=processors,
        max_new_tokens=MAXIMUM_ANSWER_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokens = made.sequences[:, prompt_length:].cpu()
    seconds = (time.perf_counter() - began) / len(rows)
    words = [_first_token(tokenizer, word) for word in (PASSED, DEFECTIVE)]
    for index in range(len(rows)):
        text = tokenizer.decode(tokens[index], skip_special_tokens=True)
        step = _judgement_step(tokenizer, tokens[index])
        p_defective = None
        if step is not None:
            p_defective = float(made.logits[step][index, words].float().softmax(0)[1])
        yield GeneratedAnswer(text, p_defective, seconds)


def _first_token(tokenizer, word: str) -> int:
    """The token with which `word` starts right after an arrow."""
    arrow = tokenizer("->", add_special_tokens=False).input_ids
    return tokenizer(f"->{word}", add_special_tokens=False).input_ids[len(arrow)]


def _judgement_step(tokenizer, tokens: torch.Tensor) -> int | None:
    """At which generated token the judgement is told; None where the text has no such line."""
    for step in range(1, len(tokens)):
        if tokenizer.decode(tokens[:step], skip_special_tokens=True).endswith("judgement->"):
            return step
    return None
