"""Generation: fast-forward changes no answer, probabilities are the model's own, and the threshold judges."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from pinspect.core import predictions
from pinspect.core.answers import DEFECTIVE, PASSED, AnswerKind
from pinspect.core.digests import adapter_sha256, weights_sha256
from pinspect.core.errors import StageInputError
from pinspect.core.operating_point import read_operating_point, write_operating_point
from pinspect.core.params import load_params
from pinspect.core.prompts import ZERO_SHOT
from pinspect.core.rows import read_chat
from pinspect.examination.examiner import Examiner
from pinspect.model import adapter
from pinspect.model.batching import IGNORED
from pinspect.model.families import checkpoint_of
from pinspect.model.fast_forward import READS_TREES
from pinspect.model.generation import answer_rows
from pinspect.model.loading import MAXIMUM_ANSWER_TOKENS, Inspector, load_inspector
from pinspect.model.memory import AnswerMemory
from pinspect.model.rows import RowEncoder
from pinspect.pretraining.base import new_base
from tests.support import chat_line
from tests.support.evaluated_project import run_stage
from tests.support.sample import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A line with every kind of prompt, and an adapter of 16 steps on the shipped base: enough to learn its words."""
    root = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_line, "CELL", 64)
        chat_line.make_line(root, inspected=8, references=2, stacked=True)
    settings = yaml.safe_load((root / "params.yaml").read_text())
    settings["model"]["checkpoint"] = str(ROOT / "models/base")
    settings["train"] |= {"batch_size": 4, "maximum_steps": 16}
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    run_stage("chat", root)
    params = load_params(root / "params.yaml")
    chat, images = root / "data/chat", root / "data/composited"
    validation = [row for row in read_chat(chat / "validation.jsonl") if row["kind"] == "two_image"]  # to save time
    (chat / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in validation))
    out = root / "models/adapter"
    adapter.train_adapter(params, checkpoint_of(params.model, root), chat, images, out, root / "build")
    return root


@pytest.fixture(scope="module")
def contract(line):
    return load_params(line / "params.yaml").contract()


@pytest.fixture(scope="module")
def inspector(line):
    params = load_params(line / "params.yaml")
    return load_inspector(checkpoint_of(params.model, line), line / "models/adapter")


@pytest.fixture(scope="module")
def untrained(line):
    """An untrained model: its answers keep the contract because of the grammar alone."""
    model, processor, _ = new_base(load_params(line / "params.yaml").layout.layout(), seed=0)
    return Inspector(model.eval(), processor, CPU)


@pytest.fixture(scope="module")
def rows(line):
    """Every kind of prompt about one test capture, in both views, and one star."""
    test_rows = read_chat(line / "data/chat/test.jsonl")
    kept = [row for row in test_rows if row["file"] == test_rows[0]["file"]]
    one_shot = next(row for row in kept if row["kind"] == "two_image" and row["shot"] != ZERO_SHOT)
    messages = one_shot["messages"]
    star = {"id": "star", "answer_kind": "star", "images": one_shot["images"][:1], "messages": messages[:2]}
    assert len({(row["kind"], row["shot"], row["view"]) for row in kept}) == 10
    return [*kept, star]


@pytest.fixture(scope="module")
def answers(inspector, rows, line, contract):
    return answer_rows(inspector, rows, line / "data/composited", contract, batch_size=8)


def zero_shot(rows):
    return [row for row in rows if row.get("kind") == "two_image" and row["shot"] == ZERO_SHOT]


def alike(first, second, apart=1e-4):
    """Assert the same texts, and the same probabilities up to rounding; of addresses, if both have them."""
    assert [answer.text for answer in first] == [answer.text for answer in second]
    assert [answer.if_defective for answer in first] == [answer.if_defective for answer in second]
    for a, b in zip(first, second, strict=True):
        assert (a.p_defective is None) == (b.p_defective is None)
        assert a.p_defective is None or a.p_defective == pytest.approx(b.p_defective, abs=apart)
        if a.address_probabilities and b.address_probabilities:
            assert a.address_probabilities == pytest.approx(b.address_probabilities, abs=apart)


@pytest.mark.parametrize("model", ["inspector", "untrained"])
def test_few_passes_give_the_answers_of_generate(model, request, rows, line, contract):
    inspector, images = request.getfixturevalue(model), line / "data/composited"
    fast = answer_rows(inspector, rows, images, contract, batch_size=8)
    alike(fast, answer_rows(inspector, rows, images, contract, batch_size=11, fast_forward=False))
    for row, answer in zip(rows, fast, strict=True):
        contract.parse(answer.text, AnswerKind(row["answer_kind"]))


