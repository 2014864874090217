"""Answers by real generation: greedy, batched, with a key-value cache, under the contract's grammar or free.

Under the grammar most of an answer is no choice of the model: of about forty tokens it decides six. Those that the
grammar forces are fed in whole runs, one forward pass each, and give what feeding them one by one gives; a model for
which that does not hold (it is tried on the first row) reads token by token.

Every constrained answer is written as if the capture were defective: P(defective) is read at the judgement, and how the
answer goes on after `passed` is forced to its end, so that one pass gives both answers, and the place of the defect
even where the capture passes. The threshold on P(defective) then says which of both is the answer.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from weakref import WeakKeyDictionary

import llguidance
import llguidance.hf
import llguidance.torch
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pinspect.core.answers import DEFECTIVE, PASSED, AnswerContract, AnswerKind
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

MAXIMUM_ANSWER_TOKENS = 128
EVEN_ODDS = 0.5  # the threshold where no operating point was chosen
_SAME_LOGITS = 0.05  # of their spread: what rounding does is far below, what a wrong position does far above


@dataclass(frozen=True)
class GeneratedAnswer:
    """What the model said of one row.

    p_defective: P(defective) / (P(defective) + P(passed)) at the judgement's token, 0..1; None where the text has no
    judgement line. seconds: this row's share of its batch's time.

    The rest is there for constrained answers alone, else None. threshold: what p_defective was compared with.
    if_passed, if_defective: both ways the answer can go on; `text` is one of them. address_probabilities: one a pin in
    the layout's order, summing to 1: P(column) x P(row | column) at the tokens of the address, *given* that the capture
    is defective in its most probable mode; so a passed answer has them too. address_entropy: theirs, in bits: 0 where
    one pin is certain, log2(pins) where all are alike.
    """

    text: str
    p_defective: float | None
    seconds: float
    threshold: float | None = None
    if_passed: str | None = None
    if_defective: str | None = None
    address_probabilities: tuple[float, ...] | None = None
    address_entropy: float | None = None

    def judged(self, threshold: float) -> GeneratedAnswer:
        """The same answer where P(defective) >= `threshold` makes a capture defective; a free answer stays as it is."""
        if self.if_passed is None or self.p_defective is None:
            return self
        text = self.if_defective if self.p_defective >= threshold else self.if_passed
        return replace(self, text=text, threshold=threshold)


def answer_rows(
    inspector: Inspector,
    rows: Sequence[dict],
    images_dir: str | Path,
    contract: AnswerContract,
    *,
    batch_size: int,
    constrained: bool = True,
    threshold: float = EVEN_ODDS,
    fast_forward: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[GeneratedAnswer]:
    """Generate an answer for every row of a chat dataset, in the order of `rows`.

    Rows of like length share a batch. `threshold`: see `GeneratedAnswer.judged`; free answers know none. Without
    `fast_forward` constrained answers come from Hugging Face's own `generate`, token by token and without address
    probabilities: the reference that the fast way is held against. `progress` is called with the number of rows that
    each batch finished.
    """
    encoder = RowEncoder(inspector.processor, images_dir)
    if not constrained:
        answer_batch = _answer_freely
    elif fast_forward:
        in_runs = len(rows) > 0 and _reads_in_runs(inspector, encoder, rows[0], contract)
        answer_batch = _FastForward(in_runs)
    else:
        answer_batch = _answer_by_token
    answers: list[GeneratedAnswer | None] = [None] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda index: encoder.chat(rows[index]).prompt_length)
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        began = time.perf_counter()
        made = list(answer_batch(inspector, encoder, [rows[index] for index in chosen], contract))
        seconds = (time.perf_counter() - began) / len(chosen)
        for index, answer in zip(chosen, made, strict=True):
            answers[index] = replace(answer, seconds=seconds).judged(threshold)
        if progress:
            progress(len(chosen))
    return answers


class AnswerGrammar:
    """The answer contract in the tokens of one tokenizer.

    judgement_lead, address_lead: the text right before what the judgement and the address say. judgements: the tokens
    with which `passed` and `defective` start after it. addresses: for each pin its tokens after `address_lead`.
    """

    def __init__(self, tokenizer, contract: AnswerContract) -> None:
        self.tokenizer, self.contract = tokenizer, contract
        shape, address = contract.shapes[0], contract.layout.addresses[0]
        answers = (
            contract.passed(shape, "RAW"),
            contract.defective(shape, "RAW", contract.defect_modes[0], address),
        )
        self.judgement_lead = _common_start([contract.render(answer) for answer in answers]).split("\n")[-1]
        addresses = [str(address) for address in contract.layout.addresses]
        self.address_lead = _common_start(addresses)
        self.judgements = [self._after(self.judgement_lead, word)[0] for word in (PASSED, DEFECTIVE)]
        arrow = f"->{self.address_lead}"
        self.addresses = [self._after(arrow, text.removeprefix(self.address_lead)) for text in addresses]

    def matcher(self, kind: AnswerKind) -> llguidance.LLMatcher:
        """A fresh matcher of answers of `kind`."""
        grammar = llguidance.LLMatcher.grammar_from_regex(self.contract.pattern(kind, anchored=False))
        return llguidance.LLMatcher(_guide(self.tokenizer), grammar)

    def allowed(self, matcher: llguidance.LLMatcher, vocabulary: int) -> torch.Tensor:
        """Which tokens may come next: bool (vocabulary,)."""
        bits = llguidance.torch.allocate_token_bitmask(1, _guide(self.tokenizer).vocab_size)
        llguidance.torch.fill_next_token_bitmask(matcher, bits, 0)
        flags = (bits[0].unsqueeze(-1).bitwise_right_shift(torch.arange(32, dtype=torch.int32)) & 1).flatten().bool()
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[: min(vocabulary, len(flags))] = flags[:vocabulary]
        return allowed

    def at_judgement(self, tokens: Sequence[int]) -> bool:
        """Whether the judgement is what comes next."""
        return self.text(tokens).endswith(self.judgement_lead)

    def at_address(self, tokens: Sequence[int]) -> bool:
        """Whether the first part of the address on which pins differ is what comes next."""
        return self.text(tokens).endswith(f"->{self.address_lead}")

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def p_defective(self, logits: torch.Tensor) -> float:
        """P(defective) from the logits (vocabulary,) of the judgement's token, `passed` being the only other word."""
        return float(logits[self.judgements].double().softmax(0)[1])

    def both_ways(self, if_defective: str, kind: AnswerKind, p_defective: float | None, **told) -> GeneratedAnswer:
        """The answer that was written as if defective, and what it is where the capture passes."""
        if p_defective is None:  # a star answer judges nothing
            return GeneratedAnswer(if_defective, None, 0.0, **told)
        answer = self.contract.parse(if_defective, kind)
        if_passed = self.contract.render(self.contract.passed(answer.shape, answer.view), kind)
        return GeneratedAnswer(if_defective, p_defective, 0.0, None, if_passed, if_defective, **told)

    def _after(self, lead: str, text: str) -> list[int]:
        """The tokens of `text` where it stands right after `lead`."""
        ids = self.tokenizer(lead, add_special_tokens=False).input_ids
        return self.tokenizer(lead + text, add_special_tokens=False).input_ids[len(ids) :]


