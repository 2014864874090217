"""Answers by greedy, batched generation with a key-value cache, under the contract's grammar or free.

We decode the "defective" answer of every capture and read P(defective) at the judgement token. The "passed" answer is
fully determined by the grammar, so one pass yields both answers, and the most probable place of a defect even for a
passed capture. A threshold on P(defective) chooses between the two answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import LogitsProcessorList

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.rows import Row
from pinspect.model.batching import prepared_ahead
from pinspect.model.fast_forward import FastForward
from pinspect.model.generated_answer import EVEN_ODDS, GeneratedAnswer
from pinspect.model.grammar import GrammarProcessor, grammar_of
from pinspect.model.loading import Inspector
from pinspect.model.memory import AnswerMemory
from pinspect.model.rows import Inputs, RowEncoder


def answer_rows(
    inspector: Inspector,
    rows: Sequence[Row],
    pictures: str | Path | Mapping[str, bytes],
    contract: AnswerContract,
    *,
    batch_size: int,
    constrained: bool = True,
    threshold: float = EVEN_ODDS,
    fast_forward: bool = True,
    memory: AnswerMemory | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[GeneratedAnswer]:
    """Generate an answer for every row of a chat dataset. Rows of similar length share a batch.

    Args:
        inspector: The loaded model.
        rows: Rows of a chat dataset.
        pictures: Folder that the image names of the rows are relative to, or the image files in memory by their names.
        contract: The answer contract.
        batch_size: Rows per batch.
        constrained: Whether the grammar constrains the answers.
        threshold: A capture is defective if P(defective) >= threshold; ignored for free answers.
        fast_forward: Whether answers are read in few forward passes. Without it, constrained answers come from Hugging
            Face's `generate`, token by token and without address probabilities: the reference for the fast path.
        memory: What earlier calls with this model left; None to begin anew.
        progress: Called after each batch with its number of rows.

    Returns:
        The answers in the order of `rows`.
    """
    encoder = RowEncoder(inspector.processor, pictures)
    way = _Generate(inspector, encoder, contract, constrained=constrained)
    if constrained and fast_forward and rows:
        way = FastForward(inspector, encoder, contract, memory or AnswerMemory())
        way.prepare(rows[0])
    answers: dict[int, GeneratedAnswer] = {}
    by_length = sorted(range(len(rows)), key=lambda index: _order(encoder, rows[index]))
    batches = [by_length[start : start + batch_size] for start in range(0, len(rows), batch_size)]

    def encode(number: int) -> Inputs | None:
        return way.encode([rows[index] for index in batches[number]])

    encoded = prepared_ahead(encode, len(batches), ahead=1) if len(batches) > 1 else map(encode, range(len(batches)))
    start_time = time.perf_counter()
    for batch, inputs in zip(batches, encoded, strict=True):
        batch_answers = way.answer([rows[index] for index in batch], inputs)
        seconds = (time.perf_counter() - start_time) / len(batch)
        for index, answer in zip(batch, batch_answers, strict=True):
            answers[index] = replace(answer, seconds=seconds).judged(threshold)
        if progress:
            progress(len(batch))
        start_time = time.perf_counter()
    return [answers[index] for index in range(len(rows))]


def _order(encoder: RowEncoder, row: Row) -> tuple[int, list[str]]:
    """Return a key that sorts rows of one length, and among them rows that begin with the same pictures, together."""
    return encoder.chat(row).prompt_length, row["images"][:-1]


class _Generate:
    """Answers batches of rows by Hugging Face's `generate`, with the interface of `FastForward`."""

    def __init__(
        self, inspector: Inspector, encoder: RowEncoder, contract: AnswerContract, *, constrained: bool
    ) -> None:
        self._inspector, self._encoder, self._constrained = inspector, encoder, constrained
        self._grammar = grammar_of(inspector.processor.tokenizer, contract)

    def encode(self, rows: Sequence[Row]) -> Inputs:
        return self._encoder.batch(rows, answers=False), {}

    def answer(self, rows: Sequence[Row], inputs: Inputs | None) -> list[GeneratedAnswer]:
        batch, _ = inputs or self.encode(rows)
        kinds = [AnswerKind(row["answer_kind"]) for row in rows]
        width = batch["input_ids"].shape[1]
        processors = [GrammarProcessor(self._grammar, kinds, width)] if self._constrained else []
        output = self._inspector.generate(
            batch,
            logits_processor=LogitsProcessorList(processors),
            return_dict_in_generate=True,
            output_logits=True,
        )
        answers = []
        for index, tokens in enumerate(output.sequences[:, width:].tolist()):
            beginnings = (tuple(tokens[:step]) for step in range(1, len(tokens)))
            step = next((len(each) for each in beginnings if self._grammar.before(each) == "judgement"), None)
            p_defective = None if step is None else self._grammar.p_defective(output.logits[step][index])
            text = self._grammar.text(tokens)
            answers.append(
                self._grammar.generated_answer(text, kinds[index], p_defective)
                if self._constrained
                else GeneratedAnswer(text, p_defective, 0.0)
            )
        return answers