def test_address_probabilities_are_the_models_own(inspector, rows, line, contract):
    """They equal those of one plain forward pass over every address.

    A model may spell a word with other tokens than the tokenizer, which the text does not show; the forward pass cannot
    reproduce such an answer.
    """
    zero_shot_rows = [row for row in rows if row.get("shot") == ZERO_SHOT and row["kind"] != "stacked"]
    answers = answer_rows(inspector, zero_shot_rows, line / "data/composited", contract, batch_size=8)
    apart = [
        np.abs(np.subtract(answer.address_probabilities, written_out(inspector, row, answer, line, contract))).max()
        for row, answer in zip(zero_shot_rows, answers, strict=True)
    ]
    assert sum(difference < 1e-4 for difference in apart) >= 2
    assert all(answer.address_entropy > 0.3 for answer in answers)


def written_out(inspector, row, answer, line, contract) -> list[float]:
    """Return P(address) of every address after the answer's own words, from one forward pass without a cache."""
    encoder = RowEncoder(inspector.processor, line / "data/composited")
    lead = answer.if_defective[: answer.if_defective.rindex("X:")]
    written = []
    for address in contract.layout.addresses:
        turn = {"role": "assistant", "content": [{"type": "text", "text": f"{lead}{address}"}]}
        written.append({**row, "messages": [*row["messages"][:-1], turn]})
    batch = encoder.batch(written, answers=True)
    labels = batch.pop("labels")
    with torch.inference_mode():
        logits = inspector.model(**batch).logits[:, :-1].float()
    token_of = inspector.processor.tokenizer.convert_tokens_to_ids
    columns = [token_of(str(column)) for column in range(1, contract.layout.columns + 1)]
    letters = [token_of(letter) for letter in contract.layout.rows]
    expected = []
    for number, address in enumerate(contract.layout.addresses):
        # "X : 3 , Y : U" and the end of the turn: the column is the sixth token from the end, the row the second.
        end = int((labels[number] != IGNORED).nonzero()[-1])
        column = logits[number, end - 6, columns].softmax(0)[address.column - 1]
        letter = logits[number, end - 2, letters].softmax(0)[contract.layout.rows.index(address.row)]
        expected.append(float(column * letter))
    return expected


def test_every_constrained_answer_has_address_probabilities(answers, contract):
    for answer in answers:
        assert len(answer.address_probabilities) == contract.layout.pins
        assert sum(answer.address_probabilities) == pytest.approx(1, abs=1e-5)
        shares = np.array(answer.address_probabilities)
        assert 0 <= answer.address_entropy <= math.log2(contract.layout.pins) + 1e-5
        assert answer.address_entropy == pytest.approx(-(shares * np.log2(np.maximum(shares, 1e-30))).sum(), abs=1e-4)


def test_the_named_column_is_the_most_probable_one_and_so_is_the_row_in_it(answers, rows, contract):
    layout = contract.layout
    for row, answer in zip(rows, answers, strict=True):
        text = answer.if_defective or answer.text
        named = contract.parse(text, AnswerKind(row["answer_kind"])).defect_position
        shares = np.array(answer.address_probabilities).reshape(len(layout.rows), layout.columns)
        assert shares.sum(axis=0).argmax() == named.column - 1
        assert shares[:, named.column - 1].argmax() == layout.rows.index(named.row)


def test_the_threshold_judges_and_mode_and_address_follow(answers, rows, contract):
    for row, answer in list(zip(rows, answers, strict=True))[:-1]:
        kind = AnswerKind(row["answer_kind"])
        strict, lax = answer.judged(answer.p_defective), answer.judged(math.nextafter(answer.p_defective, 2))
        assert contract.parse(strict.text, kind).judgement == DEFECTIVE
        assert contract.parse(lax.text, kind).judgement == PASSED
        assert (strict.text, lax.text) == (answer.if_defective, answer.if_passed)
        assert strict.address_probabilities == lax.address_probabilities


