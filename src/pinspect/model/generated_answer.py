"""The answer that a model generates for one row, with the probabilities behind it. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

EVEN_ODDS = 0.5  # the threshold on P(defective) if no operating point was chosen


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer and its probabilities; the fields after `seconds` exist for constrained answers only, else None.

    Attributes:
        text: The answer, which is `if_passed` or `if_defective`, or the free text of a model without grammar.
        p_defective: P(defective) / (P(defective) + P(passed)) at the judgement token, 0..1. None if the text has no
            judgement line.
        seconds: Time of the batch divided by its number of rows.
        threshold: The threshold that `p_defective` was compared with.
        if_passed: The answer if the capture is passed.
        if_defective: The answer if the capture is defective.
        address_probabilities: One probability per pin in the order of the layout, sum 1: P(column) x P(row | column) at
            the address tokens, given that the capture is defective in its most probable mode. Passed answers have
            address probabilities too.
        address_entropy: Entropy of `address_probabilities` in bits: 0 if one pin is certain, log2(pins) if all pins are
            equally probable.
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
        """Return this answer as it reads at another threshold; a free answer stays unchanged.

        Args:
            threshold: The capture is defective if P(defective) >= threshold.
        """
        if self.if_passed is None or self.if_defective is None or self.p_defective is None:
            return self
        text = self.if_defective if self.p_defective >= threshold else self.if_passed
        return replace(self, text=text, threshold=threshold)


def entropy_bits(probabilities: Sequence[float]) -> float:
    """Return the entropy of a probability distribution in bits."""
    return -sum(p * math.log2(p) for p in probabilities if p > 0)
