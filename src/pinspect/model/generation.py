"""Answers by greedy, batched generation with a key-value cache, under the contract's grammar or free.

We decode the "defective" answer of every capture and read P(defective) at the judgement token. The "passed" answer is
fully determined by the grammar, so one pass yields both answers, and the most probable place of a defect even for a
passed capture. A threshold on P(defective) chooses between the two answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LogitsProcessorList

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.rows import Row
from pinspect.model.fast_forward import FastForward, reads_in_runs
from pinspect.model.generated_answer import EVEN_ODDS, GeneratedAnswer
from pinspect.model.grammar import AnswerGrammar, GrammarProcessor
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder


def answer_rows(
    inspector: Inspector,
    rows: Sequence[Row],
    images_dir: str | Path,
    contract: AnswerContract,
    *,
    batch_size: int,
    constrained: bool = True,
    threshold: float = EVEN_ODDS,
    fast_forward: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[GeneratedAnswer]:
    """Generate an answer for every row of a chat dataset. Rows of similar length share a batch.

    Args:
        inspector: The loaded model.
        rows: Rows of a chat dataset.
        images_dir: Folder that the image names of the rows are relative to.
        contract: The answer contract.
        batch_size: Rows per batch.
        constrained: Whether the grammar constrains the answers.
        threshold: A capture is defective if P(defective) >= threshold; ignored for free answers.
        fast_forward: Whether forced tokens are read in runs. Without it, constrained answers come from Hugging Face's
            `generate`, token by token and without address probabilities: the reference for the fast path.
        progress: Called after each batch with its number of rows.

    Returns:
        The answers in the order of `rows`.
    """
    encoder = RowEncoder(inspector.processor, images_dir)
    if not constrained:
        answer_batch = _answer_freely
    elif fast_forward:
        answer_batch = FastForward(len(rows) > 0 and reads_in_runs(inspector, encoder, rows[0], contract))
    else:
        answer_batch = _answer_by_token
    answers: dict[int, GeneratedAnswer] = {}
    by_length = sorted(range(len(rows)), key=lambda index: encoder.chat(rows[index]).prompt_length)
    for start in range(0, len(rows), batch_size):
        batch = by_length[start : start + batch_size]
        start_time = time.perf_counter()
        batch_answers = list(answer_batch(inspector, encoder, [rows[index] for index in batch], contract))
        seconds = (time.perf_counter() - start_time) / len(batch)
        for index, answer in zip(batch, batch_answers, strict=True):
            answers[index] = replace(answer, seconds=seconds).judged(threshold)
        if progress:
            progress(len(batch))
    return [answers[index] for index in range(len(rows))]


def _answer_by_token(
    inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row], contract: AnswerContract
) -> Iterator[GeneratedAnswer]:
    grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
    kinds = [AnswerKind(row["answer_kind"]) for row in rows]
    batch = encoder.batch(rows, answers=False)
    processor = GrammarProcessor(grammar, kinds, batch["input_ids"].shape[1])
    for kind, (text, p_defective) in zip(kinds, _texts(inspector, batch, grammar, processor), strict=True):
        yield grammar.generated_answer(text, kind, p_defective)


def _answer_freely(
    inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row], contract: AnswerContract
) -> Iterator[GeneratedAnswer]:
    grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
    for text, p_defective in _texts(inspector, encoder.batch(rows, answers=False), grammar):
        yield GeneratedAnswer(text, p_defective, 0.0)


def _texts(
    inspector: Inspector, batch: dict[str, torch.Tensor], grammar: AnswerGrammar, *processors: GrammarProcessor
) -> Iterator[tuple[str, float | None]]:
    """Yield text and P(defective) of every row from Hugging Face's `generate`."""
    output = inspector.generate(
        batch,
        logits_processor=LogitsProcessorList(processors),
        return_dict_in_generate=True,
        output_logits=True,
    )
    for index, tokens in enumerate(output.sequences[:, batch["input_ids"].shape[1] :].tolist()):
        step = next((step for step in range(1, len(tokens)) if grammar.at_judgement(tokens[:step])), None)
        p_defective = None if step is None else grammar.p_defective(output.logits[step][index])
        yield grammar.text(tokens), p_defective
