"""Constrained decoding that reads the tokens which the grammar forces in runs, one forward pass per run.

Of about forty tokens in an answer the model decides six. Reading a forced run at once gives the same logits as reading
it token by token; a model for which this does not hold (tried once, with the first row) reads token by token.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.rows import Row
from pinspect.model.generated_answer import GeneratedAnswer
from pinspect.model.grammar import AnswerGrammar
from pinspect.model.loading import Inspector
from pinspect.model.rows import RowEncoder

_SAME_LOGITS = 0.05  # difference over standard deviation: rounding stays far below, a wrong position far above
_READS_IN_RUNS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class FastForward:
    """Answers batches of rows under the grammar; the rows of a batch advance by their shortest forced run.

    Args:
        in_runs: Whether the model reads several tokens in one forward pass; see `reads_in_runs`.
    """

    def __init__(self, in_runs: bool) -> None:
        self._in_runs = in_runs

    def __call__(
        self, inspector: Inspector, encoder: RowEncoder, rows: Sequence[Row], contract: AnswerContract
    ) -> Iterator[GeneratedAnswer]:
        """Yield the answer of every row."""
        grammar = AnswerGrammar(inspector.processor.tokenizer, contract)
        drafts = [_Draft(grammar, AnswerKind(row["answer_kind"])) for row in rows]

        def write(
            model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **inputs
        ) -> torch.Tensor:
            _write(_Reader(model, input_ids, inputs, in_runs=self._in_runs), drafts, grammar)
            return input_ids

        inspector.generate(encoder.batch(rows, answers=False), custom_generate=write)
        return (draft.answer() for draft in drafts)


def reads_in_runs(inspector: Inspector, encoder: RowEncoder, row: Row, contract: AnswerContract) -> bool:
    """Return whether the model gives the same logits for a run of tokens as for its tokens one by one.

    The answer is measured once per model, with the first forced run of an answer to `row`, and after a peek at other
    tokens, which `_Reader.peek` has to undo.
    """
    if inspector.model not in _READS_IN_RUNS:
        forced = _Draft(AnswerGrammar(inspector.processor.tokenizer, contract), AnswerKind(row["answer_kind"])).unread
        run = torch.tensor([forced])
        logits: list[torch.Tensor] = []

        def compare(
            model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **inputs
        ) -> torch.Tensor:
            for in_runs in (False, True):
                reader = _Reader(model, input_ids, dict(inputs, past_key_values=None), in_runs=in_runs)
                # Some masks, such as the image masks of Mllama, can only be extended by single tokens.
                with contextlib.suppress(*((RuntimeError, IndexError) if in_runs else ())):
                    reader.read(run[:, :1])
                    if in_runs:
                        reader.peek(run[:, 1:])
                    reader.read(run[:, 1:])
                    logits.append(reader.logits)
            return input_ids

        inspector.generate(encoder.batch([row], answers=False), custom_generate=compare)
        apart = (logits[0] - logits[1]).abs().max() / logits[0].std() if len(logits) == 2 else math.inf
        _READS_IN_RUNS[inspector.model] = bool(apart < _SAME_LOGITS)
    return _READS_IN_RUNS[inspector.model]


def address_shares(
    logits: torch.Tensor, peek: Callable[[torch.Tensor], torch.Tensor], addresses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the probability of every address, given that one of the addresses comes next.

    Where addresses branch (at the column, and within each column at the row), the probabilities of the branching tokens
    are scaled to sum 1, as the grammar does.

    Args:
        logits: Logits (rows, vocabulary) of the next token.
        peek: Returns the logits after further tokens (rows, n).
        addresses: The tokens of each address.

    Returns:
        float32 (rows, addresses); every row has sum 1.
    """
    branches: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for tokens in addresses:
        for place, token in enumerate(tokens):
            if token not in branches[tuple(tokens[:place])]:
                branches[tuple(tokens[:place])].append(token)
    log_shares = logits.new_zeros((len(logits), len(addresses)))
    for lead, choices in branches.items():
        if len(choices) == 1:
            continue
        branch_logits = peek(torch.tensor([lead] * len(logits))) if lead else logits
        log_probabilities = branch_logits[:, choices].float().log_softmax(1)
        for index, tokens in enumerate(addresses):
            if tuple(tokens[: len(lead)]) == lead:
                log_shares[:, index] += log_probabilities[:, choices.index(tokens[len(lead)])]
    return log_shares.exp()