class GrammarProcessor(LogitsProcessor):
    """Leaves only tokens with which the answer can still become a well-formed one; the judgement is `defective`."""

    def __init__(self, grammar: AnswerGrammar, kinds: Sequence[AnswerKind], prompt_length: int) -> None:
        self.grammar, self.prompt_length, self.read = grammar, prompt_length, prompt_length
        self.matchers = [grammar.matcher(kind) for kind in kinds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Mask `scores` (rows, vocabulary) for the next token of every row."""
        masked = torch.full_like(scores, float("-inf"))
        for index, matcher in enumerate(self.matchers):
            written = input_ids[index, self.prompt_length :].tolist()
            for token in written[self.read - self.prompt_length :]:
                if not matcher.is_stopped():
                    matcher.consume_token(token)
            # A matcher stops as soon as the answer is complete, before the end token: ask for it ourselves.
            if matcher.is_stopped():
                masked[index, self.grammar.tokenizer.eos_token_id] = 0
            elif self.grammar.at_judgement(written):
                masked[index, self.grammar.judgements[1]] = 0
            else:
                allowed = self.grammar.allowed(matcher, scores.shape[1]).to(scores.device)
                masked[index, allowed] = scores[index, allowed]
        self.read = input_ids.shape[1]
        return masked


class _Reader:
    """A model that has read a prompt and goes on reading; `logits` (rows, vocabulary) are those of the next token.

    in_runs: read several tokens at once, and forget by cutting the cache. Otherwise token by token, and by a copy of
    the cache: slower, and right for every model.
    """

    def __init__(self, model, input_ids: torch.Tensor, inputs: dict, *, in_runs: bool) -> None:
        self._model, self._ids, self._inputs, self._in_runs = model, input_ids, inputs, in_runs
        self._outputs: dict | object = {}
        if not in_runs:
            self._forward(input_ids.new_empty((len(input_ids), 0)))

    @property
    def logits(self) -> torch.Tensor:
        return self._outputs.logits[:, -1].float()

    def read(self, tokens: torch.Tensor) -> None:
        """Read `tokens`, int64 (rows, n), after all that was read before."""
        self._go_on(tokens)
        if self._in_runs:
            self._inputs["past_key_values"].crop(0)  # sliding windows that kept more, to be able to forget

    def glance(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after `tokens`, which are forgotten again."""
        kept = self._ids, dict(self._inputs), self._outputs
        cache = self._inputs["past_key_values"]
        if not self._in_runs:
            self._inputs["past_key_values"] = self._outputs.past_key_values = copy.deepcopy(cache)
        self._go_on(tokens)
        logits = self.logits
        self._ids, self._inputs, self._outputs = kept
        self._inputs["past_key_values"] = self._outputs.past_key_values = cache
        if self._in_runs:
            cache.crop(-tokens.shape[1])
        return logits

    def _go_on(self, tokens: torch.Tensor) -> None:
        for part in [tokens] if self._in_runs else tokens.split(1, dim=1):
            if part.shape[1] or not self._outputs:  # nothing but the prompt is read in the first pass only
                self._forward(part)

    def _forward(self, tokens: torch.Tensor) -> None:
        first, count = not self._outputs, tokens.shape[1]
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)], dim=1)
        # The model's own bookkeeping: masks and positions (Qwen's in three axes) go on where the prompt has ended.
        self._inputs = self._model._update_model_kwargs_for_generation(
            self._outputs, self._inputs, is_encoder_decoder=False, num_new_tokens=count
        )
        prepared = self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=None if first else count, is_first_iteration=first, **self._inputs
        )
        self._outputs = self._model(**prepared, return_dict=True)
        self._inputs["past_key_values"] = self._outputs.past_key_values
        if first and self._in_runs:
            self._outputs.past_key_values.activate_past_recording()


