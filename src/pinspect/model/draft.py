"""One unfinished answer under the grammar: what it has decided, and what the model has yet to read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pinspect.core.answers import AnswerKind
from pinspect.model.generated_answer import EVEN_ODDS, GeneratedAnswer
from pinspect.model.grammar import AnswerGrammar


@dataclass(frozen=True)
class Lead:
    """How an answer begins: what captures of one shape and view have in common.

    Passed captures have their most probable defect mode in common, too.

    Attributes:
        tokens: The tokens before the address of a passed capture, and of an answer without judgement; before the mode
            of a defective one.
        choices: Numbers of those tokens that the grammar did not force.
    """

    tokens: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()

    def after(self, answer: Lead | None) -> Lead:
        """Return what to expect after another answer: this, unless the answer began in another way."""
        return self if answer is None or self.tokens[: len(answer.tokens)] == answer.tokens else answer


@dataclass(frozen=True)
class Expected:
    """What the model should read next.

    Attributes:
        run: Tokens: the unread ones, and a guess after them.
        choices: Numbers of the tokens of `run` after which the grammar leaves a choice.
        before_address: Whether the address comes after `run`.
    """

    run: list[int]
    choices: list[int]
    before_address: bool


class Draft:
    """One unfinished answer.

    Args:
        grammar: The answer contract in the tokens of the model.
        kind: Kind of the answer.

    Attributes:
        tokens: All tokens of the answer so far.
        unread: The last of them, which the model has yet to read.
        lead: How it begins; None if it is not that far yet.
        address_probabilities: See `GeneratedAnswer`.
    """

    def __init__(self, grammar: AnswerGrammar, kind: AnswerKind) -> None:
        self.tokens: list[int] = []
        self.unread: list[int] = []
        self.lead: Lead | None = None
        self.address_probabilities: tuple[float, ...] | None = None
        self._grammar, self._kind, self._matcher = grammar, kind, grammar.matcher(kind)
        self._p_defective: float | None = None
        self._choices: list[int] = []
        self._append_forced()

    @property
    def complete(self) -> bool:
        """Whether the answer ends here."""
        return self._matcher.is_stopped()

    @property
    def at_choice(self) -> bool:
        """Whether the model has read all tokens and has to choose the next one."""
        return not self.complete and not self.unread

    @property
    def at_address(self) -> bool:
        """Whether the next choice is the first of the address, whose probabilities are not known yet."""
        return self.at_choice and self.address_probabilities is None and self._grammar.at_address(self.tokens)

    def take(self, count: int, filler: int = 0) -> list[int]:
        """Return the next `count` unread tokens, padded with `filler`, and mark them as read."""
        run, self.unread = self.unread[:count], self.unread[count:]
        return run + [filler] * (count - len(run))

    def expected(self, lead: Lead) -> Expected:
        """Return what the model should read next, if this answer begins like `lead`."""
        known, read = len(self.tokens), len(self.tokens) - len(self.unread)
        begins_alike = tuple(self.tokens) == lead.tokens[:known]
        ahead = list(lead.tokens[known:]) if begins_alike else []
        choices = {known, *(lead.choices if begins_alike else ()), known + len(ahead)}
        return Expected(
            self.unread + ahead,
            sorted(choice - read - 1 for choice in choices if choice >= known),
            self.address_probabilities is None and self._grammar.at_address([*self.tokens, *ahead]),
        )

    def choose(self, logits: torch.Tensor) -> None:
        """Append the most probable allowed token by `logits` (vocabulary,), and the tokens that the grammar forces."""
        grammar = self._grammar
        if self._p_defective is None and self._kind is not AnswerKind.STAR and grammar.at_judgement(self.tokens):
            self._p_defective = grammar.p_defective(logits)
            token = grammar.judgements[1]
        else:
            judged = self._p_defective is not None
            if (judged and self.lead is None) or (self._passed_so_far and grammar.at_address(self.tokens)):
                self.lead = Lead(tuple(self.tokens), tuple(self._choices))
            allowed = grammar.allowed(self._matcher, len(logits)).to(logits.device)
            token = int(logits.masked_fill(~allowed, float("-inf")).argmax())
        self._matcher.consume_token(token)
        self._choices.append(len(self.tokens))
        self.tokens.append(token)
        self.unread.append(token)
        self._append_forced()

    def answer(self) -> GeneratedAnswer:
        """Return the finished answer."""
        grammar = self._grammar
        return grammar.generated_answer(
            grammar.text(self.tokens), self._kind, self._p_defective, self.address_probabilities
        )

    @property
    def _passed_so_far(self) -> bool:
        return self._p_defective is None or self._p_defective < EVEN_ODDS

    def _append_forced(self) -> None:
        forced = [] if self.complete else self._matcher.compute_ff_tokens()
        self._matcher.consume_tokens(forced)
        self.tokens += forced
        self.unread += forced