def _write(reader: _Reader, drafts: list[_Draft], grammar: AnswerGrammar) -> None:
    filler = grammar.tokenizer.pad_token_id
    while unfinished := [draft for draft in drafts if not draft.complete]:
        run = min(len(draft.unread) for draft in unfinished)
        reader.read(torch.tensor([draft.take(run, filler) for draft in drafts]))
        if any(draft.at_address for draft in unfinished):
            shares = address_shares(reader.logits, reader.peek, grammar.addresses)
            for draft, row_shares in zip(drafts, shares.tolist(), strict=True):
                if draft.at_address:
                    draft.address_probabilities = tuple(row_shares)
        for draft, logits in zip(drafts, reader.logits, strict=True):
            if draft.at_choice:
                draft.choose(logits)


class _Reader:
    """A model that has read a prompt and reads on; `logits` (rows, vocabulary) are those of the next token.

    in_runs: reads several tokens at once, and undoes a peek by cropping the cache. Otherwise it reads token by token,
    and peeks with a copy of the cache: slower, and right for every model.
    """

    def __init__(self, model: Any, input_ids: torch.Tensor, inputs: dict[str, Any], *, in_runs: bool) -> None:
        self._model, self._ids, self._inputs, self._in_runs = model, input_ids, inputs, in_runs
        self._outputs: Any = {}
        if not in_runs:
            self._forward(input_ids.new_empty((len(input_ids), 0)))

    @property
    def logits(self) -> torch.Tensor:
        return self._outputs.logits[:, -1].float()

    def read(self, tokens: torch.Tensor) -> None:
        """Read `tokens`, int64 (rows, n), after all tokens before."""
        self._read_on(tokens)
        if self._in_runs:
            self._inputs["past_key_values"].crop(0)  # sliding windows kept more than they need, to be able to undo

    def peek(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits after `tokens`, and undo reading them."""
        state = self._ids, dict(self._inputs), self._outputs
        cache = self._inputs["past_key_values"]
        if not self._in_runs:
            self._inputs["past_key_values"] = self._outputs.past_key_values = copy.deepcopy(cache)
        self._read_on(tokens)
        logits = self.logits
        self._ids, self._inputs, self._outputs = state
        self._inputs["past_key_values"] = self._outputs.past_key_values = cache
        if self._in_runs:
            cache.crop(-tokens.shape[1])
        return logits

    def _read_on(self, tokens: torch.Tensor) -> None:
        for part in [tokens] if self._in_runs else tokens.split(1, dim=1):
            if part.shape[1] or not self._outputs:  # only the first pass may read nothing but the prompt
                self._forward(part)

    def _forward(self, tokens: torch.Tensor) -> None:
        first, count = not self._outputs, tokens.shape[1]
        self._ids = torch.cat([self._ids, tokens.to(self._ids.device)], dim=1)
        # The model's own bookkeeping continues masks and positions (Qwen's have three axes) after the prompt.
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


class _Draft:
    """One unfinished answer. tokens: all of its tokens. unread: the last of them, which the model has yet to read."""

    def __init__(self, grammar: AnswerGrammar, kind: AnswerKind) -> None:
        self.grammar, self.kind, self.matcher = grammar, kind, grammar.matcher(kind)
        self.tokens: list[int] = []
        self.unread: list[int] = []
        self.p_defective: float | None = None
        self.address_probabilities: tuple[float, ...] | None = None
        self._append_forced()

    @property
    def complete(self) -> bool:
        return self.matcher.is_stopped()

    @property
    def at_choice(self) -> bool:
        """Whether the model has read all tokens and has to choose the next one."""
        return not self.complete and not self.unread

    @property
    def at_address(self) -> bool:
        return self.at_choice and self.address_probabilities is None and self.grammar.at_address(self.tokens)

    def take(self, count: int, filler: int) -> list[int]:
        """Return the next `count` unread tokens, padded with `filler`, and mark them as read."""
        run, self.unread = self.unread[:count], self.unread[count:]
        return run + [filler] * (count - len(run))

    def choose(self, logits: torch.Tensor) -> None:
        """Append the most probable allowed token by `logits` (vocabulary,), and the tokens that the grammar forces."""
        if self.p_defective is None and self.kind is not AnswerKind.STAR and self.grammar.at_judgement(self.tokens):
            self.p_defective = self.grammar.p_defective(logits)
            token = self.grammar.judgements[1]
        else:
            allowed = self.grammar.allowed(self.matcher, len(logits)).to(logits.device)
            token = int(logits.masked_fill(~allowed, float("-inf")).argmax())
        self.matcher.consume_token(token)
        self.tokens.append(token)
        self.unread.append(token)
        self._append_forced()

    def answer(self) -> GeneratedAnswer:
        return self.grammar.generated_answer(
            self.grammar.text(self.tokens), self.kind, self.p_defective, self.address_probabilities
        )

    def _append_forced(self) -> None:
        forced = [] if self.complete else self.matcher.compute_ff_tokens()
        self.matcher.consume_tokens(forced)
        self.tokens += forced
        self.unread += forced