class _Writing:
    """One answer under way. tokens: what stands in it. unread: those at its end that the model has yet to read."""

    def __init__(self, grammar: AnswerGrammar, kind: AnswerKind) -> None:
        self.grammar, self.kind, self.matcher = grammar, kind, grammar.matcher(kind)
        self.tokens: list[int] = []
        self.unread: list[int] = []
        self.p_defective: float | None = None
        self.address_probabilities: tuple[float, ...] | None = None
        self._write_forced()

    @property
    def complete(self) -> bool:
        return self.matcher.is_stopped()

    @property
    def waits(self) -> bool:
        """Whether the model has read all and has to choose."""
        return not self.complete and not self.unread

    @property
    def wants_address(self) -> bool:
        return self.waits and self.address_probabilities is None and self.grammar.at_address(self.tokens)

    def take(self, count: int, filler: int) -> list[int]:
        """The next `count` unread tokens, filled up at the end; they count as read."""
        taken, self.unread = self.unread[:count], self.unread[count:]
        return taken + [filler] * (count - len(taken))

    def choose(self, logits: torch.Tensor) -> None:
        """Write the most probable allowed token by `logits` (vocabulary,), and what the grammar forces after it."""
        if self.p_defective is None and self.kind is not AnswerKind.STAR and self.grammar.at_judgement(self.tokens):
            self.p_defective = self.grammar.p_defective(logits)
            token = self.grammar.judgements[1]
        else:
            allowed = self.grammar.allowed(self.matcher, len(logits)).to(logits.device)
            token = int(logits.masked_fill(~allowed, float("-inf")).argmax())
        self.matcher.consume_token(token)
        self.tokens.append(token)
        self.unread.append(token)
        self._write_forced()

    def told(self) -> GeneratedAnswer:
        text, shares = self.grammar.text(self.tokens), self.address_probabilities
        entropy = None if shares is None else -sum(share * math.log2(share) for share in shares if share > 0)
        return self.grammar.both_ways(
            text, self.kind, self.p_defective, address_probabilities=shares, address_entropy=entropy
        )

    def _write_forced(self) -> None:
        forced = [] if self.complete else self.matcher.compute_ff_tokens()
        self.matcher.consume_tokens(forced)
        self.tokens += forced
        self.unread += forced


