"""One unfinished answer under the grammar: what it has decided, and what the model has yet to read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from pinspect.core.answers import AnswerKind
from pinspect.model.generated_answer import EVEN_ODDS, GeneratedAnswer
from pinspect.model.grammar import AnswerGrammar


@dataclass(frozen=True)
class Lead:
    """How an answer begins: what captures of one shape and view have in common.

    Attributes:
        tokens: The tokens before the mode; before the address of an answer without judgement.
        mode: The tokens from the mode to the address: passed captures have their most probable mode in common, too.
            Empty if no capture has been passed.
        choices: Numbers of all these tokens that the grammar did not force.
    """

    tokens: tuple[int, ...] = ()
    mode: tuple[int, ...] = ()
    choices: tuple[int, ...] = ()

    def after(self, answer: Lead | None) -> Lead:
        """Return what to expect after another answer: this, unless the answer began in another way."""
        if answer is None or (answer.tokens == self.tokens and not answer.mode):
            return self
        return answer


@dataclass(frozen=True)
class Expected:
    """What the model should read next.

    Attributes:
        run: Tokens: the unread ones, and a guess after them.
        choices: Numbers of the tokens of `run` after which the grammar leaves a choice.
        before: What comes after `run` and is worth reading with it.
    """

    run: list[int]
    choices: list[int]
    before: Literal["address", "mode", ""]


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
        self._grammar, self._kind = grammar, kind
        self._p_defective: float | None = None
        self._choices: list[int] = []
        self._append_forced()

    @property
    def complete(self) -> bool:
        """Whether the answer ends here."""
        return self._allowed is None

    @property
    def at_choice(self) -> bool:
        """Whether the model has read all tokens and has to choose the next one."""
        return not self.complete and not self.unread

    @property
    def at_address(self) -> bool:
        """Whether the next choice is the first of the address, whose probabilities are not known yet."""
        return self.at_choice and self.address_probabilities is None and self._before == "address"

    def take(self, count: int, filler: int = 0) -> list[int]:
        """Return the next `count` unread tokens, padded with `filler`, and mark them as read."""
        run, self.unread = self.unread[:count], self.unread[count:]
        return run + [filler] * (count - len(run))

    def expected(self, lead: Lead, *, every_mode: bool) -> Expected:
        """Return what the model should read next.

        Args:
            lead: How this answer probably begins.
            every_mode: Whether to read the address after every mode, in place of the most probable one.
        """
        known, read = len(self.tokens), len(self.tokens) - len(self.unread)
        tokens = lead.tokens if every_mode and known <= len(lead.tokens) else lead.tokens + lead.mode
        ahead = list(tokens[known:]) if tuple(self.tokens) == tokens[:known] else []
        end = known + len(ahead)
        choices = {known, *(choice for choice in lead.choices if known < choice < end), end}
        before = self._grammar.before((*self.tokens, *ahead)) if self.address_probabilities is None else ""
        return Expected(
            self.unread + ahead,
            sorted(choice - read - 1 for choice in choices),
            before if before == "address" or (before == "mode" and every_mode) else "",
        )

    def choose(self, logits: torch.Tensor) -> None:
        """Append the most probable allowed token by `logits` (vocabulary,), and the tokens that the grammar forces."""
        if self._before == "judgement" and self._p_defective is None and self._kind is not AnswerKind.STAR:
            self._p_defective = self._grammar.p_defective(logits)
            token = self._grammar.judgements[1]
        else:
            judged, at_address = self._p_defective is not None, self._before == "address"
            tokens, choices = tuple(self.tokens), tuple(self._choices)
            if self.lead is None and (judged or at_address):
                self.lead = Lead(tokens, choices=choices)
            elif self.lead and self._passed_so_far and at_address:
                self.lead = replace(self.lead, mode=tokens[len(self.lead.tokens) :], choices=choices)
            assert self._allowed is not None  # else the answer ends here
            allowed = self._allowed[self._allowed < len(logits)].to(logits.device)
            token = int(allowed[logits[allowed].argmax()])
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
    def _before(self) -> str:
        return self._grammar.before(tuple(self.tokens))

    @property
    def _passed_so_far(self) -> bool:
        return self._p_defective is None or self._p_defective < EVEN_ODDS

    def _append_forced(self) -> None:
        forced, self._allowed = self._grammar.after(self._kind, tuple(self.tokens))
        self.tokens += forced
        self.unread += forced
