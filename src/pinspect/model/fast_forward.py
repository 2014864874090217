"""Constrained decoding in few forward passes: what all prompts of a batch share is read once, and answers as trees.

Of about forty tokens in an answer the model decides six. One pass reads all tokens up to the next decision, and beyond
it those of the last answer to a similar prompt: where the model decides likewise, their logits stand. After them it
reads the beginnings of all addresses at once. The answer to a passed capture therefore takes one pass, others take two.
If a line has few defect modes and pins, a single row takes one pass in any case: it reads the addresses after every
mode, since a second pass takes longer than some hundred tokens more in the first.
A model for which trees give other logits than single tokens (tried once, with the first row) reads token by token.

On a CPU each of torch's threads answers a part of the batch: the products of a small model are too small to be divided
among threads (docs/LOG.md). A single row has all threads for its products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.rows import Row
from pinspect.model.draft import Draft, Expected, Lead
from pinspect.model.generated_answer import GeneratedAnswer
from pinspect.model.grammar import AnswerGrammar, grammar_of
from pinspect.model.loading import Inspector
from pinspect.model.memory import AnswerMemory, Head, cache_of
from pinspect.model.readers import NO_TREE, TokenReader, TokenTree, TreeReader, skip_unwanted
from pinspect.model.rows import Inputs, RowEncoder

_EXTRA_TOKENS = 150  # at most, that a single row reads to be spared a second pass
_SAME_LOGITS = 0.05  # difference over standard deviation: rounding stays far below, a wrong position far above
READS_TREES: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


class FastForward:
    """Answers batches of rows under the grammar.

    Args:
        inspector: The model.
        encoder: Rows -> model inputs.
        contract: The answer contract.
        memory: What earlier answers of this model left.
    """

    def __init__(
        self, inspector: Inspector, encoder: RowEncoder, contract: AnswerContract, memory: AnswerMemory
    ) -> None:
        self._inspector, self._encoder, self._memory = inspector, encoder, memory
        self._grammar = grammar_of(inspector.processor.tokenizer, contract)
        addresses = tuple(map(tuple, self._grammar.addresses))
        self._tree = _tree_of(addresses)
        modes = tuple(map(tuple, self._grammar.modes))
        few = sum(map(len, modes)) + len(modes) * len(self._tree.tokens) <= _EXTRA_TOKENS
        self._tree_of_modes = _tree_of(addresses, modes) if few else NO_TREE
        self._trees = False
        # Of this thread, which answers: torch counts anew in the thread that encodes.
        self._threads = torch.get_num_threads() if inspector.device.type == "cpu" else 1

    @torch.inference_mode()
    def prepare(self, row: Row) -> None:
        """Find out, once per model, how it reads: whether trees give the same logits as single tokens.

        Both ways read the prompt of `row` and the first forced run of its answer, then the last path of the address
        tree, and then, as if that had not been read, another token.
        """
        if self._inspector.model not in READS_TREES:
            skip_unwanted(self._inspector.base_model)
            run = Draft(self._grammar, AnswerKind(row["answer_kind"])).unread
            path, token = self._tree.paths[-1], self._grammar.addresses[0][0]
            slow = TokenReader(self._inspector, self._encoder.batch([row], answers=False))
            slow.read(torch.tensor([run]))
            expected = [slow.logits, slow.peek(path)]
            slow.read(torch.tensor([[token]]))
            expected = torch.stack([*expected, slow.logits], dim=1).cpu()
            try:
                apart = (self._logits_of_trees(row, run, token) - expected).abs().max() / expected.std()
            except Exception:  # a model that cannot take such a mask may raise anything
                apart = torch.inf
            READS_TREES[self._inspector.model] = bool(apart < _SAME_LOGITS)
        self._trees = READS_TREES[self._inspector.model]

    def _logits_of_trees(self, row: Row, run: list[int], token: int) -> torch.Tensor:
        self._trees, nodes = True, len(run) + len(self._tree.tokens)
        reader = self._reader(self._inputs([row]), self._heads([row]))
        first = reader.read([run], [self._tree], torch.tensor([len(run) - 1, nodes - 1]))
        reader.keep(torch.arange(nodes)[None] < len(run))
        return torch.cat([first, reader.read([[token]], [NO_TREE], torch.tensor([0]))], dim=1)

    def encode(self, rows: Sequence[Row]) -> Inputs | None:
        """Build the model inputs of a batch; another thread may do this ahead.

        Returns:
            The inputs; None if the batch has several parts, because each part's thread builds its own.
        """
        return self._inputs(rows) if len(self._parts(rows)) == 1 else None

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], inputs: Inputs | None) -> list[GeneratedAnswer]:
        """Return the answer of every row.

        Args:
            rows: Rows of the chat dataset.
            inputs: The same rows as `encode` returns them.
        """
        drafts = [Draft(self._grammar, AnswerKind(row["answer_kind"])) for row in rows]
        if self._trees:
            heads = self._heads(rows)
            leads = self._memory.leads(heads) if heads else [self._memory.lead] * len(rows)

            @torch.inference_mode()
            def write(part: slice) -> None:
                reader = self._reader(inputs or self._inputs(rows[part]), heads[part])
                self._write(reader, drafts[part], leads[part])

            parts = self._parts(rows)
            list((_thread_pool(self._threads).map if len(parts) > 1 else map)(write, parts))
            self._memory.remember(heads, [draft.lead for draft in drafts])
        else:
            batch, _ = inputs or self._inputs(rows)
            _write_by_token(TokenReader(self._inspector, batch), drafts, self._grammar)
        return [draft.answer() for draft in drafts]

    def _parts(self, rows: Sequence[Row]) -> list[slice]:
        """Return the parts of a batch that are answered at the same time."""
        size = -(-len(rows) // self._threads) if self._trees else len(rows)
        return [slice(start, start + size) for start in range(0, len(rows), size)]

    def _inputs(self, rows: Sequence[Row]) -> Inputs:
        if self._trees and self._encoder.shares_heads:
            return self._encoder.tails(rows)
        return self._encoder.batch(rows, answers=False), {}

    def _heads(self, rows: Sequence[Row]) -> list[Head]:
        return self._memory.heads(self._inspector, self._encoder, rows) if self._encoder.shares_heads else []

    def _reader(self, inputs: Inputs, heads: Sequence[Head]) -> TreeReader:
        """Return a reader of prompts, whose heads have been read; without heads the whole prompts are read."""
        batch, pictures = inputs
        return TreeReader(self._inspector, batch, cache_of(heads) if heads else None, pictures)

    def _write(self, reader: TreeReader, drafts: Sequence[Draft], leads: Sequence[Lead]) -> None:
        unfinished = list(zip(drafts, leads, strict=True))
        trees = {"address": self._tree, "mode": self._tree_of_modes, "": NO_TREE}
        every_mode = len(drafts) == 1 and bool(self._tree_of_modes.tokens)
        while unfinished:
            plans = [draft.expected(lead, every_mode=every_mode) for draft, lead in unfinished]
            step = _Step(reader, plans, [trees[plan.before] for plan in plans], self._grammar.addresses)
            accepted = torch.zeros(step.shape, dtype=torch.bool)
            for row, (draft, _) in enumerate(unfinished):
                accepted[row, step.follow(row, draft)] = True
            rows = [row for row, (draft, _) in enumerate(unfinished) if not draft.complete]
            unfinished = [unfinished[row] for row in rows]
            if unfinished:
                reader.keep(accepted, rows)


class _Step:
    """One forward pass over all rows, and the logits after those tokens that may come before a choice."""

    def __init__(
        self,
        reader: TreeReader,
        plans: Sequence[Expected],
        trees: Sequence[TokenTree],
        addresses: Sequence[Sequence[int]],
    ) -> None:
        self._plans, self._trees = plans, trees
        places = {place for plan in plans for place in plan.choices}
        places |= {len(plan.run) + node for plan, tree in zip(plans, trees, strict=True) for node in tree.branches}
        self._index = {place: index for index, place in enumerate(sorted(places))}
        self._logits = reader.read([plan.run for plan in plans], trees, torch.tensor(list(self._index)))
        self.shape = len(plans), max(len(plan.run) + len(tree.tokens) for plan, tree in zip(plans, trees, strict=True))
        leads = [(row, lead) for row, tree in enumerate(trees) for lead in tree.leads]

        def after(path: tuple[int, ...]) -> torch.Tensor:
            """Return the logits after the same tokens of an address, for each of `leads`."""
            numbers = (self._number(row, lead + path) for row, lead in leads)
            return self._logits[[row for row, _ in leads], [self._index[number] for number in numbers]]

        shares = address_shares(after, addresses).tolist() if leads else []
        self._shares = dict(zip(leads, shares, strict=True))

    def follow(self, row: int, draft: Draft) -> list[int]:
        """Write an answer on as far as this pass reaches; return the numbers of the tokens that belong to it."""
        numbers: list[int] = []
        while draft.unread and (number := self._next(row, numbers[-1] if numbers else -1, draft.unread[0])) is not None:
            draft.take(1)
            if draft.at_choice:
                shares = self._shares.get((row, self._path(row, number))) if draft.at_address else None
                if number not in self._index or (draft.at_address and shares is None):
                    draft.unread = draft.tokens[-1:]  # read it again, for the logits after it
                    break
                if shares:
                    draft.address_probabilities = tuple(shares)
                draft.choose(self._logits[row, self._index[number]])
            numbers.append(number)
        return numbers

    def _next(self, row: int, number: int, token: int) -> int | None:
        """Return the number of `token` where it comes after the token with `number` in this pass, None if nowhere."""
        run = self._plans[row].run
        if number + 1 < len(run):
            return number + 1 if run[number + 1] == token else None
        path = (*self._path(row, number), token)
        return self._number(row, path) if path in self._trees[row].numbers else None

    def _path(self, row: int, number: int) -> tuple[int, ...]:
        """Return the path in a row's tree of the token with `number`; empty in the run."""
        node = number - len(self._plans[row].run)
        return self._trees[row].paths[node] if node >= 0 else ()

    def _number(self, row: int, path: tuple[int, ...]) -> int:
        """Return the number of the last token of a path in a row's tree.

        Raises:
            KeyError: The tree has no such path.
        """
        return len(self._plans[row].run) + (self._trees[row].numbers[path] if path else -1)