class _FastForward:
    """Answers batches of rows under the grammar; the rows of a batch advance together, by their shortest forced run."""

    def __init__(self, in_runs: bool) -> None:
        self._in_runs = in_runs

    def __call__(self, inspector, encoder, rows, contract) -> Iterator[GeneratedAnswer]:
        grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
        writings = [_Writing(grammar, AnswerKind(row["answer_kind"])) for row in rows]

        def write(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs) -> torch.Tensor:
            self._write(_Reader(model, input_ids, inputs, in_runs=self._in_runs), writings, grammar)
            return input_ids

        _generate(inspector, encoder.batch(rows, answers=False), custom_generate=write)
        return (writing.told() for writing in writings)

    @staticmethod
    def _write(reader: _Reader, writings: list[_Writing], grammar: AnswerGrammar) -> None:
        filler = grammar.tokenizer.pad_token_id
        while under_way := [writing for writing in writings if not writing.complete]:
            run = min(len(writing.unread) for writing in under_way)
            reader.read(torch.tensor([writing.take(run, filler) for writing in writings]))
            if any(writing.wants_address for writing in under_way):
                shares = address_shares(reader.logits, reader.glance, grammar.addresses)
                for writing, of_row in zip(writings, shares.tolist(), strict=True):
                    if writing.wants_address:
                        writing.address_probabilities = tuple(of_row)
            for writing, logits in zip(writings, reader.logits, strict=True):
                if writing.waits:
                    writing.choose(logits)


