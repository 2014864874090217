import json
from importlib.util import find_spec

import pytest
from transformers import AutoProcessor

from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerContract, AnswerKind
from pinspect.core.layout import Layout
from pinspect.model.grammar import AnswerGrammar
from pinspect.model.processor import build_processor, build_tokenizer, save_processor
from pinspect.pretraining import pretext
from pinspect.pretraining.base import LINE_WORDS, MERGE, PATCH, new_base, pretext_texts
from tests.support.sample import ROOT

LAYOUT = Layout(("U", "C", "D"), 9)
MODES = ("bend", "X-plus", "Y-minus", "pullout", "stain", "Z-plus")  # the last two are not words of the vocabulary
JUDGED = (AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION)
CONTRACT = AnswerContract(LAYOUT, ("CYLN", "OVAL"), MODES)


@pytest.fixture(scope="module")
def tokenizer():
    texts, _ = pretext_texts(LAYOUT)
    return build_tokenizer(texts, (*pretext.CHANGES, *LINE_WORDS))


def answers() -> list[tuple[str, AnswerKind]]:
    address = LAYOUT.addresses[13]
    chosen = [CONTRACT.defective(shape, "DST", mode, address) for shape in CONTRACT.shapes for mode in MODES]
    chosen.append(CONTRACT.passed("OVAL", "RAW"))
    return [
        *((CONTRACT.render(answer, kind), kind) for answer in chosen for kind in JUDGED),
        (CONTRACT.render(CONTRACT.star("CYLN", "RAW", address), AnswerKind.STAR), AnswerKind.STAR),
        (CONTRACT.render_grid(CONTRACT.grid((3, 1, 2, 0, 8, 7, 6, 5, 4), (2, 0, 1))), AnswerKind.GRID),
    ]


@pytest.mark.parametrize("text", [*prompts.texts(), *(text for text, _ in answers()), "ünknown ☃ words,\n\n  42%"])
def test_every_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_word_of_an_instruction_is_one_token(tokenizer):
    for text in prompts.texts():
        marks = sum(text.count(mark) for mark in ".,:")
        assert len(tokenizer(text).input_ids) == len(text.split()) + marks


def test_the_fixed_instruction_of_production_costs_about_45_tokens(tokenizer):
    costs = {view: len(tokenizer(prompts.INSTRUCTIONS[prompts.PromptKind.TWO_IMAGE, view]).input_ids) for view in VIEWS}
    assert costs["RAW"] <= 46 and costs["DST"] <= 56


def test_mode_column_and_row_are_one_token_each(tokenizer):
    for mode in ("bend", "X-plus", "Y-minus", "pullout", "passed", *pretext.CHANGES):
        assert len(tokenizer(mode).input_ids) == 1, mode
    assert tokenizer.tokenize("->X:3, Y:D") == ["->", "X", ":", "3", ",", "ĠY", ":", "D"]


def test_a_word_outside_the_vocabulary_is_spelled_in_bytes(tokenizer):
    assert tokenizer.tokenize("mode->stain") == [*"mode", "->", *"stain"]
    assert tokenizer.tokenize("Z-plus") == ["Z", "-", "plus"]


@pytest.mark.parametrize(("text", "kind"), answers())
def test_the_grammar_leads_through_the_tokens_of_every_answer(tokenizer, text, kind):
    """The tokens that the grammar forces are those that training shows."""
    matcher = AnswerGrammar(tokenizer, CONTRACT).matcher(kind)
    tokens = tokenizer(text).input_ids
    read = 0
    while not matcher.is_stopped():
        forced = matcher.compute_ff_tokens()
        assert forced == tokens[read : read + len(forced)]
        matcher.consume_tokens(forced)
        read += len(forced)
        if not matcher.is_stopped():
            matcher.consume_token(tokens[read])
            read += 1
    assert read == len(tokens)


def test_a_saved_tokenizer_encodes_the_same(tokenizer, tmp_path):
    processor = build_processor(tokenizer, 32, 2)
    processor.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in prompts.texts():
        assert again(text).input_ids == tokenizer(text).input_ids
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"] == []


def test_the_shipped_processor_is_what_make_base_writes(tokenizer, tmp_path):
    save_processor(build_processor(tokenizer, PATCH, MERGE), tmp_path)
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (ROOT / "models/base" / name).read_text(), name


def test_transformers_alone_never_takes_the_base_for_a_bare_tokenizer():
    assert not find_spec("torchvision")  # the processor of Qwen3-VL requires it; `make test-stack` has it
    with pytest.raises((ImportError, ValueError), match=r"[Tt]orchvision"):
        AutoProcessor.from_pretrained(ROOT / "models/base")


def test_the_base_knows_no_word_of_a_judgement_or_a_defect_mode():
    model, processor, known = new_base(LAYOUT, seed=0)
    tokenizer = processor.tokenizer
    assert len(known) == len(tokenizer) == model.config.text_config.vocab_size
    neutral = {"left", "right", "up", "down"}  # directions may occur in the pre-text
    words = [word for word in LINE_WORDS if word not in {*neutral, *pretext.SHAPES, *pretext.CHANGES}]
    for word in (*words, "passed", " passed", "defective", " defect"):
        (token,) = tokenizer.convert_tokens_to_ids([word.replace(" ", "Ġ")])
        assert token is not None and not known[token], word
    for word in ("unchanged", " change", *pretext.CHANGES, "user", "assistant", "<|im_start|>", "<|im_end|>"):
        (token,) = tokenizer.convert_tokens_to_ids([word.replace(" ", "Ġ")])
        assert known[token], word