def test_answers_under_a_threshold_are_those_judged_by_it_later(inspector, rows, answers, line, contract):
    """A threshold can therefore be chosen without the model."""
    threshold = sorted(answer.p_defective for answer in answers[:-1])[len(answers) // 2]
    again = answer_rows(inspector, rows, line / "data/composited", contract, batch_size=8, threshold=threshold)
    assert [answer.text for answer in again] == [answer.judged(threshold).text for answer in answers]
    assert {answer.threshold for answer in again[:-1]} == {threshold}


def test_a_star_answer_has_a_place_and_no_judgement(answers):
    star = answers[-1]
    assert star.p_defective is None and star.threshold is None
    assert star.text.count("\n") == 2
    assert star.judged(0.0) == star


@pytest.mark.parametrize("fast_forward", [True, False])
def test_bfloat16_changes_answers_by_its_rounding_and_keeps_probabilities_apart(
    rows, answers, line, contract, fast_forward
):
    base = checkpoint_of(load_params(line / "params.yaml").model, line)
    rounded = load_inspector(replace(base, precision="bf16"), line / "models/adapter")
    assert rounded.base_model.dtype == torch.bfloat16
    images, asked = line / "data/composited", rows[:-1]
    given = answer_rows(rounded, asked, images, contract, batch_size=8, fast_forward=fast_forward)
    apart = [abs(a.p_defective - b.p_defective) for a, b in zip(given, answers, strict=False)]
    assert 1e-5 < max(apart) < 0.05
    # Logits in bfloat16 have few values: 8 bits, of which a difference of two leaves less.
    assert len({answer.p_defective for answer in given}) == len(asked)


def token_by_token(inspector):
    """Return the same model, but with other logits if it reads several tokens after others, so that it may not."""

    def otherwise(_module, _arguments, inputs, made):
        tokens = inputs["input_ids"].shape[1]
        if 1 < tokens < made.past_key_values.get_seq_length():
            made.logits = made.logits.flip(-1)

    other = replace(inspector, model=copy.deepcopy(inspector.model))
    other.base_model.register_forward_hook(otherwise, with_kwargs=True)
    return other


@pytest.fixture(scope="module")
def slow_answers(inspector, rows, line, contract):
    slow = token_by_token(inspector)
    answers = answer_rows(slow, rows, line / "data/composited", contract, batch_size=8)
    assert not READS_TREES[slow.model]
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_trees_and_shared_heads_change_no_answer(inspector, rows, slow_answers, line, contract, batch_size):
    """Batches of one kind and of several, padded or not, with heads read anew and kept from an earlier call.

    The sums of float32 are rounded in another order: 1.3e-5 between two addresses of which each has about half.
    """
    memory, images = AnswerMemory(), line / "data/composited"
    for _ in range(2):
        fast = answer_rows(inspector, rows, images, contract, batch_size=batch_size, memory=memory)
        alike(fast, slow_answers, apart=5e-5)
    assert READS_TREES[inspector.model]


@pytest.fixture
def threads():
    """A function that sets the number of torch's threads, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_parts_of_a_batch_in_threads_change_no_answer(inspector, rows, answers, line, contract, threads):
    """Two runs give the same numbers: no thread learns from what another has read in the meantime."""
    threads(3)
    first, second = (answer_rows(inspector, rows, line / "data/composited", contract, batch_size=8) for _ in range(2))
    alike(first, answers)
    assert [replace(answer, seconds=0) for answer in first] == [replace(answer, seconds=0) for answer in second]


def passes(inspector, answer):
    """Return the forward passes and the pictures that go through the vision tower while `answer` runs."""
    base, counts = inspector.base_model, {"passes": 0, "pictures": 0}

    def count_pass(_module, _arguments, _made):
        counts["passes"] += 1

    def count_pictures(_module, _arguments, inputs, _made):
        counts["pictures"] += len(inputs["grid_thw"])

    hooks = [
        base.model.language_model.register_forward_hook(count_pass),
        base.model.visual.register_forward_hook(count_pictures, with_kwargs=True),
    ]
    answer()
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize(("p_defective", "count", "expected"), [(0.2, 3, 1), (0.8, 3, 2), (0.2, 1, 1), (0.8, 1, 1)])
def test_what_prompts_share_is_read_once_and_the_answer_to_a_passed_or_single_capture_takes_one_pass(
    inspector, rows, line, contract, threads, monkeypatch, p_defective, count, expected
):
    """The mode of a defective capture is not what other captures have in common: another pass reads it.

    For a single capture the first pass reads the addresses after every mode.
    """
    threads(1)  # several would each take a part of the batch
    monkeypatch.setattr("pinspect.model.grammar.AnswerGrammar.p_defective", lambda *_: p_defective)
    memory, images = AnswerMemory(), line / "data/composited"
    row, _ = zero_shot(rows)
    answer_rows(inspector, [row], images, contract, batch_size=1)  # finds out once how the model reads

    def answer():
        answer_rows(inspector, [row] * count, images, contract, batch_size=count, memory=memory)

    first, later = passes(inspector, answer), passes(inspector, answer)
    assert first["pictures"] == 1 + count
    assert later == {"passes": expected, "pictures": count}


def test_a_memory_keeps_the_heads_that_were_used_last(inspector, rows, line, contract, monkeypatch):
    images, memory = line / "data/composited", AnswerMemory()
    encoder = RowEncoder(inspector.processor, images)
    raw, dst = zero_shot(rows)
    (head,) = memory.heads(inspector, encoder, [raw])
    monkeypatch.setattr("pinspect.model.memory.KEPT_BYTES", int(1.5 * head.size))
    assert memory.heads(inspector, encoder, [raw]) == [head]
    memory.heads(inspector, encoder, [dst])
    assert memory.heads(inspector, encoder, [raw])[0] is not head


def test_pictures_in_memory_give_the_answers_of_files(inspector, rows, answers, line, contract):
    names = {name for row in rows for name in row["images"]}
    pictures = {name: (line / "data/composited" / name).read_bytes() for name in names}
    alike(answer_rows(inspector, rows, pictures, contract, batch_size=8), answers)


def test_a_model_that_cannot_take_trees_is_read_token_by_token(untrained, rows, line, contract):
    """For some models (bidirectional prompts), several tokens at once give other logits than one by one."""
    images, slow = line / "data/composited", token_by_token(untrained)
    alike(
        answer_rows(slow, zero_shot(rows), images, contract, batch_size=4),
        answer_rows(untrained, zero_shot(rows), images, contract, batch_size=4),
    )


def test_free_answers_are_not_judged_by_a_threshold(untrained, rows, line, contract):
    (answer,) = answer_rows(
        untrained, rows[:1], line / "data/composited", contract, batch_size=1, constrained=False, threshold=0.0
    )
    assert answer.if_passed is answer.threshold is answer.address_probabilities is answer.address_entropy is None
    assert len(untrained.processor.tokenizer(answer.text).input_ids) <= MAXIMUM_ANSWER_TOKENS + 8
    assert answer.judged(0.0) == answer


def test_answering_no_rows_returns_no_answers(inspector, line, contract):
    assert answer_rows(inspector, [], line / "data/composited", contract, batch_size=4) == []


# --- the operating point; the stage itself wants unit spaces, and runs where a whole project is made


@pytest.fixture(scope="module")
def calibrated(line, inspector, contract):
    """The line with its operating point, and the hash that named its adapter before."""
    weights, params = line / "models/adapter", load_params(line / "params.yaml").evaluate
    before, rows = adapter_sha256(weights), read_chat(line / "data/chat/validation.jsonl")
    examiner = Examiner(inspector, line / "data/composited", contract, params)
    point, answered = examiner.calibrate(rows, weights_sha256(weights))
    predictions.write(answered, line / "reports/predictions/validation.csv")
    write_operating_point(point, line / "models/operating_point.json")
    return line, before


def test_calibration_judges_the_validation_rows_and_belongs_to_its_adapter(calibrated):
    line, before = calibrated
    path, weights = line / "models/operating_point.json", line / "models/adapter"
    point = read_operating_point(path, weights)
    assert (point.chosen_on, point.weights_sha256) == ("camera", weights_sha256(weights))
    assert point.defective > 0 and point.passed > 0
    assert point.escape_rate <= point.wanted_escape_rate
    answered = predictions.read(line / "reports/predictions/validation.csv")
    rows = read_chat(line / "data/chat/validation.jsonl")
    assert list(answered["id"]) == [row["id"] for row in rows]
    assert answered["parses"].all()
    # Probabilities are written to six places; the threshold may lie between two of them.
    sure = answered[(answered["p_defective"] - point.threshold).abs() > 1e-5]
    assert ((sure["p_defective"] >= point.threshold) == (sure["found_judgement"] == DEFECTIVE)).all()
    assert np.allclose(predictions.address_probabilities(answered, 27).sum(axis=1), 1, atol=3e-3)
    assert adapter_sha256(weights) != before, "another threshold makes another inspector"


def test_an_operating_point_of_another_adapter_is_refused(calibrated, tmp_path):
    line, _ = calibrated
    other = tmp_path / "adapter"
    other.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (other / name).write_bytes((line / "models/adapter" / name).read_bytes() + b" ")
    with pytest.raises(StageInputError, match=r"chosen for another adapter than .*; run dvc repro answer"):
        read_operating_point(line / "models/operating_point.json", other)