def address_shares(
    logits: torch.Tensor, glance: Callable[[torch.Tensor], torch.Tensor], addresses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """The probability of every address, given that one of them comes next: float32 (rows, addresses), rows sum to 1.

    logits: (rows, vocabulary) of the next token. glance: gives the logits after further tokens (rows, n). addresses:
    the tokens of each. Where addresses part (at the column, and within each column at the row), the probabilities of
    the tokens that go on are scaled to sum to 1, just as the grammar does.
    """
    parts: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for tokens in addresses:
        for place, token in enumerate(tokens):
            if token not in parts[tuple(tokens[:place])]:
                parts[tuple(tokens[:place])].append(token)
    log_shares = logits.new_zeros((len(logits), len(addresses)))
    for lead, choices in parts.items():
        if len(choices) == 1:
            continue
        seen = glance(torch.tensor([lead] * len(logits))) if lead else logits
        of_choice = seen[:, choices].float().log_softmax(1)
        for index, tokens in enumerate(addresses):
            if tuple(tokens[: len(lead)]) == lead:
                log_shares[:, index] += of_choice[:, choices.index(tokens[len(lead)])]
    return log_shares.exp()


def _reads_in_runs(inspector: Inspector, encoder: RowEncoder, row: dict, contract: AnswerContract) -> bool:
    """Whether this model gives the same logits for a run of tokens, after another glance, as token by token.

    Found out once for each model, with the first forced run of an answer to `row`.
    """
    if inspector.model not in _IN_RUNS:
        forced = _Writing(AnswerGrammar(inspector.processor.tokenizer, contract), AnswerKind(row["answer_kind"])).unread
        run = torch.tensor([forced])
        found = []

        def compare(model, input_ids, logits_processor, stopping_criteria, generation_config, **inputs):
            for in_runs in (False, True):
                reader = _Reader(model, input_ids, dict(inputs, past_key_values=None), in_runs=in_runs)
                # Some masks, such as Mllama's of its images, go on by single tokens only.
                with contextlib.suppress(*((RuntimeError, IndexError) if in_runs else ())):
                    reader.read(run[:, :1])
                    if in_runs:
                        reader.glance(run[:, 1:])
                    reader.read(run[:, 1:])
                    found.append(reader.logits)
            return input_ids

        _generate(inspector, encoder.batch([row], answers=False), custom_generate=compare)
        apart = (found[0] - found[1]).abs().max() / found[0].std() if len(found) == 2 else math.inf
        _IN_RUNS[inspector.model] = bool(apart < _SAME_LOGITS)
    return _IN_RUNS[inspector.model]


_IN_RUNS: WeakKeyDictionary = WeakKeyDictionary()


def _answer_by_token(inspector, encoder, rows, contract) -> Iterator[GeneratedAnswer]:
    grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
    kinds = [AnswerKind(row["answer_kind"]) for row in rows]
    batch = encoder.batch(rows, answers=False)
    processor = GrammarProcessor(grammar, kinds, batch["input_ids"].shape[1])
    for kind, (text, p_defective) in zip(kinds, _generated(inspector, batch, grammar, processor), strict=True):
        yield grammar.both_ways(text, kind, p_defective)


def _answer_freely(inspector, encoder, rows, contract) -> Iterator[GeneratedAnswer]:
    grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
    for text, p_defective in _generated(inspector, encoder.batch(rows, answers=False), grammar):
        yield GeneratedAnswer(text, p_defective, 0.0)


def _generated(inspector, batch, grammar: AnswerGrammar, *processors) -> Iterator[tuple[str, float | None]]:
    """Text and P(defective) of every row by `generate`."""
    made = _generate(
        inspector,
        batch,
        logits_processor=LogitsProcessorList(processors),
        return_dict_in_generate=True,
        output_logits=True,
    )
    for index, tokens in enumerate(made.sequences[:, batch["input_ids"].shape[1] :].tolist()):
        step = next((step for step in range(1, len(tokens)) if grammar.at_judgement(tokens[:step])), None)
        p_defective = None if step is None else grammar.p_defective(made.logits[step][index])
        yield grammar.text(tokens), p_defective


@torch.inference_mode()
def _generate(inspector, batch, **options):
    model, tokenizer = inspector.model, inspector.processor.tokenizer
    dtype = next(model.parameters()).dtype
    return model.generate(
        **{
            name: tensor.to(inspector.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in batch.items()
        },
        max_new_tokens=MAXIMUM_ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


@lru_cache(maxsize=4)
def _guide(tokenizer):
    """The tokenizer as llguidance wants it."""
    return llguidance.hf.from_tokenizer(tokenizer)


def _common_start(texts: Sequence[str]) -> str:
    places = zip(*texts, strict=False)
    return "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, places))
