"""The answer contract as a grammar over the tokens of one tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any, Literal

import llguidance
import llguidance.hf
import numpy as np
import torch
from transformers import LogitsProcessor

from pinspect.core.answers import DEFECTIVE, PASSED, AnswerContract, AnswerKind
from pinspect.model.batching import TOKENIZING
from pinspect.model.generated_answer import GeneratedAnswer, entropy_bits

_BEGINNINGS = 4096  # of answers, at most, that a grammar keeps


class AnswerGrammar:
    """The answer contract in the tokens of one tokenizer.

    Attributes:
        tokenizer: The tokenizer of the model.
        contract: The answer contract.
        judgement_lead: Text directly before the judgement.
        address_lead: Text that all addresses start with.
        judgements: The tokens that `passed` and `defective` start with, in this order.
        addresses: For each pin the tokens of its address after `address_lead`.
        mode_lead: Text directly before the defect mode.
        modes: For each defect mode its tokens, and those from there to the end of `address_lead`.
        before: `before(tokens)` returns what comes next after `tokens`, if that is the judgement, one of several modes
            or the first part of the address that differs between pins; else it is empty.
        after: `after(kind, tokens)` returns the tokens that the grammar forces after those of an answer, and those of
            which one comes then, int64 (n,), or None if the answer ends. Answers of a line have few beginnings, and
            each is computed once.
    """

    def __init__(self, tokenizer: Any, contract: AnswerContract) -> None:
        self.tokenizer, self.contract = tokenizer, contract
        self.before = lru_cache(_BEGINNINGS)(self._before)
        self.after = lru_cache(_BEGINNINGS)(self._after)
        self._matchers: dict[AnswerKind, llguidance.LLMatcher] = {}
        shape, address = contract.shapes[0], contract.layout.addresses[0]
        answers = (
            contract.passed(shape, "RAW"),
            contract.defective(shape, "RAW", contract.defect_modes[0], address),
        )
        self.judgement_lead = _common_start([contract.render(answer) for answer in answers]).split("\n")[-1]
        addresses = [str(address) for address in contract.layout.addresses]
        self.address_lead = _common_start(addresses)
        self.judgements = [self._tokens_after(self.judgement_lead, word)[0] for word in (PASSED, DEFECTIVE)]
        arrow = f"->{self.address_lead}"
        self.addresses = [self._tokens_after(arrow, text.removeprefix(self.address_lead)) for text in addresses]
        to_mode, from_mode = contract.render(answers[1]).rsplit(f"{contract.defect_modes[0]}\n", 1)
        self.mode_lead = to_mode.split("\n")[-1]
        to_address = from_mode.removesuffix(str(address)) + self.address_lead
        self.modes = [self._tokens_after(self.mode_lead, f"{mode}\n{to_address}") for mode in contract.defect_modes]

    def matcher(self, kind: AnswerKind) -> llguidance.LLMatcher:
        """Return a new matcher for answers of `kind`."""
        if kind not in self._matchers:
            grammar = llguidance.LLMatcher.grammar_from_regex(self.contract.pattern(kind, anchored=False))
            self._matchers[kind] = llguidance.LLMatcher(_llguidance_tokenizer(self.tokenizer), grammar)
        return self._matchers[kind].deep_copy()

    def _before(self, tokens: tuple[int, ...]) -> Literal["judgement", "mode", "address", ""]:
        text = self.text(tokens)
        if text.endswith(self.judgement_lead):
            return "judgement"
        if len(self.modes) > 1 and text.endswith(self.mode_lead):
            return "mode"
        return "address" if text.endswith(f"->{self.address_lead}") else ""

    def _after(self, kind: AnswerKind, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], torch.Tensor | None]:
        matcher = self.matcher(kind)
        matcher.consume_tokens(list(tokens))
        forced = [] if matcher.is_stopped() else matcher.compute_ff_tokens()
        matcher.consume_tokens(forced)
        if matcher.is_stopped():
            return tuple(forced), None
        return tuple(forced), next_tokens(matcher)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def p_defective(self, logits: torch.Tensor) -> float:
        """Return P(defective) against P(passed), 0..1.

        Args:
            logits: Logits (vocabulary,) of the judgement token.
        """
        return float(logits[self.judgements].double().softmax(0)[1])

    def generated_answer(
        self,
        if_defective: str,
        kind: AnswerKind,
        p_defective: float | None,
        address_probabilities: tuple[float, ...] | None = None,
    ) -> GeneratedAnswer:
        """Return the answer that was decoded as defective, together with the passed answer.

        The grammar fully determines the passed answer from the lines before the judgement, so it needs no decoding.

        Args:
            if_defective: The decoded text.
            kind: Kind of the answer.
            p_defective: P(defective); None for a star answer, which has no judgement.
            address_probabilities: See `GeneratedAnswer`.
        """
        entropy = None if address_probabilities is None else entropy_bits(address_probabilities)
        if_passed = None
        if p_defective is not None:
            answer = self.contract.parse(if_defective, kind)
            if_passed = self.contract.render(self.contract.passed(answer.shape, answer.view), kind)
        return GeneratedAnswer(
            text=if_defective,
            p_defective=p_defective,
            seconds=0.0,
            if_passed=if_passed,
            if_defective=None if if_passed is None else if_defective,
            address_probabilities=address_probabilities,
            address_entropy=entropy,
        )

    def _tokens_after(self, lead: str, text: str) -> list[int]:
        """Return the tokens of `text` where it follows `lead`."""
        ids = self.tokenizer(lead, add_special_tokens=False).input_ids
        return self.tokenizer(lead + text, add_special_tokens=False).input_ids[len(ids) :]


class GrammarProcessor(LogitsProcessor):
    """Masks all tokens that would break the grammar in `generate`, and decodes every judgement as `defective`."""

    def __init__(self, grammar: AnswerGrammar, kinds: Sequence[AnswerKind], prompt_length: int) -> None:
        self.grammar, self.prompt_length, self.read = grammar, prompt_length, prompt_length
        self.matchers = [grammar.matcher(kind) for kind in kinds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return `scores` (rows, vocabulary) of the next token with forbidden tokens at minus infinity."""
        masked = torch.full_like(scores, float("-inf"))
        for index, matcher in enumerate(self.matchers):
            tokens = input_ids[index, self.prompt_length :].tolist()
            for token in tokens[self.read - self.prompt_length :]:
                if not matcher.is_stopped():
                    matcher.consume_token(token)
            # A matcher stops when the answer is complete, before the end token, so the end token is forced here.
            if matcher.is_stopped():
                masked[index, self.grammar.tokenizer.eos_token_id] = 0
            elif self.grammar.before(tuple(tokens)) == "judgement":
                masked[index, self.grammar.judgements[1]] = 0
            else:
                allowed = next_tokens(matcher).to(scores.device)
                masked[index, allowed] = scores[index, allowed]
        self.read = input_ids.shape[1]
        return masked


def next_tokens(matcher: llguidance.LLMatcher) -> torch.Tensor:
    """Return the tokens of which one may come next, int64 (n,)."""
    return torch.from_numpy(np.frombuffer(matcher.compute_logit_bias(), np.uint8).nonzero()[0])


@lru_cache(maxsize=4)
def grammar_of(tokenizer: Any, contract: AnswerContract) -> AnswerGrammar:
    """Return the grammar of a contract in the tokens of a tokenizer; it is built once."""
    with TOKENIZING:
        return AnswerGrammar(tokenizer, contract)


@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer: Any) -> llguidance.LLTokenizer:
    return llguidance.hf.from_tokenizer(tokenizer)


def _common_start(texts: Sequence[str]) -> str:
    places = zip(*texts, strict=False)
    return "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, places))
