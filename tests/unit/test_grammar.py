"""Constrained decoding allows exactly the answers of the contract, whatever words a line has for its defects."""

import pytest
from transformers import AutoTokenizer

from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.layout import Address, Layout
from pinspect.model.grammar import AnswerGrammar, next_tokens
from tests.support.sample import ROOT

MODES = ("X-plus", "X-minus", "Y-plus", "Y-minus", "pullout")
CONTRACT = AnswerContract(Layout(("U", "C", "D"), 9), ("CYLN", "SQUR"), MODES)


@pytest.fixture(scope="module")
def grammar():
    return AnswerGrammar(AutoTokenizer.from_pretrained(ROOT / "models/base"), CONTRACT)


def is_allowed(grammar, text: str) -> bool:
    """Return whether the grammar accepts every token of a text and is complete at its end."""
    matcher = grammar.matcher(AnswerKind.COMPARISON)
    for token in grammar.tokenizer(text, add_special_tokens=False).input_ids:
        if token not in next_tokens(matcher):
            return False
        matcher.consume_token(token)
    return matcher.is_stopped()


@pytest.mark.parametrize("mode", MODES)
def test_modes_with_capitals_and_hyphens_are_decoded(grammar, mode):
    text = CONTRACT.render(CONTRACT.defective("SQUR", "DST", mode, Address(9, "C")))
    assert is_allowed(grammar, text)
    assert not is_allowed(grammar, text.replace(mode, f"{mode}s"))
    assert not is_allowed(grammar, text.replace(mode, mode.swapcase()))
    assert not is_allowed(grammar, text.replace(mode, "Z-plus"))
    assert grammar.generated_answer(text, AnswerKind.COMPARISON, 0.5).if_passed == CONTRACT.render(
        CONTRACT.passed("SQUR", "DST")
    )


def test_a_passed_answer_is_decoded(grammar):
    assert is_allowed(grammar, CONTRACT.render(CONTRACT.passed("CYLN", "RAW")))


def test_modes_may_be_words_of_other_lines():
    contract = AnswerContract(CONTRACT.layout, ("CYLN", "SQUR"), ("e", "CYLN"))
    grammar = AnswerGrammar(AutoTokenizer.from_pretrained(ROOT / "models/base"), contract)
    answer = contract.render(contract.defective("SQUR", "DST", "e", Address(9, "C")))
    assert is_allowed(grammar, answer)
    assert answer[: answer.rindex("e\n")].endswith(grammar.mode_lead)