def address_shares(
    after: Callable[[tuple[int, ...]], torch.Tensor], addresses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the probability of every address, given that one of the addresses comes next.

    Where addresses branch (at the column, and within each column at the row), the probabilities of the branching tokens
    are scaled to sum 1, as the grammar does.

    Args:
        after: Returns the logits (rows, vocabulary) after further tokens.
        addresses: The tokens of each address.

    Returns:
        float32 (rows, addresses); every row has sum 1.
    """
    logits = after(())
    log_shares = logits.new_zeros((len(logits), len(addresses)))
    for lead, choices, numbers, places in _branches(tuple(map(tuple, addresses))):
        log_probabilities = (after(lead) if lead else logits)[:, choices].float().log_softmax(1)
        log_shares[:, numbers] += log_probabilities[:, places]
    return log_shares.exp()


@lru_cache(maxsize=4)
def _thread_pool(count: int) -> ThreadPoolExecutor:
    """Return threads that stay: the memory that new ones use has to be cleared by the system first."""
    return ThreadPoolExecutor(count, "answers", torch.set_num_threads, (1,))


@lru_cache(maxsize=4)
def _tree_of(addresses: tuple[tuple[int, ...], ...], leads: tuple[tuple[int, ...], ...] = ((),)) -> TokenTree:
    return TokenTree.of(addresses, leads)


@lru_cache(maxsize=4)
def _branches(
    addresses: tuple[tuple[int, ...], ...],
) -> list[tuple[tuple[int, ...], list[int], list[int], list[int]]]:
    """Return where addresses branch: tokens before, choices, numbers of the addresses behind, and their choices."""
    branches = []
    for lead in dict.fromkeys(tokens[:place] for tokens in addresses for place in range(len(tokens))):
        numbers = [number for number, tokens in enumerate(addresses) if tokens[: len(lead)] == lead]
        tokens = [addresses[number][len(lead)] for number in numbers]
        choices = list(dict.fromkeys(tokens))
        if len(choices) > 1:
            branches.append((lead, choices, numbers, [choices.index(token) for token in tokens]))
    return branches


def _write_by_token(reader: TokenReader, drafts: Sequence[Draft], grammar: AnswerGrammar) -> None:
    """Write answers, which advance by their shortest forced run."""
    filler = grammar.tokenizer.pad_token_id
    while unfinished := [draft for draft in drafts if not draft.complete]:
        run = min(len(draft.unread) for draft in unfinished)
        reader.read(torch.tensor([draft.take(run, filler) for draft in drafts]))
        if any(draft.at_address for draft in unfinished):
            shares = address_shares(lambda path: reader.peek(path) if path else reader.logits, grammar.addresses)
            for draft, row_shares in zip(drafts, shares.tolist(), strict=True):
                if draft.at_address:
                    draft.address_probabilities = tuple(row_shares)
        for draft, logits in zip(drafts, reader.logits, strict=True):
            if draft.at_choice:
                draft.choose(logits)
